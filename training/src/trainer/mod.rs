//! The training loop: order, accumulation, schedule, metrics, checkpoints, exact resume.
//!
//! What a row is worth is the objective's business: preference pairs or supervised examples.

mod checkpoint;
mod error;
mod metrics;
mod objective;
mod optimizer_state;
mod order;
mod preference;
mod reference;
mod resume;
mod settings;
mod supervised;

use std::path::PathBuf;
use std::time::Instant;

use sppo_model::ops::TrainingOps;

pub use error::TrainError;
pub use metrics::{PairMetrics, RankMetrics, StepMetrics, TokenMetrics};
pub use objective::{Cut, MemoryBudget, Objective, WindowReport};
pub use optimizer_state::restore;
pub use preference::PreferenceObjective;
pub use reference::reference_logps;
pub use resume::{Begun, Saved, base_of_adapters, claim_training, training_output};
pub use settings::{Adapters, ModelFiles, TrainSettings};
pub use supervised::SupervisedObjective;

use crate::cluster::{any, begin, gather};
use crate::learner::{Learner, StepReport};
use crate::monitor::Monitor;
use metrics::StepLog;

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
    let world = learner.world();
    let rows = objective.rows();
    let per_epoch = settings.steps_per_epoch(rows);
    let steps = settings.steps(rows);
    let (folder, tensorboard) = (&settings.output_dir, settings.tensorboard);
    let mut log = match world.leads() {
        true => Some(StepLog::open(folder, start, tensorboard)?),
        false => None,
    };
    let sync = |log: &Option<StepLog>| log.iter().try_for_each(StepLog::sync);
    let mut num_tokens = tokens_before(objective, settings, start);
    let mut saved = start;
    for step in start..steps {
        begin(format!("training, step {}", step + 1));
        if any(world, monitor.interrupted()) {
            sync(&log)?;
            if step > saved {
                checkpoint::save(learner, settings, files, step)?;
            }
            return Ok(Outcome::Interrupted(step));
        }
        let (epoch, window) = order::window(settings, rows, per_epoch, step);
        let mut line = match one_step(learner, objective, settings, &window, step, monitor) {
            Err(mut error) => {
                if let TrainError::NonFinite { kept, .. } = &mut error {
                    sync(&log)?;
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
        num_tokens += line.tokens;
        line.num_tokens = num_tokens;
        if let Some(log) = &mut log {
            log.append(&line)?;
        }
        monitor.advance(1, Some(line.note()));
        let due = settings.checkpoint_every > 0 && (step + 1) % settings.checkpoint_every == 0;
        if due && step + 1 < steps {
            sync(&log)?;
            checkpoint::save(learner, settings, files, step + 1)?;
            saved = step + 1;
        }
    }
    sync(&log)?;
    // From here a later stop_at_epoch goes on.
    if settings.stops_early() && steps > saved {
        checkpoint::save(learner, settings, files, steps)?;
    }
    let path = checkpoint::save_final(learner, settings, files, steps)?;
    let skipped = steps - learner.steps().min(steps);
    if skipped > 0 {
        tracing::warn!("{skipped} of {steps} steps were skipped: not finite");
    }
    Ok(Outcome::Finished(path))
}

/// Tokens of the first `steps` steps.
fn tokens_before<B: TrainingOps, O: Objective<B>>(
    objective: &O,
    settings: &TrainSettings,
    steps: usize,
) -> usize {
    let rows = objective.rows();
    let per_epoch = settings.steps_per_epoch(rows);
    let whole = steps / per_epoch.max(1);
    let all: Vec<usize> = (0..rows).collect();
    let begun = (whole * per_epoch..steps).map(|step| {
        let (_, window) = order::window(settings, rows, per_epoch, step);
        objective.tokens(&window)
    });
    whole * objective.tokens(&all) + begun.sum::<usize>()
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
    let (ranks, peak) = of_ranks(learner, seconds, monitor.peak_memory_bytes());
    Ok(StepMetrics {
        step: step + 1,
        epoch: 0.0,
        loss: report.loss,
        learning_rate: rate,
        grad_norm: update.grad_norm,
        pairs: report.pairs,
        token_metrics: report.token_metrics,
        tokens: report.tokens,
        num_tokens: 0,
        rows_cut: report.truncation.rows,
        tokens_cut: report.truncation.tokens,
        responses_without_end: report.truncation.responses_without_end,
        tokens_per_second: report.tokens as f64 / seconds.max(1e-9),
        step_seconds: seconds,
        peak_memory_bytes: peak,
        ranks,
        skipped: !update.updated,
        eval: None,
    })
}

/// What the step took for being one of many processes, and the highest peak of memory. Collective.
fn of_ranks<B: TrainingOps>(
    learner: &mut Learner<B>,
    seconds: f64,
    peak: u64,
) -> (Option<RankMetrics>, u64) {
    let world = learner.world();
    if world.size() == 1 {
        return (None, peak);
    }
    let traffic = learner.take_traffic();
    let all = gather(world, (seconds - traffic.seconds, peak));
    let slowest = all.iter().map(|(seconds, _)| *seconds).fold(0.0, f64::max);
    let peak = all.iter().map(|(_, peak)| *peak).max().unwrap_or(peak);
    let ranks = RankMetrics {
        communication_seconds: traffic.seconds,
        communication_bytes: traffic.bytes,
        slowest_rank_seconds: slowest,
    };
    (Some(ranks), peak)
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
