//! Reference log-probabilities: computed once before training, kept on disk.

use std::ops::Range;
use std::path::Path;

use serde::Serialize;
use sppo_model::llama::Llama;
use sppo_model::ops::ModelOps;

use super::error::TrainError;
use super::objective::Cut;
use crate::cluster::{Communicator, gather_f64};
use crate::cost::Batch;
use crate::data::{Closed, Fields, Row, RowProblem, SharedOutput, deal, row_output};
use crate::files::{Existing, MadeFrom, OutputError, fingerprint};
use crate::learner::sequence_logps;
use crate::monitor::{Monitor, begin_share};
use crate::tokenise::PreferencePair;

/// Summed response log-probabilities `[chosen, rejected]` of every pair under `model`, from
/// `<dir>/reference-<hash of model and rows>.jsonl` as far as that file goes.
///
/// Ranks share the batches, and all get all values. `None` where the user interrupted one of them;
/// what was computed stays on disk.
pub fn reference_logps<B: ModelOps>(
    world: &dyn Communicator,
    (model, model_key): (&Llama<B>, &str),
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
    let open = || {
        let made_from = || Ok::<_, TrainError>(made_from.clone());
        SharedOutput::<ReferenceRow>::open(world, &path, &[], made_from, existing)
    };
    let (mut output, mut done) = open()?;
    match check_rows(&path, &output, &done, pairs) {
        Err(error) if existing == Existing::Overwrite => {
            tracing::warn!("{error}; it is made anew");
            drop(output);
            row_output(&path, &[]).remove()?;
            (output, done) = open()?;
        }
        checked => checked?,
    }
    // Of each pair that is known here, its place and both values.
    let found =
        |place: usize, row: &ReferenceRow| [place as f64, row.chosen_logps, row.rejected_logps];
    let in_file = done.iter().enumerate();
    let mut known: Vec<f64> = in_file
        .chain(output.waiting())
        .flat_map(|(place, row)| found(place, row))
        .collect();
    let todo = output.begin(done.len()..pairs.len())?;
    let sequences = |part: Range<usize>| -> Vec<_> {
        pairs[part].iter().flat_map(|p| p.pair.sides()).collect()
    };
    // Batches are cut from the whole list: cut elsewhere, the last digit could differ.
    let parts = cut.parts(pairs.len(), |part| Batch::of(&sequences(part)));
    let lacking = |part: &Range<usize>| todo.range(part.clone()).next().is_some();
    let own: Vec<Range<usize>> = deal(world, parts.into_iter().filter(lacking)).collect();
    let places = own.iter().flat_map(|part| todo.range(part.clone()));
    let work = ("reference log-probabilities", "pairs");
    let before = (pairs.len() - todo.len(), pairs.len());
    begin_share(monitor, world, work, before, places.count());
    let mut interrupted = false;
    for part in own {
        interrupted = monitor.interrupted();
        if interrupted {
            break;
        }
        let values = sequence_logps(model, &sequences(part.clone()))?;
        for (place, sides) in part.zip(values.chunks_exact(2)) {
            if !todo.contains(&place) {
                continue;
            }
            let name = &pairs[place].name;
            if !(sides[0] + sides[1]).is_finite() {
                return Err(TrainError::BadRow {
                    row: name.clone(),
                    message: "its reference log-probability is not finite; are the weights sound?"
                        .into(),
                });
            }
            let row = ReferenceRow {
                row: place + 1,
                name: name.clone(),
                chosen_logps: sides[0],
                rejected_logps: sides[1],
            };
            known.extend(found(place, &row));
            output.add(place, row)?;
            monitor.advance(1, None);
        }
    }
    monitor.end();
    if output.close(interrupted)? == Closed::Interrupted {
        return Ok(None);
    }
    let mut logps = vec![[f64::NAN; 2]; pairs.len()];
    for values in gather_f64(world, &known).concat().chunks_exact(3) {
        logps[values[0] as usize] = [values[1], values[2]];
    }
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
    output: &SharedOutput<'_, ReferenceRow>,
    done: &[ReferenceRow],
    pairs: &[PreferencePair],
) -> Result<(), TrainError> {
    let mut rows = done.iter().enumerate().chain(output.waiting());
    let wrong = rows.find(|(i, row)| {
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use burn::tensor::DType;

    use super::*;
    use crate::cluster::threads::run;
    use crate::monitor::Silent;
    use crate::tokenise::{TokenisedPair, TokenisedSequence};

    /// Stops behind some rows.
    struct Stops(AtomicBool, AtomicUsize);

    impl Monitor for Stops {
        fn interrupt(&self) -> &AtomicBool {
            &self.0
        }
        fn begin(&self, _label: &str, _unit: &'static str, _done: usize, _total: usize) {}
        fn advance(&self, _count: usize, _note: Option<String>) {
            if self.1.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        fn end(&self) {}
    }

    fn pairs() -> Vec<PreferencePair> {
        let sequence = |seed: usize, response: usize| TokenisedSequence {
            ids: (0..6 + response)
                .map(|i| ((i * 7 + seed) % 400) as u32)
                .collect(),
            response_start: 6,
        };
        (0..11)
            .map(|i| PreferencePair {
                name: format!("p{i}"),
                pair: TokenisedPair {
                    chosen: sequence(i, 1 + 5 * i % 7),
                    rejected: sequence(i, 1 + 3 * i % 5),
                    probabilities: Default::default(),
                },
            })
            .collect()
    }

    #[test]
    fn ranks_share_batches_and_all_get_the_bits_of_one_process() {
        type Flex = burn_flex::Flex<f32, i32>;
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama");
        let model = Llama::<Flex>::load(&dir, DType::F32, &Default::default())
            .unwrap()
            .1;
        let pairs = pairs();
        let pass = |size: usize, dir: &Path, stop: Option<usize>| {
            run(size, |rank| {
                let stops = Stops(AtomicBool::new(false), AtomicUsize::new(stop.unwrap_or(0)));
                let monitor: &dyn Monitor = match stop {
                    Some(_) if rank.rank() == size - 1 => &stops,
                    _ => &Silent::default(),
                };
                let (cut, existing) = (Cut::rows(2), Existing::Keep);
                reference_logps(&rank, (&model, "m"), &pairs, &cut, dir, existing, monitor).unwrap()
            })
        };
        let file = |dir: &Path| {
            let mut entries = fs::read_dir(dir).unwrap();
            let found = entries.find_map(|entry| {
                let path = entry.unwrap().path();
                Some(path).filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
            });
            fs::read(found.unwrap()).unwrap()
        };
        let alone = tempfile::tempdir().unwrap();
        let expected = pass(1, alone.path(), None).remove(0);
        assert!(expected.is_some());
        for size in [2, 3] {
            let folder = tempfile::tempdir().unwrap();
            let found = pass(size, folder.path(), None);
            assert_eq!(found, vec![expected.clone(); size]);
            assert_eq!(file(folder.path()), file(alone.path()));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);

            let folder = tempfile::tempdir().unwrap();
            assert_eq!(pass(size, folder.path(), Some(1)), vec![None; size]);
            let found = pass(5 - size, folder.path(), None);
            assert_eq!(found, vec![expected.clone(); 5 - size]);
            assert_eq!(file(folder.path()), file(alone.path()));
        }
    }
}
