//! What a run came to: report.json for programs, report.md for people.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::card::{Compared, IterationResult};
use crate::files::{FileError, replace_file};
use crate::stages::{Evaluation, PromptCounts, StageError};
use crate::tokenise::Truncation;

/// What a round of self-play made.
#[derive(Clone, Debug)]
pub struct Round {
    /// Folder of the trained model.
    pub model: PathBuf,
    /// Pairs it was trained on.
    pub pairs: usize,
    /// What the length limits took from them.
    pub truncation: Truncation,
    /// Responses, judged rows and pairs that could not be used.
    pub left_out: usize,
}

/// One iteration's result on the held-out prompts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IterationReport {
    /// Counted from 1.
    pub iteration: usize,
    /// Against the first model, in 0..1.
    pub win_rate: f64,
    /// Standard error of `win_rate`.
    pub win_rate_se: f64,
    /// Against the model of the iteration before, in 0..1.
    pub win_rate_previous: f64,
    /// Mean length of the answers in characters.
    pub mean_length: f64,
    /// Folder of the trained model.
    pub checkpoint: PathBuf,
    /// Pairs it was trained on.
    pub pairs: usize,
    /// What the length limits took from them.
    pub truncation: Truncation,
    /// What became of the prompts.
    pub prompts: PromptCounts,
    /// Responses, judged rows and pairs that could not be used and are left out.
    pub left_out: usize,
    /// The whole comparison with the first model.
    pub against_first: Evaluation,
    /// The whole comparison with the model of the iteration before.
    pub against_previous: Evaluation,
}

impl IterationReport {
    /// Of both comparisons.
    pub fn new(
        iteration: usize,
        prompts: PromptCounts,
        round: Round,
        against_first: Evaluation,
        against_previous: Evaluation,
    ) -> Self {
        Self {
            iteration,
            win_rate: against_first.win_rate,
            win_rate_se: against_first.win_rate_se,
            win_rate_previous: against_previous.win_rate,
            mean_length: against_first.mean_length,
            checkpoint: round.model,
            pairs: round.pairs,
            truncation: round.truncation,
            prompts,
            left_out: round.left_out,
            against_first,
            against_previous,
        }
    }

    /// One line for the log.
    pub fn line(&self) -> String {
        format!(
            "iteration {}: wins {:.1} % ± {:.1} against the first model, {:.1} % against the one before; {:.0} characters an answer",
            self.iteration,
            100.0 * self.win_rate,
            196.0 * self.win_rate_se,
            100.0 * self.win_rate_previous,
            self.mean_length
        )
    }
}

impl From<&IterationReport> for IterationResult {
    fn from(entry: &IterationReport) -> Self {
        let first = &entry.against_first;
        Self {
            iteration: entry.iteration,
            pairs: entry.pairs,
            win_rate: entry.win_rate,
            win_rate_se: entry.win_rate_se,
            win_rate_previous: entry.win_rate_previous,
            mean_length: entry.mean_length,
            against_first: Compared {
                prompts: first.prompts,
                length_controlled_win_rate: first.length_controlled_win_rate,
                mean_length_against: first.mean_length_against,
                judge: first.judge.clone(),
            },
        }
    }
}

/// Rows of the input files that could not be used and are left out (`on_bad_row = "skip"`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Of the prompts to train on, before they were split; what the model cannot take is counted with each
    /// iteration.
    pub train: usize,
    /// Of prompts.heldout, likewise.
    pub heldout: usize,
    /// Of sft.data.
    pub sft: usize,
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Rows of the input files that are left out.
    pub left_out: LeftOut,
    /// What became of the held-out prompts.
    pub heldout: PromptCounts,
    /// In their order; those that are finished.
    pub iterations: Vec<IterationReport>,
    /// The page that shows it; none where it could not be made.
    #[serde(skip)]
    pub page: Option<PathBuf>,
}

impl Report {
    /// Writes report.json and report.md into `dir`.
    pub fn write(&self, dir: &Path) -> Result<(), StageError> {
        let path = dir.join("report.json");
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::from);
        let json = json.map_err(FileError::new("write", &path))? + "\n";
        replace_file(&path, json.as_bytes())?;
        Ok(replace_file(
            &dir.join("report.md"),
            self.table().as_bytes(),
        )?)
    }

    /// The results as a Markdown table.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| iteration | pairs | win rate against the first model | length-controlled | against the one before | characters an answer |\n| --- | --- | --- | --- | --- | --- |\n",
        );
        for entry in &self.iterations {
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} % ± {:.1} | {:.1} % | {:.1} % | {:.0} |",
                entry.iteration,
                entry.pairs,
                100.0 * entry.win_rate,
                196.0 * entry.win_rate_se,
                100.0 * entry.against_first.length_controlled_win_rate,
                100.0 * entry.win_rate_previous,
                entry.mean_length
            );
        }
        for entry in self.iterations.iter().filter(|e| e.truncation.rows > 0) {
            let lost = entry.truncation;
            let _ = writeln!(
                text,
                "\nIteration {}: {} of {} pairs were cut to the length limits of [train] and lost {} tokens, {} responses among them their end.",
                entry.iteration, lost.rows, entry.pairs, lost.tokens, lost.responses_without_end
            );
        }
        text.push_str(&self.what_is_missing());
        if let Some(last) = self.iterations.last() {
            let _ = writeln!(
                text,
                "\n± is the 95 % interval; {} held-out prompts, ties count one half. The last model is in {}.",
                last.against_first.prompts,
                last.checkpoint.display()
            );
            let _ = writeln!(text, "\n{}", last.against_first.judged_by());
        }
        text
    }

    /// A line for all that was left out or cut, where something was.
    pub(super) fn what_is_missing(&self) -> String {
        let mut text = String::new();
        for (count, key) in [
            (self.left_out.train, "prompts.train"),
            (self.left_out.heldout, "prompts.heldout"),
            (self.left_out.sft, "sft.data"),
        ] {
            if count > 0 {
                let _ = writeln!(
                    text,
                    "\n{count} rows of {key} could not be used and are left out."
                );
            }
        }
        text.push_str(&prompts_line("Held-out prompts", self.heldout));
        for entry in &self.iterations {
            let name = format!("Iteration {}: prompts", entry.iteration);
            text.push_str(&prompts_line(&name, entry.prompts));
            if entry.left_out > 0 {
                let _ = writeln!(
                    text,
                    "\nIteration {}: {} responses, judged rows or pairs could not be used and are left out.",
                    entry.iteration, entry.left_out
                );
            }
        }
        text
    }
}

/// What became of prompts, where not all are answered whole.
fn prompts_line(name: &str, counts: PromptCounts) -> String {
    let PromptCounts {
        answered,
        unusable,
        too_long,
        cut,
    } = counts;
    match unusable + too_long + cut {
        0 => String::new(),
        _ => format!(
            "\n{name}: {answered} answered, {unusable} left out because they cannot be used, {too_long} because they are too long; {cut} cut.\n"
        ),
    }
}
