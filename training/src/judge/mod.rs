//! Judges: anything that scores the responses to a prompt, and the driver that judges a file.

mod rubric;
mod scores;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::data::{DataError, JudgedRow, ResponseRow, RowWriter};
use crate::preference::{PreferenceError, probabilities, scores_from_comparisons};

pub use rubric::{LengthUnit, Rubric, RubricConfig, WeightedPattern};
pub use scores::{ExternalScores, ScoresJudge};

/// What goes wrong in judging.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A setting of the judge that makes no sense.
    #[error("{key}: {problem}")]
    Config { key: String, problem: String },
    /// A row that this judge cannot judge.
    #[error("prompt_id `{prompt_id}`: {problem}")]
    Row { prompt_id: String, problem: String },
    /// A file of rows or scores.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The judge itself failed: a model, a server.
    #[error("the {judge} judge failed on prompt_id `{prompt_id}`: {source}")]
    Failed {
        judge: String,
        prompt_id: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl JudgeError {
    fn row(row: &ResponseRow, problem: impl Into<String>) -> Self {
        JudgeError::Row {
            prompt_id: row.prompt_id.clone(),
            problem: problem.into(),
        }
    }

    /// Whether the user's input is at fault rather than the judge at work.
    pub fn is_input(&self) -> bool {
        !matches!(self, JudgeError::Failed { .. })
    }
}

/// Scores and win probabilities of the K responses of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// `[K]`, higher is better.
    pub rm_scores: Vec<f64>,
    /// `[K][K]`: the probability that response i beats response j.
    pub probability: Vec<Vec<f64>>,
    /// `[K][K]` logits of a judge that compares pairs.
    pub comparison_logits: Option<Vec<Vec<f64>>>,
}

impl Judgement {
    /// From one score a response: P_ij = σ((s_i − s_j) / temperature).
    pub fn from_scores(rm_scores: Vec<f64>, temperature: f64) -> Self {
        Judgement {
            probability: probabilities(&rm_scores, temperature),
            rm_scores,
            comparison_logits: None,
        }
    }

    /// From a `[K][K]` matrix of comparison logits, by way of their aggregated scores.
    pub fn from_comparisons(
        logits: Vec<Vec<f64>>,
        temperature: f64,
    ) -> Result<Self, PreferenceError> {
        let scores = scores_from_comparisons(&logits)?;
        Ok(Judgement {
            comparison_logits: Some(logits),
            ..Judgement::from_scores(scores, temperature)
        })
    }
}

/// Anything that scores the responses to a prompt.
pub trait Judge {
    /// The judge's name, as on the command line.
    fn name(&self) -> &str;

    /// Scores all responses of a row.
    fn judge(&mut self, row: &ResponseRow) -> Result<Judgement, JudgeError>;

    /// What is written with every judged row, and must be the same when judging goes on.
    fn description(&self) -> Value {
        json!({ "kind": self.name() })
    }
}

/// How far [`judge_file`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JudgeProgress {
    /// Rows that were in the output before.
    pub resumed: usize,
    /// Rows judged now.
    pub judged: usize,
    /// Whether the interrupt flag ended it before the last row.
    pub interrupted: bool,
}

/// Judges the rows that `out` does not hold yet, in order, appending each.
///
/// `progress` is called with (rows done, rows in all), first with those of an earlier run. When
/// `interrupt` becomes true, the row at hand is finished and the rest is left for the next run.
pub fn judge_file(
    rows: &[ResponseRow],
    judge: &mut dyn Judge,
    out: &Path,
    progress: &mut dyn FnMut(usize, usize),
    interrupt: &AtomicBool,
) -> Result<JudgeProgress, JudgeError> {
    let (mut writer, done) = RowWriter::<JudgedRow>::open(out)?;
    let description = judge.description();
    let done: HashMap<&str, &JudgedRow> = done
        .iter()
        .map(|row| (row.responses.prompt_id.as_str(), row))
        .collect();
    let mut left = Vec::new();
    for row in rows {
        match done.get(row.prompt_id.as_str()) {
            None => left.push(row),
            Some(old) => check_same(row, old, &description, out)?,
        }
    }
    let mut state = JudgeProgress {
        resumed: rows.len() - left.len(),
        judged: 0,
        interrupted: false,
    };
    progress(state.resumed, rows.len());
    for row in left {
        if interrupt.load(Ordering::Relaxed) {
            state.interrupted = true;
            return Ok(state);
        }
        writer.append(&judged_row(row, judge, &description)?)?;
        state.judged += 1;
        progress(state.resumed + state.judged, rows.len());
    }
    writer.finish()?;
    Ok(state)
}

fn judged_row(
    row: &ResponseRow,
    judge: &mut dyn Judge,
    description: &Value,
) -> Result<JudgedRow, JudgeError> {
    let judgement = judge.judge(row)?;
    if judgement.rm_scores.iter().any(|score| !score.is_finite()) {
        let problem = format!("the {} judge gave a score that is not finite", judge.name());
        return Err(JudgeError::row(row, problem));
    }
    Ok(JudgedRow {
        responses: row.clone(),
        rm_scores: judgement.rm_scores,
        probability: judgement.probability,
        comparison_logits: judgement.comparison_logits,
        judge: Some(description.clone()),
    })
}

/// Refuses to go on with a file that holds the judgement of other responses or by another judge.
fn check_same(
    row: &ResponseRow,
    old: &JudgedRow,
    description: &Value,
    out: &Path,
) -> Result<(), JudgeError> {
    let problem = if old.responses.responses != row.responses {
        "other responses".to_string()
    } else if old.judge.as_ref().is_some_and(|judge| judge != description) {
        let judge = old.judge.as_ref().unwrap_or(&Value::Null);
        format!("a judgement made otherwise ({judge}, now {description})")
    } else {
        return Ok(());
    };
    let out = out.display();
    let problem = format!("{out} already holds {problem}; remove that file or choose another");
    Err(JudgeError::row(row, problem))
}

#[cfg(test)]
mod tests;
