//! Pairs → trained model.

use std::path::{Path, PathBuf};

use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::llama::{Llama, LlamaConfig};
use sppo_model::model_folder::ModelFolder;
use sppo_model::ops::{ModelOps, TrainingOps};

use super::error::StageError;
use super::folder::{open_folder, with_folder};
use super::learning::{Start, learn, model_key, refuse_own_output};
use crate::cluster::{self, lead, world};
use crate::config::{self, OnBadRow, OnNonFinite, Section, parts_for_ranks};
use crate::cost::Batch;
use crate::cost::memory::Training;
use crate::data::{PairRow, RowFile, check_probabilities, rows_fingerprint, warn_unfinished};
use crate::files::{Existing, MadeFrom, fingerprint, weights_fingerprint};
use crate::monitor::Monitor;
use crate::optimizer::{self, Schedule};
use crate::tokenise::{PreferencePair, RowTokeniser, Tokenised, Truncation, tokenise_pairs};
use crate::trainer::{
    Adapters, Begun, Cut, MemoryBudget, PreferenceObjective, TrainSettings, claim_training,
    reference_logps, training_output,
};

/// One iteration's training: `model` is start and reference.
#[derive(Clone, Copy, Debug)]
pub struct PairTraining<'a> {
    /// The section `[train]`.
    pub config: &'a config::Train,
    /// Folder of the model.
    pub model: &'a Path,
    /// Chat template of its text; one from a file goes along with the trained model.
    pub template: TemplateSource<'a>,
    /// File of pairs.
    pub data: &'a Path,
    /// The section `[logging]`.
    pub logging: &'a config::Logging,
    /// What becomes of rows that cannot be used.
    pub on_bad_row: OnBadRow,
    /// Receives metrics.jsonl, checkpoints/ and model/.
    pub output_dir: &'a Path,
    /// What becomes of a training of other things that is there.
    pub existing: Existing<'a>,
    /// The day that the chat template sees; today unless given.
    pub date: Option<NaiveDate>,
}

/// A finished training.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// Folder of the model, or of its adapters.
    pub model: PathBuf,
    /// What the length limits took from the pairs.
    pub truncation: Truncation,
    /// Pairs that could not be used and are left out.
    pub left_out: usize,
}

