//! Resuming a training: its checkpoints and finished model are found by the key of all that the
//! result depends on, and its state is put back.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sppo_model::checkpoint::Checkpoint;
use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use crate::files::{FileError, OLD, PARTIAL};
use crate::learner::{Learner, ParamState};

/// What a checkpoint says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Hash of all that the result depends on.
    pub key: String,
    /// Steps behind it, skipped ones too.
    pub step: usize,
    /// Optimizer updates behind it.
    pub updates: usize,
    /// Of adapters, the weights of their base ([`crate::files::weights_fingerprint`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

pub(super) const STATE: &str = "trainer/state.json";
pub(super) const OPTIMIZER: &str = "trainer/optimizer.safetensors";
pub(super) const PROVENANCE: &str = "sppo.json";

/// The fingerprint of the weights that the adapters in `dir` were trained on, where this program
/// wrote them.
pub fn base_of_adapters(dir: &Path) -> Option<String> {
    let saved = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).ok()?;
        serde_json::from_str::<Saved>(&text).ok()?.base
    };
    saved(PROVENANCE).or_else(|| saved(STATE))
}

/// The newest whole checkpoint of this key.
pub fn latest_checkpoint(output_dir: &Path, key: &str) -> Option<(PathBuf, Saved)> {
    let mut found: Vec<(PathBuf, Saved)> = step_folders(output_dir)
        .into_iter()
        .filter_map(|dir| {
            let text = fs::read_to_string(dir.join(STATE)).ok()?;
            let saved: Saved = serde_json::from_str(&text).ok()?;
            (saved.key == key).then_some((dir, saved))
        })
        .collect();
    found.sort_by_key(|(_, saved)| saved.step);
    found.pop()
}

/// The trained model of this key, where it is whole.
pub fn finished_model(output_dir: &Path, key: &str) -> Option<PathBuf> {
    let dir = output_dir.join("model");
    let text = fs::read_to_string(dir.join(PROVENANCE)).ok()?;
    let saved: Saved = serde_json::from_str(&text).ok()?;
    (saved.key == key).then_some(dir)
}

/// Removes checkpoints of other inputs, which would be pruned among this training's own, with a
/// warning; the trained model stays until the new one replaces it.
pub fn clear_other_work(output_dir: &Path, key: &str) -> Result<(), TrainError> {
    let is_other = |mark: &Path| {
        let saved: Option<Saved> = fs::read_to_string(mark)
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        saved.is_none_or(|saved| saved.key != key)
    };
    let folders: Vec<PathBuf> = step_folders(output_dir)
        .into_iter()
        .filter(|dir| is_other(&dir.join(STATE)))
        .collect();
    let model = output_dir.join("model").join(PROVENANCE);
    if !folders.is_empty() || (model.is_file() && is_other(&model)) {
        tracing::warn!(
            "{} holds a training of other rows, settings or weights; this one starts anew and replaces it",
            output_dir.display()
        );
    }
    for dir in &folders {
        fs::remove_dir_all(dir).map_err(FileError::new("remove", dir))?;
    }
    Ok(())
}

pub(super) fn step_folders(output_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(output_dir.join("checkpoints")) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str());
            name.is_some_and(|n| n.starts_with("step-"))
        })
        .collect();
    folders.sort();
    folders
}

/// Puts the optimizer state of a checkpoint folder into `learner`, whose trained weights were
/// loaded from that folder.
pub fn restore<B: TrainingOps>(
    learner: &mut Learner<B>,
    dir: &Path,
    saved: &Saved,
) -> Result<(), TrainError> {
    let file = Checkpoint::open_file(&dir.join(OPTIMIZER))
        .map_err(|e| TrainError::Checkpoint(e.into()))?;
    let device = learner.model().device();
    let load = |name: &str| -> Result<Option<Tensor<B::InnerBackend, 1>>, TrainError> {
        let data = file
            .load(name, DType::F32)
            .map_err(|e| TrainError::Checkpoint(e.into()))?;
        Ok(data.map(|data: TensorData| Tensor::from_data(data, (&device, DType::F32))))
    };
    let table = learner.parameters();
    let mut state: Vec<Option<ParamState<B::InnerBackend>>> = Vec::new();
    state.resize_with(table.all().len(), || None);
    for (index, parameter) in table.trained() {
        let name = &parameter.name;
        let master = load(&format!("{name}.master"))?;
        let mut slots = Vec::new();
        while let Some(slot) = load(&format!("{name}.slot{}", slots.len()))? {
            slots.push(slot);
        }
        if slots.len() != learner.optimizer().slots() && saved.updates > 0 {
            return Err(TrainError::Damaged {
                path: dir.into(),
                message: format!("the optimizer state of {name} is not complete"),
            });
        }
        state[index] = Some(ParamState { master, slots });
    }
    learner.restore(saved.updates, state);
    Ok(())
}

/// Removes folders that a kill left half written, and puts back one that was set aside for its
/// successor.
pub fn clear_remains(output_dir: &Path) -> Result<(), TrainError> {
    let own = [
        (output_dir.to_path_buf(), "model."),
        (output_dir.join("checkpoints"), "step-"),
    ];
    for (parent, begin) in own {
        let Ok(entries) = fs::read_dir(&parent) else {
            continue;
        };
        for path in entries.filter_map(|entry| entry.ok().map(|e| e.path())) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let hidden = name.strip_prefix('.').filter(|n| n.starts_with(begin));
            let Some(hidden) = hidden.filter(|_| path.is_dir()) else {
                continue;
            };
            if let Some(name) = hidden.strip_suffix(OLD) {
                let target = parent.join(name);
                if !target.exists() {
                    fs::rename(&path, &target).map_err(FileError::new("rename", &path))?;
                    continue;
                }
            } else if !hidden.ends_with(PARTIAL) {
                continue;
            }
            fs::remove_dir_all(&path).map_err(FileError::new("remove", &path))?;
        }
    }
    Ok(())
}
