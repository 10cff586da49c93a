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

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::cluster::{Communicator, advance};
use crate::data::{Closed, DataError, JudgedRow, ResponseRow, SharedOutput, deal};
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

    /// How rows are shared by the ranks of a job, and by the runs of one that was stopped.
    fn sharing(&self) -> Sharing {
        Sharing::Rows
    }
}

/// What the judgement of a row depends on, beside the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing: [`Judge::judge`] gets the rows that are to be judged, and no others.
    Rows,
    /// In its last digits, the rows of its batch: [`Judge::judge`] gets all rows, makes batches of
    /// them as if all were to be judged, and computes those that hold a row which
    /// [`JudgeSession::wants`].
    Batches,
    /// What one process knows: rank 0 judges all rows.
    OneProcess,
}

/// Where judgements go, one for each row in the order of the rows.
pub struct JudgeSession<'a> {
    take: &'a mut dyn FnMut(Judgement) -> Result<(), JudgeError>,
    interrupt: &'a AtomicBool,
    /// All of them unless given.
    wanted: Option<&'a [bool]>,
    /// How many of `wanted` were not handed in.
    missing: usize,
}

impl<'a> JudgeSession<'a> {
    /// `take` receives the judgements; `interrupt` is set when the user asks to stop.
    pub fn new(
        take: &'a mut dyn FnMut(Judgement) -> Result<(), JudgeError>,
        interrupt: &'a AtomicBool,
    ) -> Self {
        JudgeSession {
            take,
            interrupt,
            wanted: None,
            missing: usize::MAX,
        }
    }

    /// Of the rows, only these are to be judged.
    fn of(mut self, wanted: &'a [bool]) -> Self {
        self.missing = wanted.iter().filter(|wanted| **wanted).count();
        self.wanted = Some(wanted);
        self
    }

    /// Whether a row is to be judged, by its place among the rows.
    pub fn wants(&self, row: usize) -> bool {
        self.wanted.is_none_or(|wanted| wanted[row])
    }

    /// Whether all rows that are to be judged were handed in, where only some are.
    pub fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Hands in the judgement of the next row that is to be judged.
    pub fn hand_in(&mut self, judgement: Judgement) -> Result<(), JudgeError> {
        self.missing = self.missing.saturating_sub(1);
        (self.take)(judgement)
    }

    /// Whether the user asked to stop; to be asked between pieces of work.
    pub fn interrupted(&self) -> bool {
        advance();
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
    /// Rows that were there before.
    pub resumed: usize,
    /// Rows that this rank judged now.
    pub judged: usize,
    /// Whether the interrupt flag ended it before the last row, here or on another rank.
    pub interrupted: bool,
}

/// The file that judged rows go into, opened.
pub struct JudgedFile<'a> {
    world: &'a dyn Communicator,
    /// Its name, for messages.
    path: &'a Path,
    /// Receives the rows.
    output: SharedOutput<'a, JudgedRow>,
    /// The rows that it holds; known to rank 0.
    done: Vec<JudgedRow>,
}

impl<'a> JudgedFile<'a> {
    /// Opens `path` for judged rows of this making.
    pub fn open(
        world: &'a dyn Communicator,
        path: &'a Path,
        made_from: MadeFrom,
        existing: Existing<'_>,
    ) -> Result<Self, DataError> {
        let made_from = || Ok::<_, DataError>(made_from);
        let (output, done) = SharedOutput::open(world, path, &[], made_from, existing)?;
        Ok(Self {
            world,
            path,
            output,
            done,
        })
    }
}

/// Judges the rows that `file` does not hold yet, in order, appending each; every rank its share.
///
/// `progress` is called with (rows done, rows in all), first with those of an earlier run; among
/// several ranks, with those of the share. When `interrupt` becomes true, the work at hand is
/// finished and the rest is left for the next run.
pub fn judge_file(
    rows: &[ResponseRow],
    judge: &mut dyn Judge,
    file: JudgedFile<'_>,
    progress: &mut dyn FnMut(usize, usize),
    interrupt: &AtomicBool,
) -> Result<JudgeProgress, JudgeError> {
    let (world, out, mut output) = (file.world, file.path, file.output);
    let description = judge.description();
    let done: HashMap<&str, &JudgedRow> = file
        .done
        .iter()
        .map(|row| (row.responses.prompt_id.as_str(), row))
        .collect();
    let mut left = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        match done.get(row.prompt_id.as_str()) {
            None => left.push(place),
            Some(old) => check_same(row, old, &description, out)?,
        }
    }
    for (place, old) in output.waiting() {
        if let Some(row) = rows.get(place) {
            check_same(row, old, &description, out)?;
        }
    }
    let todo = output.begin(left)?;
    let resumed = rows.len() - todo.len();
    let sharing = judge.sharing();
    let own = share(world, sharing, rows, todo);
    let (before, total) = match world.size() {
        1 => (resumed, rows.len()),
        _ => (0, own.len()),
    };
    let mut judged = 0;
    progress(before, total);
    let name = judge.name().to_string();
    let mut take = |judgement: Judgement| {
        let place = own[judged];
        let row = judged_row(&rows[place], judgement, &name, &description)?;
        output.add(place, row)?;
        judged += 1;
        progress(before + judged, total);
        Ok(())
    };
    let session = JudgeSession::new(&mut take, interrupt);
    if sharing == Sharing::Batches && !own.is_empty() {
        let mut wanted = vec![false; rows.len()];
        own.iter().for_each(|&place| wanted[place] = true);
        let rows: Vec<&ResponseRow> = rows.iter().collect();
        judge.judge(&rows, &mut session.of(&wanted))?;
    } else if !own.is_empty() {
        let rows: Vec<&ResponseRow> = own.iter().map(|&place| &rows[place]).collect();
        judge.judge(&rows, &mut { session })?;
    }
    let closed = output.close(judged < own.len())?;
    Ok(JudgeProgress {
        resumed,
        judged,
        interrupted: closed == Closed::Interrupted,
    })
}

/// The rows that this rank judges.
fn share(
    world: &dyn Communicator,
    sharing: Sharing,
    rows: &[ResponseRow],
    todo: BTreeSet<usize>,
) -> Vec<usize> {
    match sharing {
        Sharing::Rows => deal(world, todo).collect(),
        Sharing::Batches => {
            // Neighbours share batches, so each rank gets a run of them, all of about one length.
            let length = |place: &usize| {
                let row = &rows[*place];
                let turns = row.prompt.messages();
                let texts = turns.iter().filter_map(|turn| turn.content.as_ref());
                let prompt: usize = texts.map(String::len).sum();
                let responses = row.responses.iter().map(|text| prompt + text.len());
                1 + responses.sum::<usize>()
            };
            let total: usize = todo.iter().map(length).sum();
            let mut before = 0;
            let mut rank_of = |place: &usize| {
                // By its middle, so that no rank gets less than its part for a long row.
                let length = length(place);
                let rank = (2 * before + length) * world.size() / (2 * total);
                before += length;
                rank
            };
            todo.into_iter()
                .filter(|place| rank_of(place) == world.rank())
                .collect()
        }
        Sharing::OneProcess if world.leads() => todo.into_iter().collect(),
        Sharing::OneProcess => Vec::new(),
    }
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
