//! Judges: anything that scores the responses to a prompt, and the driver that judges a file.

mod comparisons;
mod error;
mod estimate;
mod http;
mod open_rows;
mod pairrm;
mod prompt_text;
mod reward;
mod rubric;
mod scores;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::data::{DataError, JudgedRow, ResponseRow, RowOutput};
use crate::files::{Existing, MadeFrom};
use crate::preference::probabilities;

pub use comparisons::Comparisons;
pub use error::JudgeError;
pub use estimate::Estimate;
pub use http::{DryRun, HttpJudge, cache_beside};
pub use pairrm::PairRmJudge;
pub use prompt_text::PromptText;
pub use reward::RewardJudge;
pub use rubric::Rubric;
pub use scores::{ExternalScores, ScoresJudge};

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
}

/// Anything that scores the responses to a prompt.
pub trait Judge {
    /// The judge's name, as on the command line.
    fn name(&self) -> &str;

    /// Refuses a row that it cannot judge.
    fn check_row(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        let _ = row;
        Ok(())
    }

    /// Refuses what it cannot judge before the first row is judged.
    fn check(&self, rows: &[ResponseRow]) -> Result<(), JudgeError> {
        rows.iter().try_for_each(|row| self.check_row(row))
    }

    /// Judges `rows` in order, handing each judgement to `session` as soon as it is whole; ends
    /// early, without an error, once the session is interrupted.
    fn judge(
        &mut self,
        rows: &[&ResponseRow],
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError>;

    /// What is written with every judged row, and must be the same when judging goes on.
    fn description(&self) -> Value {
        json!({ "kind": self.name() })
    }
}

/// Where judgements go, one for each row in the order of the rows.
pub struct JudgeSession<'a> {
    take: &'a mut dyn FnMut(Judgement) -> Result<(), JudgeError>,
    interrupt: &'a AtomicBool,
}

impl<'a> JudgeSession<'a> {
    /// `take` receives the judgements; `interrupt` is set when the user asks to stop.
    pub fn new(
        take: &'a mut dyn FnMut(Judgement) -> Result<(), JudgeError>,
        interrupt: &'a AtomicBool,
    ) -> Self {
        JudgeSession { take, interrupt }
    }

    /// Hands in the next row's judgement.
    pub fn hand_in(&mut self, judgement: Judgement) -> Result<(), JudgeError> {
        (self.take)(judgement)
    }

    /// Whether the user asked to stop.
    pub fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }

    /// Judges row after row, for judges that gain nothing from seeing many at once.
    pub fn one_by_one(
        &mut self,
        rows: &[&ResponseRow],
        mut judge: impl FnMut(&ResponseRow) -> Result<Judgement, JudgeError>,
    ) -> Result<(), JudgeError> {
        for row in rows {
            if self.interrupted() {
                break;
            }
            self.hand_in(judge(row)?)?;
        }
        Ok(())
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

/// The file that judged rows go into, opened.
pub struct JudgedFile<'a> {
    /// Its name, for messages.
    path: &'a Path,
    /// Receives the rows.
    output: RowOutput<JudgedRow>,
    /// The rows that it holds.
    done: Vec<JudgedRow>,
}

impl<'a> JudgedFile<'a> {
    /// Opens `path` for judged rows of this making.
    pub fn open(
        path: &'a Path,
        made_from: MadeFrom,
        existing: Existing<'_>,
    ) -> Result<Self, DataError> {
        let (output, done) = RowOutput::open(path, made_from, existing)?;
        Ok(Self { path, output, done })
    }
}

/// Judges the rows that `file` does not hold yet, in order, appending each.
///
/// `progress` is called with (rows done, rows in all), first with those of an earlier run. When
/// `interrupt` becomes true, the work at hand is finished and the rest is left for the next run.
pub fn judge_file(
    rows: &[ResponseRow],
    judge: &mut dyn Judge,
    file: JudgedFile<'_>,
    progress: &mut dyn FnMut(usize, usize),
    interrupt: &AtomicBool,
) -> Result<JudgeProgress, JudgeError> {
    let (out, mut writer) = (file.path, file.output);
    let description = judge.description();
    let done: HashMap<&str, &JudgedRow> = file
        .done
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
    let resumed = rows.len() - left.len();
    let mut judged = 0;
    progress(resumed, rows.len());
    let name = judge.name().to_string();
    let mut take = |judgement: Judgement| {
        let row = judged_row(left[judged], judgement, &name, &description)?;
        writer.append(&row)?;
        judged += 1;
        progress(resumed + judged, rows.len());
        Ok(())
    };
    judge.judge(&left, &mut JudgeSession::new(&mut take, interrupt))?;
    let interrupted = judged < left.len();
    if !interrupted {
        writer.finish()?;
    }
    Ok(JudgeProgress {
        resumed,
        judged,
        interrupted,
    })
}

fn judged_row(
    row: &ResponseRow,
    judgement: Judgement,
    judge: &str,
    description: &Value,
) -> Result<JudgedRow, JudgeError> {
    let logits = judgement.comparison_logits.iter().flatten().flatten();
    let mut numbers = judgement.rm_scores.iter().chain(logits);
    if let Some(number) = numbers.find(|number| !number.is_finite()) {
        let problem =
            format!("the {judge} judge gave {number}; only finite scores can be compared");
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
