//! Reference log-probabilities: computed once before training, kept on disk.

use std::ops::Range;
use std::path::Path;

use sppo_model::llama::Llama;
use sppo_model::ops::ModelOps;

use super::error::TrainError;
use super::objective::Cut;
use crate::cost::Batch;
use crate::data::{LogpRow, RowWriter};
use crate::files::fingerprint;
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
    monitor: &dyn Monitor,
) -> Result<Option<Vec<[f64; 2]>>, TrainError> {
    let path = dir.join(format!("reference-{}.jsonl", &key(model_key, pairs)[..16]));
    let (mut writer, done) = RowWriter::<LogpRow>::open(&path)?;
    let mut logps: Vec<[f64; 2]> = done
        .iter()
        .map(|row| [row.chosen_logps, row.rejected_logps])
        .take(pairs.len())
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
            writer.append(&LogpRow {
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
