//! What all trainings share: where they start, and that they do not replace their own start.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use sppo_model::chat_template::TemplateSource;
use sppo_model::llama::lora::AdapterFolder;
use sppo_model::llama::{Llama, LlamaConfig};
use sppo_model::ops::TrainingOps;

use super::error::StageError;
use crate::cluster::{watchdog, world};
use crate::config::Recompute;
use crate::files::{FileError, MadeFrom, fingerprint, model_fingerprint};
use crate::learner::Learner;
use crate::monitor::Monitor;
use crate::optimizer::Optimizer;
use crate::trainer::{
    Adapters, ModelFiles, Objective, Outcome, Saved, TrainSettings, restore, train,
};

/// Where a training starts from.
pub(super) struct Start<'a> {
    pub model: &'a Path,
    pub template: TemplateSource<'a>,
    pub dtype: DType,
    /// Trained beside the model, where it is not itself.
    pub adapters: Option<Adapters>,
    pub optimizer: Optimizer,
    pub recompute: Recompute,
    pub max_grad_norm: Option<f64>,
    pub resumed: Option<(PathBuf, Saved)>,
    pub label: &'a str,
}

/// Trains to the end from the newest checkpoint or the start; gives the folder of the model.
pub(super) fn learn<B: TrainingOps, O: Objective<B>>(
    start: Start<'_>,
    config: &LlamaConfig,
    mut objective: O,
    settings: &TrainSettings,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<PathBuf, StageError> {
    let steps = settings.steps(objective.rows());
    if (0..steps).all(|step| settings.schedule.rate(step) == 0.0) {
        tracing::warn!(
            "the learning rate is 0 at {}: nothing is learnt; a warmup of 0 steps, more rows or more epochs would change that",
            if steps == 1 {
                "the only step"
            } else {
                "every step"
            }
        );
    }
    let model = starting_weights::<B>(&start, device)?;
    let mut learner =
        Learner::new(model, start.optimizer, start.recompute, start.max_grad_norm).across(world());
    let mut first = 0;
    if let Some((dir, saved)) = &start.resumed {
        restore(&mut learner, dir, saved)?;
        first = saved.step;
        watchdog::saved(first);
    }
    let files = ModelFiles {
        config,
        template: start.model,
        chat_template: start.template.file(),
        adapters: start.adapters.as_ref(),
    };
    monitor.begin(
        start.label,
        "steps",
        first,
        settings.steps(objective.rows()),
    );
    let outcome = train(
        &mut learner,
        &mut objective,
        settings,
        files,
        first,
        monitor,
    );
    monitor.end();
    match outcome? {
        Outcome::Finished(path) => Ok(path),
        Outcome::Interrupted(_) => Err(StageError::Interrupted),
    }
}

/// The model with which the first step begins.
fn starting_weights<B: TrainingOps>(
    start: &Start<'_>,
    device: &B::Device,
) -> Result<Llama<B>, StageError> {
    let resumed = start.resumed.as_ref().map(|(dir, _)| dir.as_path());
    // A GPU's pool gives back the pages of the stage before, which may be of other sizes.
    B::memory_cleanup(device);
    let load = |dir: &Path| Llama::<B>::load(dir, start.dtype, device);
    let Some(adapters) = &start.adapters else {
        return Ok(load(resumed.unwrap_or(start.model))?.1);
    };
    let (config, base) = load(start.model)?;
    Ok(match resumed {
        None => base.with_new_adapters(&config, &adapters.lora, adapters.seed)?,
        Some(dir) => {
            let folder = AdapterFolder::open(dir, start.model, &config)?;
            base.with_saved_adapters(&folder)?
        }
    })
}

/// A hash of what a model folder computes with the chat template that it is used with.
pub fn model_key(model: &Path, template: TemplateSource<'_>) -> Result<String, StageError> {
    Ok(with_model(MadeFrom::new("model"), model, template)?.key())
}

/// Adds a model and the chat template that it is used with.
pub(super) fn with_model(
    made_from: MadeFrom,
    model: &Path,
    template: TemplateSource<'_>,
) -> Result<MadeFrom, StageError> {
    let made_from = made_from.input("model", model, model_fingerprint(model)?);
    Ok(match template {
        TemplateSource::Folder => made_from,
        TemplateSource::Raw => made_from.setting("raw", true),
        TemplateSource::File(file) => {
            let text = std::fs::read(file).map_err(FileError::new("read", file))?;
            made_from.input(
                "chat_template",
                file,
                fingerprint([("template", &text[..])]),
            )
        }
    })
}

/// Refuses to train a model that the result would replace.
pub(super) fn refuse_own_output(model: &Path, output_dir: &Path) -> Result<(), StageError> {
    let (Ok(model), Ok(output)) = (model.canonicalize(), output_dir.canonicalize()) else {
        return Ok(());
    };
    match model.starts_with(output.join("model")) || model.starts_with(output.join("checkpoints")) {
        true => Err(StageError::Input(format!(
            "the model {} lies where this training writes; choose another output_dir",
            model.display()
        ))),
        false => Ok(()),
    }
}