/// Trains on pairs; the caller holds the lock of the output folder. A finished training of the same inputs is not repeated, an unfinished one goes on
/// from its newest checkpoint.
pub fn train_pairs<B: TrainingOps>(
    job: PairTraining<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<Trained, StageError> {
    let config = job.config;
    let (batch_size, parts) = (config.batch_size, config.gradient_accumulation);
    parts_for_ranks("train", batch_size, parts, world().size())?;
    refuse_own_output(job.model, job.output_dir)?;
    lead(world(), || training_output(job.output_dir).refuse_foreign())?;
    warn_unfinished(job.data);
    let file = read_pairs(job.data, job)?;
    let model_key = model_key(job.model, job.template)?;
    let made_from = MadeFrom::new("train")
        .settings(config.effective().into_settings())
        .settings(job.on_bad_row.setting())
        .input("data", job.data, rows_fingerprint(&file.rows));
    let mark = training_output(job.output_dir).mark;
    let folder = open_folder(job.model, job.template, job.date, &mark)?;
    let made_from = with_folder(made_from, &folder, job.template)?;
    let dtype = config.precision.dtype();
    let Tokenised {
        rows: pairs,
        truncation,
        truncations,
        left_out,
    } = tokenise(&file, &folder, config)?;
    let left_out = file.left_out + left_out;
    let held_out = match &config.eval_data {
        Some(path) => tokenise(&read_pairs(path, job)?, &folder, config)?.rows,
        None => Vec::new(),
    };
    let memory_budget = memory_budget::<B>(config, folder.config(), &pairs)?;
    let settings = settings(job, made_from, pairs.len(), memory_budget.clone());
    let steps = settings.steps(pairs.len());
    let trained = |model| Trained {
        model,
        truncation,
        left_out,
    };
    let begun = lead(world(), || {
        claim_training(job.output_dir, &settings.made_from, steps, job.existing)
    })?;
    let resumed = match begun {
        Begun::Finished(model) => return Ok(trained(model)),
        Begun::Unfinished(resumed) => resumed.map(|found| *found),
    };
    let reference = folder.load::<B::InnerBackend>(dtype, device)?;
    let cut = Cut {
        batch_size: config.batch_size,
        memory_budget,
    };
    // Another device or batch may round otherwise in the last digit.
    let reference_key = format!(
        "{model_key} {} {} {:?} {}",
        config.precision,
        config.batch_size,
        config.memory_mib,
        B::name(device)
    );
    let logps = |pairs: &[PreferencePair], monitor: &dyn Monitor| {
        reference_pass(&reference, &reference_key, pairs, &cut, job, monitor)
    };
    let known = logps(&pairs, monitor)?;
    let held_out_known = logps(&held_out, monitor)?;
    let adapters = adapters(job, &model_key)?;
    let objective = PreferenceObjective::new(pairs, known, config.loss, config.beta)
        .with_truncations(truncations)
        .with_token_metrics(job.logging.token_metrics)
        .with_held_out(held_out, held_out_known);
    drop(reference);
    let start = Start {
        model: job.model,
        template: job.template,
        dtype,
        adapters,
        optimizer: optimizer::of_train(config),
        recompute: config.recompute,
        max_grad_norm: config.max_grad_norm,
        resumed,
        label: "training",
    };
    let config = folder.config();
    let model = learn::<B, _>(start, config, objective, &settings, device, monitor)?;
    Ok(trained(model))
}

/// The bound on memory, where one is given; an error where a pair does not fit by itself.
pub(super) fn memory_budget<B: ModelOps>(
    config: &config::Train,
    model: &LlamaConfig,
    pairs: &[PreferencePair],
) -> Result<Option<MemoryBudget>, StageError> {
    let Some(mib) = config.memory_mib else {
        return Ok(None);
    };
    let memory_budget = MemoryBudget {
        training: Training::of(config, model, B::ON_HOST),
        bytes: (mib as u64) << 20,
    };
    for pair in pairs {
        let needed = memory_budget
            .training
            .memory(&Batch::of(&pair.pair.sides()));
        if needed.peak > memory_budget.bytes {
            return Err(StageError::Input(format!(
                "row {}: training on it alone takes {} MiB, and train.memory_mib is {mib}; {}",
                pair.name,
                needed.peak.div_ceil(1 << 20),
                "raise it, or see what takes how much with sppo plan"
            )));
        }
    }
    Ok(Some(memory_budget))
}

/// The adapters to train, where the configuration asks for some.
fn adapters(job: PairTraining<'_>, model_key: &str) -> Result<Option<Adapters>, StageError> {
    let Some(config) = &job.config.lora else {
        return Ok(None);
    };
    // Another base gets other values, so that the iterations of a run do not all start alike.
    let seed = job.config.seed.to_le_bytes();
    let drawn = fingerprint([("model", model_key.as_bytes()), ("seed", &seed)]);
    Ok(Some(Adapters {
        lora: config.into(),
        base: weights_fingerprint(job.model)?,
        seed: u64::from_str_radix(&drawn[..16], 16).unwrap_or(job.config.seed),
    }))
}

fn settings(
    job: PairTraining<'_>,
    made_from: MadeFrom,
    pairs: usize,
    memory_budget: Option<MemoryBudget>,
) -> TrainSettings {
    let config = job.config;
    TrainSettings {
        output_dir: job.output_dir.into(),
        made_from,
        epochs: config.epochs,
        stop_at_epoch: config.stop_at_epoch,
        batch_size: config.batch_size,
        memory_budget,
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
        advice: "train.on_non_finite = \"skip\" goes on from here; a lower train.learning_rate or train.max_grad_norm starts anew",
        save_dtype: config.precision.dtype(),
        tensorboard: job.logging.tensorboard,
        rows: pairs,
    }
    .with_schedule(pairs, |steps| config.warmup(steps))
}

fn read_pairs(path: &Path, job: PairTraining<'_>) -> Result<RowFile<PairRow>, StageError> {
    let mut file = RowFile::read(path, job.on_bad_row.skips())?;
    let loss = job.config.loss;
    check_probabilities(&mut file, loss.word(), loss.needed_probabilities())?;
    Ok(file)
}

fn tokenise(
    file: &RowFile<PairRow>,
    folder: &ModelFolder,
    config: &config::Train,
) -> Result<Tokenised<PreferencePair>, StageError> {
    let (mode, longest_prompt) = (config.rows, config.max_prompt_length);
    let tokeniser = RowTokeniser::of_folder(folder, mode, config.max_length, longest_prompt)?;
    Ok(tokenise_pairs(
        file,
        tokeniser.as_ref().ok_or(folder.path()),
        config.max_length,
        folder.config().vocab_size,
        folder.config().max_position_embeddings,
    )?)
}

fn reference_pass<B: ModelOps>(
    reference: &Llama<B>,
    model_key: &str,
    pairs: &[PreferencePair],
    cut: &Cut,
    job: PairTraining<'_>,
    monitor: &dyn Monitor,
) -> Result<Vec<[f64; 2]>, StageError> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let logps = reference_logps(
        cluster::world(),
        (reference, model_key),
        pairs,
        cut,
        job.output_dir,
        job.existing,
        monitor,
    )?;
    logps.ok_or(StageError::Interrupted)
}
