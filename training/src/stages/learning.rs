//! What all trainings share: where they start, and that they do not replace their own start.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use sppo_model::llama::{Llama, LlamaConfig};

use super::StageError;
use crate::config::Recompute;
use crate::learner::Learner;
use crate::monitor::Monitor;
use crate::optimizer::Optimizer;
use crate::trainer::{
    ModelFiles, Objective, Outcome, Saved, TrainSettings, clear_other_work, restore, train,
};

/// Where a training starts from.
pub(super) struct Start<'a> {
    pub model: &'a Path,
    pub dtype: DType,
    pub optimizer: Optimizer,
    pub recompute: Recompute,
    pub max_grad_norm: Option<f64>,
    pub resumed: Option<(PathBuf, Saved)>,
    pub label: &'a str,
}

/// Trains to the end from the newest checkpoint or the start; gives the folder of the model.
pub(super) fn learn<B: AutodiffBackend, O: Objective<B>>(
    start: Start<'_>,
    config: &LlamaConfig,
    mut objective: O,
    settings: &TrainSettings,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<PathBuf, StageError> {
    let weights = start.resumed.as_ref().map_or(start.model, |(dir, _)| dir);
    let (_, model) = Llama::<B>::load(weights, start.dtype, device)?;
    clear_other_work(&settings.output_dir, &settings.key)?;
    let mut learner = Learner::new(model, start.optimizer, start.recompute, start.max_grad_norm);
    let mut first = 0;
    if let Some((dir, saved)) = &start.resumed {
        restore(&mut learner, dir, saved)?;
        first = saved.step;
    }
    let files = ModelFiles {
        config,
        template: start.model,
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
