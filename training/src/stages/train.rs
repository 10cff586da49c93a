//! Pairs → trained model; prompt/response rows → fine-tuned model.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};

use super::{Policy, StageError};
use crate::config::{self, OnNonFinite, Precision, Rows};
use crate::data::{PairRow, SftRow, check_probabilities, read_rows};
use crate::learner::Learner;
use crate::monitor::Monitor;
use crate::optimizer::{AdamW, Optimizer, RmsProp, Schedule, Sgd};
use crate::trainer::{
    ModelFiles, Objective, Outcome, PreferenceObjective, PreferencePair, SupervisedObjective,
    TrainSettings, clear_other_work, fingerprint, finished_model, latest_checkpoint,
    model_fingerprint, reference_logps, restore, tokenise_pairs, tokenise_supervised, train,
};

/// One iteration's training: `model` is start and reference.
#[derive(Clone, Copy, Debug)]
pub struct PairTraining<'a> {
    pub config: &'a config::Train,
    pub model: &'a Path,
    pub data: &'a Path,
    pub output_dir: &'a Path,
}

/// Supervised fine-tuning of `model`.
#[derive(Clone, Copy, Debug)]
pub struct FineTuning<'a> {
    pub config: &'a config::Sft,
    pub model: &'a Path,
    pub data: &'a Path,
    pub output_dir: &'a Path,
    pub seed: u64,
}

/// Trains on pairs; gives the folder of the trained model. A finished training of the same
/// inputs is not repeated, an unfinished one goes on from its newest checkpoint.
pub fn train_pairs<B: AutodiffBackend>(
    job: PairTraining<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<PathBuf, StageError> {
    let config = job.config;
    refuse_own_output(job.model, job.output_dir)?;
    let rows = read_pairs(job.data, config)?;
    let model_key = model_fingerprint(job.model)?;
    let data = format!("{rows:?}");
    let settings_text = format!("{:?}", config.that_matters());
    let key = fingerprint([
        ("pairs", data.as_bytes()),
        ("model", model_key.as_bytes()),
        ("train", settings_text.as_bytes()),
    ]);
    if let Some(done) = finished_model(job.output_dir, &key) {
        return Ok(done);
    }
    let dtype = match config.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    };
    let resumed = latest_checkpoint(job.output_dir, &key);
    // On the training backend, so that the first step finds no difference between the two.
    let reference = Policy::<B>::load(job.model, dtype, device)?.frozen();
    let pairs = tokenise(&rows, &reference, config)?;
    let held_out = match &config.eval_data {
        Some(path) => tokenise(&read_pairs(path, config)?, &reference, config)?,
        None => Vec::new(),
    };
    let reference_key = format!("{model_key} {}", config.precision);
    let logps = |pairs: &[PreferencePair], monitor: &dyn Monitor| {
        reference_pass(
            &reference,
            &reference_key,
            pairs,
            config.batch_size,
            job.output_dir,
            monitor,
        )
    };
    let known = logps(&pairs, monitor)?;
    let held_out_known = logps(&held_out, monitor)?;
    let settings = TrainSettings {
        output_dir: job.output_dir.into(),
        key,
        epochs: config.epochs,
        stop_at_epoch: config.stop_at_epoch,
        batch_size: config.batch_size,
        gradient_accumulation: config.gradient_accumulation,
        schedule: Schedule {
            kind: config.schedule,
            learning_rate: config.learning_rate,
            warmup_steps: 0,
            total_steps: 0,
        },
        shuffle: config.shuffle,
        seed: config.seed,
        checkpoint_every: config.checkpoint_every,
        keep_checkpoints: config.keep_checkpoints,
        eval_every: config.eval_every,
        skip_non_finite: config.on_non_finite == OnNonFinite::Skip,
        save_dtype: dtype,
        summary: format!(
            "{} of {} pairs with the {} loss (beta {}), started from {}.",
            "Self-play preference optimization (arXiv 2405.00675)",
            pairs.len(),
            config.loss,
            config.beta,
            job.model.display()
        ),
    }
    .with_schedule(pairs.len(), |steps| config.warmup(steps));
    let objective = PreferenceObjective::new(pairs, known, config.loss, config.beta)
        .with_held_out(held_out, held_out_known);
    let optimizer = match config.optimizer {
        config::Optimizer::RmsProp => Optimizer::RmsProp(RmsProp {
            alpha: config.alpha,
            eps: config.eps,
            weight_decay: config.weight_decay,
        }),
        config::Optimizer::AdamW => Optimizer::AdamW(AdamW {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay: config.weight_decay,
        }),
        config::Optimizer::Sgd => Optimizer::Sgd(Sgd {
            weight_decay: config.weight_decay,
        }),
    };
    let files = reference.config.clone();
    drop(reference);
    let start = Start {
        model: job.model,
        dtype,
        optimizer,
        recompute: config.recompute,
        max_grad_norm: config.max_grad_norm,
        resumed,
        label: "training",
    };
    run::<B, _>(start, &files, objective, &settings, device, monitor)
}

