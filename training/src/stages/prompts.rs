//! Prompts as token ids. What the model cannot answer is found here, before its weights are loaded.

use serde::{Deserialize, Serialize};
use sppo_model::generate::{GenerateError, check_prompt};
use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use crate::config::{Config, OnBadRow, OnTooLong};
use crate::data::PromptRow;
use crate::tokenise::{BadRows, MAY_BE_SKIPPED, cut_beginning};

/// How long prompts may be, and what becomes of longer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLimits {
    /// Most tokens; what the model's context leaves room for where none.
    pub max_length: Option<usize>,
    /// What becomes of longer prompts.
    pub on_too_long: OnTooLong,
    /// What becomes of prompts that cannot be answered for another reason.
    pub on_bad_row: OnBadRow,
}

impl From<&Config> for PromptLimits {
    fn from(config: &Config) -> Self {
        Self {
            max_length: config.prompts.max_length,
            on_too_long: config.prompts.on_too_long,
            on_bad_row: config.on_bad_row,
        }
    }
}

impl PromptLimits {
    /// What results depend on: nothing where longer prompts end the job, since then there are none.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let bad = self.on_bad_row.setting().into_iter();
        if self.on_too_long == OnTooLong::Stop {
            return bad.collect();
        }
        let most = self
            .max_length
            .map(|most| ("max_prompt_length", most.to_string()));
        let action = ("on_too_long", self.on_too_long.to_string());
        bad.chain([action]).chain(most).collect()
    }
}

/// Prompts that can be answered.
pub(super) struct Answerable {
    /// Their rows, in their order.
    pub rows: Vec<PromptRow>,
    /// Their token ids.
    pub ids: Vec<Vec<u32>>,
}

/// The prompts that the model can answer, as `limits` has it. All that it cannot are refused
/// together; `numbers` are their rows' numbers in their file, where they are known.
pub(super) fn answerable(
    prompts: &[PromptRow],
    numbers: Option<&[usize]>,
    limits: PromptLimits,
    raw: bool,
    folder: &ModelFolder,
) -> Result<Answerable, StageError> {
    let sorted = Sorted::of(prompts, numbers, limits, raw, folder)?.accepted()?;
    let (all, most) = (prompts.len(), sorted.most);
    if sorted.unusable.count() > 0 {
        tracing::warn!(
            "{} of {all} prompts cannot be used and are left out (on_bad_row = skip): {}",
            sorted.unusable.count(),
            sorted.unusable
        );
    }
    if sorted.cut.count() > 0 {
        tracing::warn!(
            "{} of {all} prompts have more than {most} tokens and lost {} tokens at their beginning (on_too_long = cut): {}",
            sorted.cut.count(),
            sorted.gone,
            sorted.cut
        );
    }
    if sorted.skipped.count() > 0 {
        tracing::warn!(
            "{} of {all} prompts have more than {most} tokens and are left out (on_too_long = skip): {}",
            sorted.skipped.count(),
            sorted.skipped
        );
    }
    if sorted.found.rows.is_empty() && all > 0 {
        sorted.nothing_left(all)?;
    }
    Ok(sorted.found)
}

/// What became of the prompts of one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptCounts {
    /// Prompts that are answered.
    pub answered: usize,
    /// Left out because they cannot be used.
    pub unusable: usize,
    /// Left out because they are too long.
    pub too_long: usize,
    /// Those of the answered ones that lost their beginning.
    pub cut: usize,
}

/// Refuses prompts that a job of [`answerable`] would refuse, and counts what it would leave out or
/// cut; for jobs that come much later.
pub(crate) fn check_prompts(
    prompts: &[PromptRow],
    numbers: &[usize],
    limits: PromptLimits,
    folder: &ModelFolder,
) -> Result<PromptCounts, StageError> {
    let sorted = Sorted::of(prompts, Some(numbers), limits, false, folder)?.accepted()?;
    let counts = PromptCounts {
        answered: sorted.found.rows.len(),
        unusable: sorted.unusable.count(),
        too_long: sorted.skipped.count(),
        cut: sorted.cut.count(),
    };
    if counts.answered == 0 && !prompts.is_empty() {
        sorted.nothing_left(prompts.len())?;
    }
    Ok(counts)
}

