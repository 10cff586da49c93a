//! The training loop: order, accumulation, schedule, metrics, checkpoints, exact resume.
//!
//! What a row is worth is the objective's business: preference pairs or supervised examples.

mod checkpoint;
mod metrics;
mod objective;
mod order;
mod preference;
mod reference;
mod supervised;

use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::DType;
use sppo_model::llama::{CheckpointError, LlamaConfig, Lora};
use sppo_model::ops::{DeviceError, TrainingOps};

pub use checkpoint::{
    Saved, base_of_adapters, clear_other_work, clear_remains, fingerprint, finished_model,
    latest_checkpoint, model_fingerprint, restore, weights_fingerprint, write_aside,
};
pub use metrics::{PairMetrics, StepMetrics};
pub use objective::{Cut, Objective, Room, WindowReport};
pub use preference::{PreferenceObjective, PreferencePair, tokenise_pairs};
pub use reference::reference_logps;
pub use supervised::{SupervisedObjective, tokenise_supervised};

use crate::data::DataError;
use crate::learner::{Learner, StepReport};
use crate::monitor::Monitor;
use crate::optimizer::Schedule;
use crate::tokenise::TokeniseError;
use metrics::MetricsFile;

/// Why training ended.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is damaged: {message}; remove that folder to go on from the one before", path = path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("step {step}: the {what} is not finite (rows {}); {kept}; {advice}", rows.join(", "))]
    NonFinite {
        step: usize,
        what: &'static str,
        rows: Vec<String>,
        /// What is left to go on from.
        kept: &'static str,
        advice: &'static str,
    },
    #[error(
        "weights or optimizer state are not finite behind step {step} and are not saved; {advice}"
    )]
    Broken { step: usize, advice: &'static str },
    #[error("row {row}: {source}")]
    Row { row: String, source: TokeniseError },
    #[error("row {row}: {message}")]
    BadRow { row: String, message: String },
}

/// Everything about a training but the model and the rows.
#[derive(Clone, Debug)]
pub struct TrainSettings {
    /// Receives metrics.jsonl, checkpoints/ and model/.
    pub output_dir: PathBuf,
    /// Hash of all that the result depends on; a checkpoint of another key is not resumed.
    pub key: String,
    pub epochs: usize,
    pub stop_at_epoch: Option<usize>,
    /// Rows that go through the model together.
    pub batch_size: usize,
    /// Bound on the memory of that.
    pub room: Option<Room>,
    pub gradient_accumulation: usize,
    pub schedule: Schedule,
    pub shuffle: bool,
    pub seed: u64,
    /// Steps between checkpoints; 0 keeps none but on interruption.
    pub checkpoint_every: usize,
    pub keep_checkpoints: usize,
    /// Steps between evaluations on the objective's own held-out rows; 0 is off.
    pub eval_every: usize,
    pub skip_non_finite: bool,
    /// What to do where numbers are not finite.
    pub advice: &'static str,
    pub save_dtype: DType,
    /// Words for the model card: what was trained and from what.
    pub summary: String,
}

