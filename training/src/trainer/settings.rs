//! Everything about a training but the model and the rows.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use sppo_model::llama::{LlamaConfig, Lora};

use super::objective::{Cut, MemoryBudget};
use crate::files::MadeFrom;
use crate::optimizer::Schedule;

/// Everything about a training but the model and the rows.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// Receives metrics.jsonl, checkpoints/ and model/.
    pub output_dir: PathBuf,
    /// All that the result depends on; a checkpoint of other things is not resumed.
    pub made_from: MadeFrom,
    /// Passes over the rows that the schedule is made for.
    pub epochs: usize,
    /// Ends the training after this many passes; None takes all `epochs`.
    pub stop_at_epoch: Option<usize>,
    /// Rows that go through the model together.
    pub batch_size: usize,
    /// Bound on the memory of that.
    pub memory_budget: Option<MemoryBudget>,
    /// Batches of one optimizer step.
    pub gradient_accumulation: usize,
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// Takes the rows in a random order, another one each pass.
    pub shuffle: bool,
    /// Of that order.
    pub seed: u64,
    /// Steps between checkpoints; 0 keeps none but on interruption.
    pub checkpoint_every: usize,
    /// Checkpoints kept, the newest ones; 0 counts as 1.
    pub keep_checkpoints: usize,
    /// Steps between evaluations on the objective's own held-out rows; 0 is off.
    pub eval_every: usize,
    /// Skips a step whose loss or gradient is not finite, instead of ending the training.
    pub skip_non_finite: bool,
    /// What to do where numbers are not finite.
    pub advice: &'static str,
    /// Of the weights of saved models; not of adapters.
    pub save_dtype: DType,
    /// Writes TensorBoard's event file beside metrics.jsonl.
    pub tensorboard: bool,
    /// Rows that it is trained on.
    pub rows: usize,
}

impl TrainSettings {
    /// How a step's rows are cut.
    pub(super) fn cut(&self) -> Cut {
        Cut {
            batch_size: self.batch_size,
            memory_budget: self.memory_budget.clone(),
        }
    }

    /// Rows of one optimizer step.
    pub fn window(&self) -> usize {
        self.batch_size * self.gradient_accumulation
    }

    /// Optimizer steps of one pass over `rows`.
    pub fn steps_per_epoch(&self, rows: usize) -> usize {
        rows.div_ceil(self.window())
    }

    /// With the schedule made for all epochs over `rows`; `warmup` maps steps to warmup steps.
    pub fn with_schedule(mut self, rows: usize, warmup: impl Fn(usize) -> usize) -> Self {
        let total = self.epochs * self.steps_per_epoch(rows);
        self.schedule.total_steps = total;
        self.schedule.warmup_steps = warmup(total);
        self
    }

    /// Whether the training ends before its schedule does, and may go on later.
    pub(super) fn stops_early(&self) -> bool {
        self.stop_at_epoch.is_some_and(|stop| stop < self.epochs)
    }

    /// Optimizer steps that are taken.
    pub fn steps(&self, rows: usize) -> usize {
        let epochs = self.stop_at_epoch.unwrap_or(self.epochs).min(self.epochs);
        epochs * self.steps_per_epoch(rows)
    }
}

/// The folder that a trained model is described by: its config, and where its tokenizer lies.
#[derive(Clone, Copy, Debug)]
pub struct ModelFiles<'a> {
    /// Shape of the model.
    pub config: &'a LlamaConfig,
    /// Folder whose tokenizer and generation files go along unchanged; the base of adapters.
    pub template: &'a Path,
    /// A chat template to save in place of that folder's.
    pub chat_template: Option<&'a Path>,
    /// What to save instead of a whole model.
    pub adapters: Option<&'a Adapters>,
}

/// Adapters in training.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// Rank, strength and layers.
    pub lora: Lora,
    /// Of the base's weights.
    pub base: String,
    /// Of new adapters' values.
    pub seed: u64,
}
