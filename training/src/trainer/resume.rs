//! Resuming a training: its checkpoints and finished model are known by what they were made from
//! and looked at for damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::TrainError;
use crate::card::Hardware;
use crate::files::{
    Damage, Difference, Existing, FileError, IN_FOLDER, MadeFrom, Mark, OLD, Output, OutputError,
    PARTIAL, is_there, read_mark, write_mark,
};
use crate::tensorboard;

/// The mark of a checkpoint or a trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// What it was made from, and its files.
    #[serde(flatten)]
    pub mark: Mark,
    /// Steps behind it, skipped ones too.
    pub step: usize,
    /// Optimizer updates behind it.
    pub updates: usize,
    /// Rows that it is trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// What computed it, lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_on: Option<Hardware>,
    /// Of adapters, the weights of their base ([`crate::files::weights_fingerprint`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

pub(super) const STATE: &str = "trainer/state.json";

/// The fingerprint of the weights that the adapters in `dir` were trained on, where this program
/// wrote them.
pub fn base_of_adapters(dir: &Path) -> Option<String> {
    let saved = |name: &str| read_mark::<Saved>(&dir.join(name)).ok()??.base;
    saved(IN_FOLDER).or_else(|| saved(STATE))
}

/// What a training writes into `output_dir`.
pub fn training_output(output_dir: &Path) -> Output {
    let part = |name| output_dir.join(name);
    Output {
        name: output_dir.into(),
        mark: part("training.sppo.json"),
        parts: vec![
            part("model"),
            part("metrics.jsonl"),
            part("checkpoints"),
            part(tensorboard::FOLDER),
        ],
    }
}

/// How far a training came before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Begun {
    /// To its end: the folder of the model.
    Finished(PathBuf),
    /// To its newest whole checkpoint, or nowhere.
    Unfinished(Option<Box<(PathBuf, Saved)>>),
}

/// Takes `output_dir` for a training of `steps` steps: finds what an earlier one of the same
/// making left, and deals with any other as `existing` says.
pub fn claim_training(
    output_dir: &Path,
    made_from: &MadeFrom,
    steps: usize,
    existing: Existing<'_>,
) -> Result<Begun, TrainError> {
    let output = training_output(output_dir);
    if is_there(&output.mark) {
        clear_remains(output_dir)?;
    }
    if output.claim(made_from, existing)?.is_none() {
        write_mark(&output.mark, &Mark::new(made_from.clone()))?;
        return Ok(Begun::Unfinished(None));
    }
    let model = output_dir.join("model");
    match finished_model(&model, made_from) {
        Ok(Some(saved)) if saved.step == steps => {
            tracing::info!(
                "nothing to do: {} is finished ({steps} steps)",
                model.display()
            );
            return Ok(Begun::Finished(model));
        }
        Ok(Some(saved)) if saved.step > steps => {
            let difference = Difference {
                name: "steps".into(),
                before: saved.step.to_string(),
                now: steps.to_string(),
            };
            output.give_way(vec![difference], existing)?;
            write_mark(&output.mark, &Mark::new(made_from.clone()))?;
            return Ok(Begun::Unfinished(None));
        }
        Ok(_) => {}
        Err(OutputError::Damaged { path, problem }) if existing == Existing::Overwrite => {
            tracing::warn!("{} {problem}; the model is made anew", path.display());
            fs::remove_dir_all(&model).map_err(FileError::new("remove", &model))?;
        }
        Err(error) => return Err(error.into()),
    }
    let newest = newest_checkpoint(output_dir, made_from, steps)?;
    Ok(Begun::Unfinished(newest.map(Box::new)))
}

/// What the trained model's mark says, where there is one; its files are looked at.
fn finished_model(dir: &Path, made_from: &MadeFrom) -> Result<Option<Saved>, OutputError> {
    if !is_there(dir) {
        return Ok(None);
    }
    let Some(saved) = read_mark::<Saved>(&dir.join(IN_FOLDER))? else {
        return Err(OutputError::Foreign {
            path: dir.into(),
            mark: dir.join(IN_FOLDER),
        });
    };
    match damage(dir, &saved, made_from)? {
        Some(damage) => Err(damage.into()),
        None => Ok(Some(saved)),
    }
}

/// What is wrong with a checkpoint or model that should be of this making.
fn damage(dir: &Path, saved: &Saved, made_from: &MadeFrom) -> Result<Option<Damage>, FileError> {
    if let Some(difference) = saved.mark.made_from.differences(made_from).first() {
        return Ok(Some(Damage {
            path: dir.into(),
            problem: format!("is of another training ({difference})"),
        }));
    }
    match &saved.mark.finished {
        Some(seal) => seal.verify(dir),
        None => Ok(Some(Damage {
            path: dir.into(),
            problem: "is not whole".into(),
        })),
    }
}

/// The newest whole checkpoint within `steps`; damaged ones are passed over with a warning.
fn newest_checkpoint(
    output_dir: &Path,
    made_from: &MadeFrom,
    steps: usize,
) -> Result<Option<(PathBuf, Saved)>, TrainError> {
    for (step, dir) in step_folders(output_dir).into_iter().rev() {
        let problem = match read_mark::<Saved>(&dir.join(STATE)) {
            Err(error @ OutputError::File(_)) => return Err(error.into()),
            Err(error) => error.to_string(),
            Ok(None) => continue,
            Ok(Some(_)) if step > steps => continue,
            Ok(Some(saved)) if saved.step != step => format!("it says step {}", saved.step),
            Ok(Some(saved)) => match damage(&dir, &saved, made_from)? {
                None => return Ok(Some((dir, saved))),
                Some(Damage { path, problem }) => format!("{} {problem}", path.display()),
            },
        };
        tracing::warn!(
            "{} is damaged: {problem}; going on from the checkpoint before it, or from the start",
            dir.display()
        );
    }
    Ok(None)
}

/// Folder of the checkpoint behind so many steps.
pub(super) fn step_folder(output_dir: &Path, step: usize) -> PathBuf {
    output_dir
        .join("checkpoints")
        .join(format!("step-{step:08}"))
}

/// Checkpoints of this program, by their steps; copies under other names are none.
pub(super) fn step_folders(output_dir: &Path) -> BTreeMap<usize, PathBuf> {
    let Ok(entries) = fs::read_dir(output_dir.join("checkpoints")) else {
        return BTreeMap::new();
    };
    let numbered = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let step = path
            .file_name()?
            .to_str()?
            .strip_prefix("step-")?
            .parse()
            .ok()?;
        let ours = path == step_folder(output_dir, step) && path.join(STATE).is_file();
        ours.then_some((step, path))
    });
    numbered.collect()
}

/// Removes folders that a kill left half written, and puts back one that was set aside for its
/// successor.
fn clear_remains(output_dir: &Path) -> Result<(), TrainError> {
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
