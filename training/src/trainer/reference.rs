//! Reference log-probabilities: computed once before training, kept on disk.

use std::path::Path;

use burn::tensor::backend::Backend;
use sppo_model::llama::Llama;

use super::{PreferencePair, TrainError, fingerprint};
use crate::data::{LogpRow, RowWriter};
use crate::learner::sequence_logps;
use crate::monitor::Monitor;

/// Summed response log-probabilities `[chosen, rejected]` of every pair under `model`, from
/// `<dir>/reference-<hash of model and rows>.jsonl` as far as that file goes.
///
/// `None` where the user interrupted; what was computed stays on disk.
pub fn reference_logps<B: Backend>(
    model: &Llama<B>,
    model_key: &str,
    pairs: &[PreferencePair],
    batch_size: usize,
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
    // Whole batches only: a batch cut elsewhere could differ in the last digit.
    let whole = logps.len() / batch_size * batch_size;
    let rest = if logps.len() == pairs.len() {
        pairs.len()
    } else {
        whole
    };
    monitor.begin("reference log-probabilities", "pairs", rest, pairs.len());
    let starts = (rest..pairs.len()).step_by(batch_size);
    for (first, batch) in starts.zip(pairs[rest..].chunks(batch_size)) {
        if monitor.interrupted() {
            monitor.end();
            return Ok(None);
        }
        let sequences: Vec<_> = batch.iter().flat_map(|p| p.pair.sides()).collect();
        let values = sequence_logps(model, &sequences)?;
        for (i, sides) in values.chunks_exact(2).enumerate() {
            let (chosen, rejected) = (sides[0], sides[1]);
            if !(chosen + rejected).is_finite() {
                return Err(TrainError::BadRow {
                    row: batch[i].name.clone(),
                    message: "its reference log-probability is not finite; are the weights sound?"
                        .into(),
                });
            }
            if first + i >= logps.len() {
                writer.append(&LogpRow {
                    chosen_logps: chosen,
                    rejected_logps: rejected,
                })?;
                logps.push([chosen, rejected]);
            }
        }
        monitor.advance(batch.len(), None);
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
