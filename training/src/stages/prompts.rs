//! Prompts as token ids. What the model cannot answer is found here, before its weights are loaded.

use sppo_model::generate::check_prompt;
use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use crate::config::{OnTooLong, Prompts};
use crate::data::PromptRow;
use crate::tokenise::{BadRows, cut_beginning};

/// How long prompts may be, and what becomes of longer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptLimits {
    /// Most tokens; what the model's context leaves room for where none.
    pub max_length: Option<usize>,
    /// What becomes of longer prompts.
    pub on_too_long: OnTooLong,
}

impl From<&Prompts> for PromptLimits {
    fn from(config: &Prompts) -> Self {
        Self {
            max_length: config.max_length,
            on_too_long: config.on_too_long,
        }
    }
}

impl PromptLimits {
    /// What results depend on: nothing where longer prompts end the job, since then there are none.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        if self.on_too_long == OnTooLong::Stop {
            return Vec::new();
        }
        let most = self
            .max_length
            .map(|most| ("max_prompt_length", most.to_string()));
        let action = ("on_too_long", self.on_too_long.to_string());
        [action].into_iter().chain(most).collect()
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
    let sorted = Sorted::of(prompts, numbers, limits, raw, folder)?;
    sorted.bad.refused()?;
    let (all, most) = (prompts.len(), sorted.most);
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
    match sorted.found.rows.is_empty() && all > 0 {
        true => Err(StageError::Input(format!(
            "all {all} prompts have more than {most} tokens and are left out (on_too_long = skip), so there is nothing to do; raise prompts.max_length (--max-prompt-length)",
        ))),
        false => Ok(sorted.found),
    }
}

/// Refuses prompts that a job of [`answerable`] would refuse; for jobs that come much later.
pub(crate) fn check_prompts(
    prompts: &[PromptRow],
    numbers: &[usize],
    limits: PromptLimits,
    folder: &ModelFolder,
) -> Result<(), StageError> {
    let sorted = Sorted::of(prompts, Some(numbers), limits, false, folder)?;
    Ok(sorted.bad.refused()?)
}

/// Prompts sorted by what becomes of them.
struct Sorted<'a> {
    folder: &'a ModelFolder,
    on_too_long: OnTooLong,
    /// Most tokens of a prompt.
    most: usize,
    found: Answerable,
    bad: BadRows,
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
            most: limits.max_length.map_or(room, |most| most.min(room)),
            found: Answerable {
                rows: Vec::with_capacity(prompts.len()),
                ids: Vec::with_capacity(prompts.len()),
            },
            bad: BadRows::default(),
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
                    sorted.bad.add(bad);
                }
            }
        }
        Ok(sorted)
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
            Err(problem) => self.bad.add(|| format!("{place}{problem}")),
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
