//! What a run came to: report.json for programs, report.md for people.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, replace_file};
use crate::stages::{Evaluation, StageError};
use crate::tokenise::Truncation;

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
    /// The whole comparison with the first model.
    pub against_first: Evaluation,
    /// The whole comparison with the model of the iteration before.
    pub against_previous: Evaluation,
}

impl IterationReport {
    /// Of both comparisons.
    pub fn new(
        iteration: usize,
        (pairs, truncation): (usize, Truncation),
        against_first: Evaluation,
        against_previous: Evaluation,
        checkpoint: PathBuf,
    ) -> Self {
        Self {
            iteration,
            win_rate: against_first.win_rate,
            win_rate_se: against_first.win_rate_se,
            win_rate_previous: against_previous.win_rate,
            mean_length: against_first.mean_length,
            checkpoint,
            pairs,
            truncation,
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

/// A whole run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// In their order; those that are finished.
    pub iterations: Vec<IterationReport>,
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
        if let Some(last) = self.iterations.last() {
            let _ = writeln!(
                text,
                "\n± is the 95 % interval; {} held-out prompts, ties count one half. The last model is in {}.",
                last.against_first.prompts,
                last.checkpoint.display()
            );
        }
        text
    }
}
