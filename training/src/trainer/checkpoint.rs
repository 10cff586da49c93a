//! The trainer's state written to disk: aside, flushed, renamed.
//!
//! `<output_dir>/checkpoints/step-N/` is a Hugging Face folder, or a PEFT one where adapters are
//! trained; `trainer/` in it holds f32 masters, optimizer state and the position.
//! `<output_dir>/model/` is the trained model, or the adapters. `resume` finds them again.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use sppo_model::checkpoint::Share;
use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use super::optimizer_state;
use super::resume::{STATE, Saved, step_folder, step_folders};
use super::settings::{Adapters, ModelFiles, TrainSettings};
use crate::card::{self, Hardware};
use crate::cluster::{lead, watchdog, writing};
use crate::config::model_name;
use crate::files::{FileError, IN_FOLDER, Mark, Seal, begin_folder, put_folder, write_mark};
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

/// Writes a checkpoint behind `step` steps; older ones go only once it is whole. Collective: every
/// rank writes its share of the folder.
pub(super) fn save<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    step: usize,
) -> Result<(), TrainError> {
    refuse_broken(learner, settings, step)?;
    let target = step_folder(&settings.output_dir, step);
    let fill = |dir: &Path| {
        write_model(learner, settings, files, dir)?;
        optimizer_state::write(learner, &dir.join("trainer"))
    };
    together(learner, &target, Some("trainer"), fill, |dir| {
        write_saved(dir, STATE, learner, settings, files, step)?;
        write_card(dir, &target);
        Ok(())
    })?;
    watchdog::saved(step);
    if !learner.world().leads() {
        return Ok(());
    }
    let keep = settings.keep_checkpoints.max(1);
    let folders = step_folders(&settings.output_dir);
    // Later ones are damaged or of a longer training; they do not push this one out.
    let older = folders.range(..=step).rev().skip(keep);
    for (_, old) in older {
        fs::remove_dir_all(old).map_err(FileError::new("remove", old))?;
    }
    Ok(())
}

/// Writes the trained model and gives its folder. Collective.
pub(super) fn save_final<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    steps: usize,
) -> Result<PathBuf, TrainError> {
    refuse_broken(learner, settings, steps)?;
    let target = settings.output_dir.join("model");
    let fill = |dir: &Path| write_model(learner, settings, files, dir);
    together(learner, &target, None, fill, |dir| {
        write_saved(dir, IN_FOLDER, learner, settings, files, steps)?;
        write_card(dir, &target);
        Ok(())
    })?;
    Ok(target)
}

/// A card that cannot be written is no reason to lose a model.
fn write_card(dir: &Path, target: &Path) {
    if let Err(error) = card::write_new(dir, target) {
        tracing::warn!("{} gets no card: {error}", target.display());
    }
}

/// Fills a folder by all ranks at once, seals it and puts it in its place: a kill leaves the old
/// folder or the new one.
fn together<B: TrainingOps>(
    learner: &Learner<B>,
    target: &Path,
    subfolder: Option<&str>,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
    seal: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    let world = learner.world();
    let aside: PathBuf = lead(world, || {
        let aside = begin_folder(target)?;
        if let Some(name) = subfolder {
            let folder = aside.join(name);
            fs::create_dir(&folder).map_err(FileError::new("make", &folder))?;
        }
        Ok::<_, TrainError>(aside)
    })?;
    let filled = writing(|| {
        fill(&aside)?;
        world.barrier();
        match world.leads() {
            true => {
                seal(&aside)?;
                Ok(put_folder(&aside, target)?)
            }
            false => Ok(()),
        }
    });
    if filled.is_err() {
        // Half a folder is of no use and may be what filled the disk. Others that still write into
        // it would fail for no cause of theirs; the next start removes it then.
        if world.size() == 1 {
            let _ = fs::remove_dir_all(&aside);
        }
        return filled;
    }
    world.barrier();
    Ok(())
}

fn write_model<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    dir: &Path,
) -> Result<(), TrainError> {
    let world = learner.world();
    let share = Share {
        index: world.rank(),
        of: world.size(),
    };
    match files.adapters {
        None => {
            let model = learner.valid();
            let dtype = settings.save_dtype;
            model.save_share(dir, files.config, dtype, files.template, share)?;
        }
        Some(_) if !world.leads() => return Ok(()),
        Some(Adapters { lora, .. }) => {
            let base = model_name(files.template);
            let model = learner.model();
            model.save_adapters(dir, lora, &base, files.template)?;
        }
    }
    if !world.leads() {
        return Ok(());
    }
    if let Some(file) = files.chat_template {
        let copy = dir.join("chat_template.jinja");
        fs::copy(file, &copy).map_err(FileError::new("write", &copy))?;
    }
    Ok(())
}

fn hardware<B: TrainingOps>(learner: &Learner<B>) -> Hardware {
    let backend = <B::InnerBackend as Backend>::name(&learner.model().device());
    Hardware::here(backend, B::ON_HOST, learner.world().size())
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
        rows: Some(settings.rows),
        made_on: Some(hardware(learner)),
        base: files.adapters.map(|adapters| adapters.base.clone()),
    };
    Ok(write_mark(&dir.join(name), &saved)?)
}
