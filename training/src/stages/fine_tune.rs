//! Prompt/response rows → fine-tuned model.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::ops::TrainingOps;

use super::error::StageError;
use super::folder::{open_folder, with_folder};
use super::learning::{Start, learn, refuse_own_output};
use crate::cluster::{lead, world};
use crate::config::{self, OnBadRow, Rows, Section, parts_for_ranks};
use crate::data::{RowFile, SftRow, rows_fingerprint};
use crate::files::{Existing, MadeFrom};
use crate::monitor::Monitor;
use crate::optimizer::{self, Schedule};
use crate::tokenise::{RowTokeniser, tokenise_supervised};
use crate::trainer::{Begun, SupervisedObjective, TrainSettings, claim_training, training_output};

/// Supervised fine-tuning of `model`.
#[derive(Clone, Copy, Debug)]
pub struct FineTuning<'a> {
    /// The section `[sft]`.
    pub config: &'a config::Sft,
    /// Folder of the model to start from.
    pub model: &'a Path,
    /// Chat template of its text; one from a file goes along with the trained model.
    pub template: TemplateSource<'a>,
    /// File of prompt/response rows.
    pub data: &'a Path,
    /// The section `[logging]`.
    pub logging: &'a config::Logging,
    /// What becomes of rows that cannot be used.
    pub on_bad_row: OnBadRow,
    /// Receives metrics.jsonl, checkpoints/ and model/.
    pub output_dir: &'a Path,
    /// Of the order of the rows.
    pub seed: u64,
    /// What becomes of a training of other things that is there.
    pub existing: Existing<'a>,
    /// The day that the chat template sees; today unless given.
    pub date: Option<NaiveDate>,
}

/// A finished fine-tuning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FineTuned {
    /// Folder of the model.
    pub model: PathBuf,
    /// Rows that could not be used and are left out.
    pub left_out: usize,
}

/// Fine-tunes on prompt/response rows. The caller holds the lock of
/// the output folder.
pub fn fine_tune<B: TrainingOps>(
    job: FineTuning<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<FineTuned, StageError> {
    let config = job.config;
    let (batch_size, parts) = (config.batch_size, config.gradient_accumulation);
    parts_for_ranks("sft", batch_size, parts, world().size())?;
    refuse_own_output(job.model, job.output_dir)?;
    lead(world(), || training_output(job.output_dir).refuse_foreign())?;
    let file = RowFile::<SftRow>::read(job.data, job.on_bad_row.skips())?;
    let made_from = MadeFrom::new("sft")
        .setting("seed", job.seed)
        .settings(job.on_bad_row.setting())
        .input("data", job.data, rows_fingerprint(&file.rows))
        .settings(config.effective().into_settings());
    let mark = training_output(job.output_dir).mark;
    let folder = open_folder(job.model, job.template, job.date, &mark)?;
    let made_from = with_folder(made_from, &folder, job.template)?;
    let text = folder.require_text()?.clone();
    let model = folder.config();
    let limit = config.max_length.min(model.max_position_embeddings);
    // Half for the prompt where both are too long together.
    let end = folder.end_of_turn()?;
    let tokeniser = RowTokeniser::new(text, end, Rows::Clean, limit, limit / 2)?;
    let tokenised = tokenise_supervised(&file, &tokeniser, model.vocab_size, limit)?;
    let examples = tokenised.rows;
    let left_out = file.left_out + tokenised.left_out;
    let settings = settings(job, made_from, examples.len());
    let steps = settings.steps(examples.len());
    let begun = lead(world(), || {
        claim_training(job.output_dir, &settings.made_from, steps, job.existing)
    })?;
    let resumed = match begun {
        Begun::Finished(model) => return Ok(FineTuned { model, left_out }),
        Begun::Unfinished(resumed) => resumed.map(|found| *found),
    };
    let start = Start {
        model: job.model,
        template: job.template,
        dtype: DType::F32,
        adapters: None,
        optimizer: optimizer::of_sft(config),
        recompute: config::Recompute::None,
        max_grad_norm: config.max_grad_norm,
        resumed,
        label: "fine-tuning",
    };
    let objective = SupervisedObjective::new(examples)
        .with_truncations(tokenised.truncations)
        .with_token_metrics(job.logging.token_metrics);
    let model = learn::<B, _>(start, model, objective, &settings, device, monitor)?;
    Ok(FineTuned { model, left_out })
}

fn settings(job: FineTuning<'_>, made_from: MadeFrom, examples: usize) -> TrainSettings {
    let config = job.config;
    TrainSettings {
        output_dir: job.output_dir.into(),
        made_from,
        epochs: config.epochs,
        stop_at_epoch: None,
        batch_size: config.batch_size,
        memory_budget: None,
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
        advice: "lower sft.learning_rate or set sft.max_grad_norm",
        save_dtype: DType::F32,
        tensorboard: job.logging.tensorboard,
        rows: examples,
    }
    .with_schedule(examples, |steps| {
        (config.warmup_ratio * steps as f64).ceil() as usize
    })
}
