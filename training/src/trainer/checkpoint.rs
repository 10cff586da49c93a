//! The trainer's state written to disk: aside, flushed, renamed.
//!
//! `<output_dir>/checkpoints/step-N/` is a Hugging Face folder, or a PEFT one where adapters are
//! trained; `trainer/` in it holds f32 masters, optimizer state and the position.
//! `<output_dir>/model/` is the trained model, or the adapters. `resume` finds them again.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::DType;
use sppo_model::checkpoint::{LazyTensor, write_file};
use sppo_model::ops::TrainingOps;

use super::card::{adapter_card, model_card};
use super::error::TrainError;
use super::resume::{OPTIMIZER, STATE, Saved, step_folder, step_folders};
use super::settings::{Adapters, ModelFiles, TrainSettings};
use crate::config::model_name;
use crate::files::{FileError, IN_FOLDER, Mark, Seal, replace_folder, write_mark};
use crate::learner::Learner;

/// An update can overflow where loss and gradient were finite; such weights are never saved.
pub(super) fn refuse_broken<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    step: usize,
) -> Result<(), TrainError> {
    match learner.is_finite()? {
        true => Ok(()),
        false => Err(TrainError::Broken {
            step,
            advice: settings.advice,
        }),
    }
}

/// Writes a checkpoint behind `step` steps; older ones go only once it is whole.
pub(super) fn save<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    step: usize,
) -> Result<(), TrainError> {
    refuse_broken(learner, settings, step)?;
    let target = step_folder(&settings.output_dir, step);
    replace_folder(&target, |dir| {
        write_model(learner, settings, files, dir)?;
        let trainer = dir.join("trainer");
        fs::create_dir(&trainer).map_err(FileError::new("make", &trainer))?;
        write_optimizer(learner, &dir.join(OPTIMIZER))?;
        write_saved(dir, STATE, learner, settings, files, step)
    })?;
    let keep = settings.keep_checkpoints.max(1);
    let folders = step_folders(&settings.output_dir);
    // Later ones are damaged or of a longer training; they do not push this one out.
    let older = folders.range(..=step).rev().skip(keep);
    for (_, old) in older {
        fs::remove_dir_all(old).map_err(FileError::new("remove", old))?;
    }
    Ok(())
}

/// Writes the trained model and gives its folder.
pub(super) fn save_final<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    steps: usize,
) -> Result<PathBuf, TrainError> {
    refuse_broken(learner, settings, steps)?;
    let target = settings.output_dir.join("model");
    replace_folder(&target, |dir| {
        write_model(learner, settings, files, dir)?;
        write_saved(dir, IN_FOLDER, learner, settings, files, steps)
    })?;
    Ok(target)
}

fn write_model<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    dir: &Path,
) -> Result<(), TrainError> {
    let text = match files.adapters {
        None => {
            let model = learner.valid();
            model.save(dir, files.config, settings.save_dtype, files.template)?;
            model_card(&settings.summary)
        }
        Some(Adapters { lora, .. }) => {
            let base = model_name(files.template);
            let model = learner.model();
            model.save_adapters(dir, lora, &base, files.template)?;
            adapter_card(&settings.summary, &base)
        }
    };
    if let Some(file) = files.chat_template {
        let copy = dir.join("chat_template.jinja");
        fs::copy(file, &copy).map_err(FileError::new("write", &copy))?;
    }
    let card = dir.join("README.md");
    Ok(fs::write(&card, text).map_err(FileError::new("write", &card))?)
}

fn write_saved<B: TrainingOps>(
    dir: &Path,
    name: &str,
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    step: usize,
) -> Result<(), TrainError> {
    let mut mark = Mark::new(settings.made_from.clone());
    mark.finished = Some(Seal::of_folder(dir, &[name])?);
    let saved = Saved {
        mark,
        step,
        updates: learner.steps(),
        base: files.adapters.map(|adapters| adapters.base.clone()),
    };
    Ok(write_mark(&dir.join(name), &saved)?)
}

fn write_optimizer<B: TrainingOps>(learner: &Learner<B>, path: &Path) -> Result<(), TrainError> {
    let mut tensors = Vec::new();
    for (index, parameter) in learner.parameters().trained() {
        let name = &parameter.name;
        let Some(state) = &learner.state()[index] else {
            continue;
        };
        let masters = state.master.iter().map(|t| (format!("{name}.master"), t));
        let slots = state.slots.iter().enumerate();
        let slots = slots.map(|(i, t)| (format!("{name}.slot{i}"), t));
        tensors.extend(masters.chain(slots).map(|(name, tensor)| LazyTensor {
            name,
            shape: tensor.dims().to_vec(),
            dtype: DType::F32,
            fetch: Box::new(move || tensor.clone().into_data()),
        }));
    }
    let tensors: Vec<&LazyTensor<'_>> = tensors.iter().collect();
    write_file(path, &tensors).map_err(|e| TrainError::Checkpoint(e.into()))
}