/// Refuses to train a model that the result would replace.
fn refuse_own_output(model: &Path, output_dir: &Path) -> Result<(), StageError> {
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

fn read_pairs(path: &Path, config: &config::Train) -> Result<Vec<PairRow>, StageError> {
    let rows = read_rows::<PairRow>(path)?;
    let keys = config.loss.needed_probabilities();
    check_probabilities(path, &rows, config.loss.word(), keys)?;
    Ok(rows)
}

fn tokenise<B: Backend>(
    rows: &[PairRow],
    policy: &Policy<B>,
    config: &config::Train,
) -> Result<Vec<PreferencePair>, StageError> {
    let tokeniser =
        policy.row_tokeniser(config.rows, config.max_length, config.max_prompt_length)?;
    Ok(tokenise_pairs(
        rows,
        tokeniser.as_ref(),
        config.max_length,
        policy.config.vocab_size,
        policy.config.max_position_embeddings,
    )?)
}

fn reference_pass<B: Backend>(
    reference: &Policy<B>,
    model_key: &str,
    pairs: &[PreferencePair],
    batch_size: usize,
    dir: &Path,
    monitor: &dyn Monitor,
) -> Result<Vec<[f64; 2]>, StageError> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let logps = reference_logps(&reference.model, model_key, pairs, batch_size, dir, monitor)?;
    logps.ok_or(StageError::Interrupted)
}

/// Fine-tunes on prompt/response rows; gives the folder of the model.
pub fn fine_tune<B: AutodiffBackend>(
    job: FineTuning<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<PathBuf, StageError> {
    let config = job.config;
    refuse_own_output(job.model, job.output_dir)?;
    let rows = read_rows::<SftRow>(job.data)?;
    let model_key = model_fingerprint(job.model)?;
    let data = format!("{rows:?}");
    let settings_text = format!("{:?} {}", config.that_matters(), job.seed);
    let key = fingerprint([
        ("rows", data.as_bytes()),
        ("model", model_key.as_bytes()),
        ("sft", settings_text.as_bytes()),
    ]);
    if let Some(done) = finished_model(job.output_dir, &key) {
        return Ok(done);
    }
    let resumed = latest_checkpoint(job.output_dir, &key);
    let policy = Policy::<B::InnerBackend>::load(job.model, DType::F32, device)?;
    policy.require_text()?;
    let limit = config.max_length.min(policy.config.max_position_embeddings);
    // Half for the prompt where both are too long together.
    let tokeniser = policy.row_tokeniser(Rows::Clean, limit, limit / 2)?;
    let examples = match &tokeniser {
        Some(tokeniser) => tokenise_supervised(&rows, tokeniser, policy.config.vocab_size, limit)?,
        None => Vec::new(),
    };
    let settings = TrainSettings {
        output_dir: job.output_dir.into(),
        key,
        epochs: config.epochs,
        stop_at_epoch: None,
        batch_size: config.batch_size,
        gradient_accumulation: config.gradient_accumulation,
        schedule: Schedule {
            kind: config.schedule,
            learning_rate: config.learning_rate,
            warmup_steps: 0,
            total_steps: 0,
        },
        shuffle: true,
        seed: job.seed,
        checkpoint_every: config.checkpoint_every,
        keep_checkpoints: 1,
        eval_every: 0,
        skip_non_finite: false,
        save_dtype: DType::F32,
        summary: format!(
            "Supervised fine-tuning on {} rows, started from {}.",
            examples.len(),
            job.model.display()
        ),
    }
    .with_schedule(examples.len(), |steps| {
        (config.warmup_ratio * steps as f64).ceil() as usize
    });
    let optimizer = match config.optimizer {
        config::Optimizer::RmsProp => Optimizer::RmsProp(RmsProp {
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        }),
        config::Optimizer::AdamW => Optimizer::AdamW(AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }),
        config::Optimizer::Sgd => Optimizer::Sgd(Sgd { weight_decay: 0.0 }),
    };
    let start = Start {
        model: job.model,
        dtype: DType::F32,
        optimizer,
        recompute: config::Recompute::None,
        max_grad_norm: config.max_grad_norm,
        resumed,
        label: "fine-tuning",
    };
    let files = policy.config.clone();
    drop(policy);
    let objective = SupervisedObjective::new(examples);
    run::<B, _>(start, &files, objective, &settings, device, monitor)
}

/// Where a training starts from.
struct Start<'a> {
    model: &'a Path,
    dtype: DType,
    optimizer: Optimizer,
    recompute: config::Recompute,
    max_grad_norm: Option<f64>,
    resumed: Option<(PathBuf, crate::trainer::Saved)>,
    label: &'a str,
}

fn run<B: AutodiffBackend, O: Objective<B>>(
    start: Start<'_>,
    config: &sppo_model::llama::LlamaConfig,
    mut objective: O,
    settings: &TrainSettings,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<PathBuf, StageError> {
    let weights = start.resumed.as_ref().map_or(start.model, |(dir, _)| dir);
    let (_, model) = sppo_model::llama::Llama::<B>::load(weights, start.dtype, device)?;
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
