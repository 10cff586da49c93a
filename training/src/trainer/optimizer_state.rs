//! Optimizer state in a checkpoint: `trainer/optimizer-R-of-N.safetensors` is what rank R of N owned
//! of f32 masters and the optimizer's tensors, flat, each named by its parameter, what it is, and
//! where it begins: `model.norm.weight.slot0@16384`. Any number of ranks goes on from any other.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use sppo_model::checkpoint::{Checkpoint, LazyTensor, write_file};
use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use super::resume::Saved;
use crate::learner::{Learner, ParamState};

/// The file of builds that trained with one process only: whole tensors, without `@`.
const ALONE: &str = "optimizer.safetensors";

/// Writes what this rank owns into the folder `trainer`.
pub(super) fn write<B: TrainingOps>(
    learner: &Learner<B>,
    trainer: &Path,
) -> Result<(), TrainError> {
    let world = learner.world();
    let mut tensors = Vec::new();
    for (index, parameter) in learner.parameters().trained() {
        let Some(state) = &learner.state()[index] else {
            continue;
        };
        let (name, start) = (&parameter.name, learner.shards().own(index).start);
        let masters = state.master.iter();
        let masters = masters.map(|t| (format!("{name}.master@{start}"), t));
        let slots = state.slots.iter().enumerate();
        let slots = slots.map(|(i, t)| (format!("{name}.slot{i}@{start}"), t));
        tensors.extend(masters.chain(slots).map(|(name, tensor)| LazyTensor {
            name,
            shape: tensor.dims().to_vec(),
            dtype: DType::F32,
            fetch: Box::new(move || tensor.clone().into_data()),
        }));
    }
    let tensors: Vec<&LazyTensor<'_>> = tensors.iter().collect();
    let name = format!("optimizer-{}-of-{}.safetensors", world.rank(), world.size());
    write_file(&trainer.join(name), &tensors).map_err(|e| TrainError::Checkpoint(e.into()))
}

/// Puts the state of the checkpoint folder `dir` into `learner`, whose trained weights were loaded
/// from that folder; of the files only what this rank owns is read.
pub fn restore<B: TrainingOps>(
    learner: &mut Learner<B>,
    dir: &Path,
    saved: &Saved,
) -> Result<(), TrainError> {
    let pieces = Pieces::open(&dir.join("trainer"))?;
    let device = learner.model().device();
    let mut state: Vec<Option<ParamState<B::InnerBackend>>> = Vec::new();
    state.resize_with(learner.parameters().all().len(), || None);
    let slots = match saved.updates {
        0 => 0,
        _ => learner.optimizer().slots(),
    };
    for (index, parameter) in learner.parameters().trained() {
        let own = learner.shards().own(index);
        if own.is_empty() {
            continue;
        }
        let load = |what: &str| -> Result<_, TrainError> {
            let values = pieces.load(&format!("{}.{what}", parameter.name), own.clone())?;
            let data = values.map(|values| TensorData::new(values, [own.len()]));
            Ok(data.map(|data| Tensor::from_data(data, (&device, DType::F32))))
        };
        let master = load("master")?;
        let found = (0..slots).map(|slot| load(&format!("slot{slot}")));
        let found: Option<Vec<_>> = found.collect::<Result<_, _>>()?;
        let Some(slots) = found else {
            return Err(TrainError::Damaged {
                path: dir.into(),
                message: format!("the optimizer state of {} is not complete", parameter.name),
            });
        };
        state[index] = Some(ParamState { master, slots });
    }
    learner.restore(saved.updates, state);
    Ok(())
}

/// The pieces of all ranks' files.
struct Pieces {
    files: Vec<Checkpoint>,
    /// By what they are pieces of: where each begins and ends, its file and its name there.
    by_name: BTreeMap<String, Vec<Piece>>,
}

struct Piece {
    start: usize,
    end: usize,
    file: usize,
    name: String,
}