impl TrainSettings {
    /// How a step's rows are cut.
    fn cut(&self) -> Cut {
        Cut {
            batch_size: self.batch_size,
            room: self.room.clone(),
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

    /// Optimizer steps that are taken.
    pub fn steps(&self, rows: usize) -> usize {
        let epochs = self.stop_at_epoch.unwrap_or(self.epochs).min(self.epochs);
        epochs * self.steps_per_epoch(rows)
    }
}

/// The folder that a trained model is described by: its config, and where its tokenizer lies.
#[derive(Clone, Copy, Debug)]
pub struct ModelFiles<'a> {
    pub config: &'a LlamaConfig,
    /// Folder whose tokenizer and generation files go along unchanged; the base of adapters.
    pub template: &'a Path,
    /// What to save instead of a whole model.
    pub adapters: Option<&'a Adapters>,
}

/// Adapters in training.
#[derive(Clone, Debug)]
pub struct Adapters {
    pub lora: Lora,
    /// Of the base's weights.
    pub base: String,
    /// Of new adapters' values.
    pub seed: u64,
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The model is at this path.
    Finished(PathBuf),
    /// Stopped by the user behind this many steps; the state is saved.
    Interrupted(usize),
}

/// Runs `objective` on `learner` to the end, from step `start`; writes metrics, checkpoints and
/// the trained model.
pub fn train<B: TrainingOps, O: Objective<B>>(
    learner: &mut Learner<B>,
    objective: &mut O,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    start: usize,
    monitor: &dyn Monitor,
) -> Result<Outcome, TrainError> {
    let rows = objective.rows();
    let per_epoch = settings.steps_per_epoch(rows);
    let steps = settings.steps(rows);
    let mut metrics = MetricsFile::open(&settings.output_dir, start)?;
    let mut saved = start;
    for step in start..steps {
        if monitor.interrupted() {
            metrics.sync()?;
            if step > saved {
                checkpoint::save(learner, settings, files, step)?;
            }
            return Ok(Outcome::Interrupted(step));
        }
        let (epoch, window) = order::window(settings, rows, per_epoch, step);
        let mut line = match one_step(learner, objective, settings, &window, step, monitor) {
            Err(mut error) => {
                if let TrainError::NonFinite { kept, .. } = &mut error {
                    metrics.sync()?;
                    *kept = keep(learner, settings, files, step, saved);
                }
                return Err(error);
            }
            Ok(line) => line,
        };
        line.epoch = epoch as f64 + (step % per_epoch + 1) as f64 / per_epoch as f64;
        if settings.eval_every > 0 && (step + 1) % settings.eval_every == 0 {
            line.eval = objective.evaluate(learner, &settings.cut())?;
        }
        metrics.append(&line)?;
        monitor.advance(1, Some(line.note()));
        let due = settings.checkpoint_every > 0 && (step + 1) % settings.checkpoint_every == 0;
        if due && step + 1 < steps {
            metrics.sync()?;
            checkpoint::save(learner, settings, files, step + 1)?;
            saved = step + 1;
        }
    }
    metrics.sync()?;
    let path = checkpoint::save_final(learner, settings, files, steps)?;
    let skipped = steps - learner.steps().min(steps);
    if skipped > 0 {
        tracing::warn!("{skipped} of {steps} steps were skipped: not finite");
    }
    Ok(Outcome::Finished(path))
}

/// Keeps the weights of the step before for a second try; says what there is to go on from.
fn keep<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    step: usize,
    saved: usize,
) -> &'static str {
    if step == 0 {
        return "nothing was trained yet";
    }
    if step > saved
        && let Err(error) = checkpoint::save(learner, settings, files, step)
    {
        tracing::warn!("the weights of the step before cannot be kept: {error}");
        return match saved {
            0 => "nothing is kept",
            _ => "the newest checkpoint is kept in checkpoints/",
        };
    }
    "the weights of the step before are kept in checkpoints/"
}

fn one_step<B: TrainingOps, O: Objective<B>>(
    learner: &mut Learner<B>,
    objective: &mut O,
    settings: &TrainSettings,
    window: &[usize],
    step: usize,
    monitor: &dyn Monitor,
) -> Result<StepMetrics, TrainError> {
    let begun = Instant::now();
    let rate = settings.schedule.rate(step);
    let report = objective.accumulate(learner, window, &settings.cut())?;
    let update = match report.bad_rows.is_empty() {
        true => learner.step(rate)?,
        false => StepReport {
            grad_norm: f64::NAN,
            updated: false,
        },
    };
    if !update.updated {
        learner.discard_gradients();
        let (what, rows) = match report.bad_rows.is_empty() {
            true => ("gradient", offenders(learner, objective, window)?),
            false => ("loss", report.bad_rows),
        };
        refuse(learner, settings, step, what, rows)?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    Ok(StepMetrics {
        step: step + 1,
        epoch: 0.0,
        loss: report.loss,
        learning_rate: rate,
        grad_norm: update.grad_norm,
        pairs: report.pairs,
        tokens: report.tokens,
        tokens_per_second: report.tokens as f64 / seconds.max(1e-9),
        step_seconds: seconds,
        peak_memory_bytes: monitor.peak_memory_bytes(),
        skipped: !update.updated,
        eval: None,
    })
}

/// The rows of a window whose gradients are not finite by themselves; all of them where it is only
/// their sum.
fn offenders<B: TrainingOps, O: Objective<B>>(
    learner: &mut Learner<B>,
    objective: &mut O,
    window: &[usize],
) -> Result<Vec<String>, TrainError> {
    let mut found = Vec::new();
    for &row in window {
        objective.accumulate(learner, &[row], &Cut::rows(1))?;
        if !learner.grad_norm()?.is_finite() {
            found.push(objective.row_name(row));
        }
        learner.discard_gradients();
    }
    if found.is_empty() {
        found.extend(window.iter().map(|&row| objective.row_name(row)));
    }
    Ok(found)
}

/// Ends the training at a step that is not finite, or lets it be skipped where the weights are
/// sound.
fn refuse<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    step: usize,
    what: &'static str,
    rows: Vec<String>,
) -> Result<(), TrainError> {
    if !settings.skip_non_finite {
        return Err(TrainError::NonFinite {
            step: step + 1,
            what,
            rows,
            kept: "",
            advice: settings.advice,
        });
    }
    checkpoint::refuse_broken(learner, settings, step)?;
    tracing::warn!(
        step = step + 1,
        ?rows,
        "the {what} is not finite; step skipped"
    );
    Ok(())
}
