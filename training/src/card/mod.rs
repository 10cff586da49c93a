//! Model cards: the README.md of a saved model, whose head the Hugging Face Hub reads.
//!
//! A card is made of what lies on the disk: the model's mark, the training and the run around it, and
//! the card of the model that all began with. So `sppo card` makes the same card as the training did,
//! and adds results that came later.

mod contents;
mod facts;
mod front_matter;
mod hardware;
mod keep;
mod markdown;
mod results;
mod text;

use std::path::{Path, PathBuf};

pub use facts::{Compared, IterationResult, Made};
pub use hardware::Hardware;
pub use keep::Written;

use crate::evaluation::{Annotations, Leaderboard, WinRateReport};
use crate::files::{CARD, FileError};
use contents::Contents;

/// Why there is no card.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// A folder that this program did not make, or not as a model.
    #[error(
        "{path} is no model that sppo trained, merged or made (its sppo.json would say so); give the folder of one, such as runs/default/iteration-3/model",
        path = path.display()
    )]
    NoModel {
        /// The folder.
        path: PathBuf,
    },
    /// A card that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a card says, ready to be written.
pub struct Card(Contents);

impl Card {
    /// Of a finished model or a checkpoint.
    pub fn of(dir: &Path) -> Result<Self, CardError> {
        let made = Made::read(dir).filter(|made| {
            let kinds = ["train", "sft", "merge", "init"];
            kinds.into_iter().any(|kind| made.is(kind))
        });
        match made {
            Some(made) => Ok(Self(Contents::new(dir, dir, made))),
            None => Err(CardError::NoModel { path: dir.into() }),
        }
    }

    /// What the model is called on the Hub, `org/name`, in place of its folder.
    pub fn named(mut self, repository: &str) -> Self {
        let name = repository.rsplit_once('/');
        self.0.name = name.map_or(repository, |(_, name)| name).into();
        self.0.model = repository.into();
        self
    }

    /// With results of lm-evaluation-harness.
    pub fn with_leaderboard(mut self, found: Leaderboard) -> Self {
        self.0.results.add_leaderboard(found);
        self
    }

    /// With AlpacaEval's numbers.
    pub fn with_win_rate(mut self, annotations: &Annotations, report: &WinRateReport) -> Self {
        self.0.results.add_win_rate(annotations, report);
        self
    }

    /// With the results of a run that is under way, up to this model's iteration.
    fn with_iterations(mut self, results: &[IterationResult]) -> Self {
        if let Some(run) = &mut self.0.run {
            let last = run.iteration.unwrap_or(0);
            let kept = results.iter().filter(|entry| entry.iteration <= last);
            run.results = kept.cloned().collect();
        }
        self
    }

    /// The text without the line by which it is known again.
    pub fn text(&self) -> String {
        text::text(&self.0)
    }

    /// Writes it into the model's folder; one that was edited stays, unless `overwrite` says otherwise.
    pub fn write(&self, dir: &Path, overwrite: bool) -> Result<Written, CardError> {
        Ok(keep::put(dir, &self.text(), overwrite)?)
    }
}

/// Writes the card of a model that was just written to `dir`, with its mark, and takes the place of
/// `target`, whose card goes along where somebody edited it.
pub(crate) fn write_new(dir: &Path, target: &Path) -> Result<(), FileError> {
    let Some(made) = Made::read(dir) else {
        return Ok(());
    };
    let mut contents = Contents::new(dir, target, made);
    // The report may hold an earlier model's results under the same number.
    if let Some(run) = &mut contents.run {
        run.only_earlier_results();
    }
    let text = text::text(&contents);
    keep::put_in_new(dir, target, &text)?;
    Ok(())
}

/// Makes the card of a run's model anew, with the results so far.
pub(crate) fn write_with_results(dir: &Path, results: &[IterationResult]) -> Result<(), FileError> {
    let Some(made) = Made::read(dir) else {
        return Ok(());
    };
    let card = Card(Contents::new(dir, dir, made)).with_iterations(results);
    if keep::put(dir, &card.text(), false)? == Written::Kept {
        tracing::info!("{} was edited and stays as it is", dir.join(CARD).display());
    }
    Ok(())
}