impl Pieces {
    fn open(trainer: &Path) -> Result<Self, TrainError> {
        let mut files = Vec::new();
        let mut by_name: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
        let entries = fs::read_dir(trainer)
            .map_err(crate::files::FileError::new("read", trainer))?
            .filter_map(|entry| Some(entry.ok()?.path()));
        for path in entries {
            let name = path.file_name().and_then(|name| name.to_str());
            let ours = name.is_some_and(|name| {
                name == ALONE || name.starts_with("optimizer-") && name.ends_with(".safetensors")
            });
            if !ours {
                continue;
            }
            let file =
                Checkpoint::open_file(&path).map_err(|e| TrainError::Checkpoint(e.into()))?;
            for (name, shape) in file.shapes() {
                let split = name.rsplit_once('@');
                let split = split.and_then(|(of, start)| Some((of, start.parse().ok()?)));
                let (of, start): (&str, usize) = split.unwrap_or((name, 0));
                by_name.entry(of.into()).or_default().push(Piece {
                    start,
                    end: start.saturating_add(shape.iter().product()),
                    file: files.len(),
                    name: name.into(),
                });
            }
            files.push(file);
        }
        for pieces in by_name.values_mut() {
            pieces.sort_by_key(|piece| piece.start);
        }
        Ok(Self { files, by_name })
    }

    /// A range of a flat tensor, or `None` where some of it is not there.
    fn load(&self, name: &str, range: Range<usize>) -> Result<Option<Vec<f32>>, TrainError> {
        let mut values = Vec::with_capacity(range.len());
        for piece in self.by_name.get(name).into_iter().flatten() {
            let next = range.start + values.len();
            let end = piece.end.min(range.end);
            if piece.start > next || end <= next {
                continue;
            }
            let part = next - piece.start..end - piece.start;
            let found = self.files[piece.file].load_range(&piece.name, part);
            let found = found.map_err(|e| TrainError::Checkpoint(e.into()))?;
            values.extend(found.unwrap_or_default());
        }
        Ok(Some(values).filter(|values| values.len() == range.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, tensors: &[(&str, Vec<f32>)]) {
        let tensors: Vec<LazyTensor<'_>> = tensors
            .iter()
            .map(|(name, values)| LazyTensor {
                name: name.to_string(),
                shape: vec![values.len()],
                dtype: DType::F32,
                fetch: Box::new(|| TensorData::new(values.clone(), [values.len()])),
            })
            .collect();
        write_file(path, &tensors.iter().collect::<Vec<_>>()).unwrap();
    }

    #[test]
    fn pieces_of_any_number_of_ranks_make_any_range() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        write(
            &file("optimizer-0-of-3.safetensors"),
            &[("a.slot0@0", vec![0.0, 1.0]), ("b.slot0@0", vec![7.0])],
        );
        write(
            &file("optimizer-2-of-3.safetensors"),
            &[("a.slot0@3", vec![3.0, 4.0])],
        );
        let open = || Pieces::open(dir.path()).unwrap();
        let load = |name, range| open().load(name, range).unwrap();
        assert_eq!(load("a.slot0", 0..2), Some(vec![0.0, 1.0]));
        assert_eq!(load("a.slot0", 4..5), Some(vec![4.0]));
        assert_eq!(load("a.slot0", 1..4), None, "some is missing");
        assert_eq!(load("a.master", 0..1), None);
        write(
            &file("optimizer-1-of-3.safetensors"),
            &[("a.slot0@2", vec![2.0])],
        );
        assert_eq!(load("a.slot0", 1..4), Some(vec![1.0, 2.0, 3.0]));
        assert_eq!(
            load("a.slot0", 0..6),
            None,
            "it is longer than what is there"
        );
    }

    #[test]
    fn the_file_of_earlier_builds_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let values = vec![5.0, 6.0, 7.0];
        write(&dir.path().join(ALONE), &[("a.master", values)]);
        let found = Pieces::open(dir.path()).unwrap().load("a.master", 1..3);
        assert_eq!(found.unwrap(), Some(vec![6.0, 7.0]));
    }
}
