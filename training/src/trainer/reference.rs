//! Reference log-probabilities: computed once before training, kept on disk.

use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use sppo_model::llama::Llama;
use sppo_model::ops::ModelOps;

use super::error::TrainError;
use super::objective::Cut;
use crate::cost::Batch;
use crate::data::{Fields, Row, RowOutput, RowProblem, row_output};
use crate::files::{Existing, MadeFrom, OutputError, fingerprint};
use crate::learner::sequence_logps;
use crate::monitor::Monitor;
use crate::tokenise::PreferencePair;

/// Summed response log-probabilities `[chosen, rejected]` of every pair under `model`, from
/// `<dir>/reference-<hash of model and rows>.jsonl` as far as that file goes.
///
/// `None` where the user interrupted; what was computed stays on disk.
pub fn reference_logps<B: ModelOps>(
    model: &Llama<B>,
    model_key: &str,
    pairs: &[PreferencePair],
    cut: &Cut,
    dir: &Path,
    existing: Existing<'_>,
    monitor: &dyn Monitor,
) -> Result<Option<Vec<[f64; 2]>>, TrainError> {
    let key = key(model_key, pairs);
    let path = dir.join(format!("reference-{}.jsonl", &key[..16]));
    let made_from = MadeFrom::new("reference").setting("key", &key);
    // Its name says what it is of, so any other was damaged.
    let existing = match existing {
        Existing::Overwrite => Existing::Overwrite,
        _ => Existing::Keep,
    };
    let open = || RowOutput::<ReferenceRow>::open(&path, made_from.clone(), existing);
    let (mut writer, mut done) = open()?;
    match check_rows(&path, &done, pairs) {
        Err(error) if existing == Existing::Overwrite => {
            tracing::warn!("{error}; it is made anew");
            drop(writer);
            row_output(&path, &[]).remove()?;
            (writer, done) = open()?;
        }
        checked => checked?,
    }
    let mut logps: Vec<[f64; 2]> = done
        .iter()
        .map(|row| [row.chosen_logps, row.rejected_logps])
        .collect();
    let known = logps.len();
    monitor.begin("reference log-probabilities", "pairs", known, pairs.len());
    let sequences = |part: Range<usize>| -> Vec<_> {
        pairs[part].iter().flat_map(|p| p.pair.sides()).collect()
    };
    // Batches are cut from the whole list: cut elsewhere, the last digit could differ.
    for part in cut.parts(pairs.len(), |part| Batch::of(&sequences(part))) {
        if part.end <= known {
            continue;
        }
        if monitor.interrupted() {
            monitor.end();
            return Ok(None);
        }
        let values = sequence_logps(model, &sequences(part.clone()))?;
        let new = part
            .zip(values.chunks_exact(2))
            .skip_while(|(i, _)| *i < known);
        for (i, sides) in new {
            let (chosen, rejected) = (sides[0], sides[1]);
            if !(chosen + rejected).is_finite() {
                return Err(TrainError::BadRow {
                    row: pairs[i].name.clone(),
                    message: "its reference log-probability is not finite; are the weights sound?"
                        .into(),
                });
            }
            writer.append(&ReferenceRow {
                row: i + 1,
                name: pairs[i].name.clone(),
                chosen_logps: chosen,
                rejected_logps: rejected,
            })?;
            logps.push([chosen, rejected]);
            monitor.advance(1, None);
        }
    }
    monitor.end();
    writer.finish()?;
    Ok(Some(logps))
}

/// One pair's log-probabilities under the reference.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ReferenceRow {
    /// Counted from 1.
    row: usize,
    /// What messages call the pair.
    name: String,
    chosen_logps: f64,
    rejected_logps: f64,
}

impl Row for ReferenceRow {
    const KIND: &'static str = "reference log-probabilities";
    const KEYS: &'static [&'static str] = &["row", "name", "chosen_logps", "rejected_logps"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let need = "a reference row needs its number and both sums";
        let read = |key| fields.require(key, need, fields.number(key));
        let row = read("row")?;
        Ok(ReferenceRow {
            row: row as usize,
            name: fields.require("name", need, fields.id("name"))?,
            chosen_logps: read("chosen_logps")?,
            rejected_logps: read("rejected_logps")?,
        })
    }
}

/// That every row is of the pair whose place it has.
fn check_rows(
    path: &Path,
    done: &[ReferenceRow],
    pairs: &[PreferencePair],
) -> Result<(), TrainError> {
    let wrong = done.iter().enumerate().find(|(i, row)| {
        row.row != i + 1 || pairs.get(*i).is_none_or(|pair| pair.name != row.name)
    });
    match wrong {
        None => Ok(()),
        Some((i, row)) => Err(OutputError::Damaged {
            path: path.into(),
            problem: format!("holds row {} ({}) as its row {}", row.row, row.name, i + 1),
        }
        .into()),
    }
}

fn key(model_key: &str, pairs: &[PreferencePair]) -> String {
    let mut bytes = Vec::new();
    for pair in pairs {
        for side in [&pair.pair.chosen, &pair.pair.rejected] {
            bytes.extend((side.response_start as u64).to_le_bytes());
            bytes.extend((side.ids.len() as u64).to_le_bytes());
            bytes.extend(side.ids.iter().flat_map(|id| id.to_le_bytes()));
        }
    }
    fingerprint([("model", model_key.as_bytes()), ("rows", bytes.as_slice())])
}