/// Prompts sorted by what becomes of them.
struct Sorted<'a> {
    folder: &'a ModelFolder,
    on_too_long: OnTooLong,
    /// Most tokens of a prompt.
    most: usize,
    on_bad_row: OnBadRow,
    found: Answerable,
    /// What ends the job.
    bad: BadRows,
    /// Left out, as `on_bad_row` says.
    unusable: BadRows,
    skipped: BadRows,
    cut: BadRows,
    /// Tokens that were cut away.
    gone: usize,
}

impl<'a> Sorted<'a> {
    fn of(
        prompts: &[PromptRow],
        numbers: Option<&[usize]>,
        limits: PromptLimits,
        raw: bool,
        folder: &'a ModelFolder,
    ) -> Result<Self, StageError> {
        let text = folder.require_text()?;
        // One token at least has to be drawn.
        let room = folder.config().max_position_embeddings.saturating_sub(1);
        let mut sorted = Self {
            folder,
            on_too_long: limits.on_too_long,
            on_bad_row: limits.on_bad_row,
            most: limits.max_length.map_or(room, |most| most.min(room)),
            found: Answerable {
                rows: Vec::with_capacity(prompts.len()),
                ids: Vec::with_capacity(prompts.len()),
            },
            bad: BadRows::default(),
            unusable: BadRows::default(),
            skipped: BadRows::default(),
            cut: BadRows::default(),
            gone: 0,
        };
        let bos = text.tokenizer().bos_id();
        for (index, row) in prompts.iter().enumerate() {
            let place = match numbers.and_then(|numbers| numbers.get(index)) {
                Some(number) => format!("row {number}, "),
                None => String::new(),
            };
            let turns = row.prompt.messages();
            let ids = match raw {
                // As the tokenizer encodes a text by itself: with its BOS, if it adds one.
                true => text.turn_ids(&turns),
                false => text.prompt_ids(&turns),
            };
            match ids {
                Ok(ids) => sorted.sort(row, &place, ids, bos),
                Err(problem) => {
                    let bad = || format!("{place}prompt {}: {problem}", row.prompt_id);
                    sorted.unusable(bad);
                }
            }
        }
        Ok(sorted)
    }

    /// A prompt that cannot be used, whatever its length.
    fn unusable(&mut self, said: impl FnOnce() -> String) {
        match self.on_bad_row {
            OnBadRow::Skip => self.unusable.add(said),
            OnBadRow::Stop => {
                self.bad.add(said);
                self.bad.advise(MAY_BE_SKIPPED);
            }
        }
    }

    /// An error where some prompt ends the job.
    fn accepted(mut self) -> Result<Self, StageError> {
        std::mem::take(&mut self.bad).refused()?;
        Ok(self)
    }

    /// The error that none of `all` prompts is left.
    fn nothing_left(&self, all: usize) -> Result<(), StageError> {
        let most = self.most;
        Err(StageError::Input(match self.unusable.count() {
            0 => format!(
                "all {all} prompts have more than {most} tokens and are left out (on_too_long = skip), so there is nothing to do; raise prompts.max_length (--max-prompt-length)",
            ),
            count => format!(
                "all {all} prompts are left out (on_bad_row = skip: {count}, on_too_long = skip: {}), so there is nothing to do: {}",
                self.skipped.count(),
                self.unusable
            ),
        }))
    }

    fn sort(&mut self, row: &PromptRow, place: &str, mut ids: Vec<u32>, bos: Option<u32>) {
        let (id, tokens, most) = (&row.prompt_id, ids.len(), self.most);
        let said = || format!("{place}prompt {id} has {tokens} tokens");
        match self.on_too_long {
            OnTooLong::Skip if tokens > most => return self.skipped.add(said),
            OnTooLong::Cut if tokens > most => {
                self.cut.add(said);
                self.gone += cut_beginning(&mut ids, most, bos);
            }
            _ => {}
        }
        if tokens > most && self.on_too_long == OnTooLong::Stop {
            self.bad.advise("prompts.on_too_long (--on-too-long) = skip leaves out prompts that are too long, cut takes their beginning away");
        }
        match check_prompt(self.folder.config(), id, &ids) {
            Err(problem @ GenerateError::PromptTooLong { .. }) => {
                self.bad.add(|| format!("{place}{problem}"));
            }
            Err(problem) => self.unusable(|| format!("{place}{problem}")),
            Ok(()) if ids.len() > most => self.bad.add(|| {
                format!(
                    "{}; prompts.max_length (--max-prompt-length) is {most}",
                    said()
                )
            }),
            Ok(()) => {
                self.found.rows.push(row.clone());
                self.found.ids.push(ids);
            }
        }
    }
}
