//! What a run takes before it starts: parameters, memory by part, tokens, operations and steps.

mod card;
mod fit;
mod judging;
mod ranks;
mod roofline;
mod rows;
mod shape;
mod table;

use burn::tensor::DType;
use serde::Serialize;
use sppo_model::generate::CachePlan;
use sppo_model::llama::{LlamaConfig, activations_dtype, prefill_tokens};

pub use card::Card;
pub use fit::Fit;
pub use ranks::{Cluster, Hours, OfRanks, Remedy};
pub use roofline::Roofline;
pub use shape::Assumed;

use crate::config::{Config, Recompute, Reduce};
use crate::cost::memory::{self, GenerationMemory, JudgingMemory, Training, TrainingMemory};
use crate::cost::{Batch, Sizes, flops};
use crate::optimizer;
use crate::stages::StageError;
use ranks::Job;
use rows::{IterationFlops, Rows};
use shape::Shape;

/// The plan of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Name of the model.
    pub model: String,
    /// Parameters of the model, without adapters.
    pub parameters: u64,
    /// Parameters that are trained; with adapters only theirs.
    pub trained_parameters: u64,
    /// Number format that the model is trained in.
    pub precision: &'static str,
    /// What the backward pass computes again, as `train.recompute` has it.
    pub recompute: &'static str,
    /// Number format that responses are generated in.
    pub generation_precision: &'static str,
    /// Pairs of one optimizer step.
    pub pairs_per_step: usize,
    /// Pairs that go through the model together, of the longest that may come.
    pub pairs_at_a_time: usize,
    /// Pairs that an iteration trains on.
    pub pairs_per_iteration: usize,
    /// Optimizer steps of an iteration, over all epochs.
    pub steps_per_iteration: usize,
    /// Iterations of the run; 1 where it trains on given pairs.
    pub iterations: usize,
    /// Of prompts and responses, no padding.
    pub tokens_per_step: f64,
    /// Floating-point operations of one optimizer step.
    pub flops_per_step: f64,
    /// Floating-point operations of one iteration, part by part.
    pub flops_per_iteration: IterationFlops,
    /// Memory of the training on pairs, of one of all ranks.
    pub training: TrainingMemory,
    /// Memory of the sampling; None where it trains on given pairs.
    pub generation: Option<GenerationMemory>,
    /// Memory of the judge's model; None where none is loaded here.
    pub judging: Option<JudgingMemory>,
    /// Memory of the fine-tuning; None without `sft.data`.
    pub fine_tuning: Option<TrainingMemory>,
    /// The highest of the above.
    pub peak_bytes: u64,
    /// Of a rank, where it is known, less what a GPU's driver takes.
    pub memory_bytes: Option<u64>,
    /// Whether the peak is below that.
    pub fits: Option<bool>,
    /// What would make the training fit; None where it does, or the memory is not known.
    pub remedy: Option<Remedy>,
    /// Why the job would not begin with so many ranks.
    pub refused: Option<String>,
    /// Traffic and time over ranks, and what is assumed for them.
    pub cluster: Cluster,
    /// What a step takes at least on one card; not for a CPU.
    pub roofline: Option<Roofline>,
    /// What other set-ups could train, on cards of some sizes; not for a CPU.
    pub elsewhere: Vec<Fit>,
    /// Where the numbers of rows and tokens come from.
    pub notes: Vec<String>,
}

impl Plan {
    /// The plan of a configuration; reads configurations, prompts and pairs, but no weights.
    pub fn new(config: &Config, assumed: Assumed) -> Result<Self, StageError> {
        let model = Shape::of(config)?;
        let train = &config.train;
        let rows = Rows::of(config, &model, &assumed)?;
        let training = Training {
            ordered: ordered(config, assumed.host),
            card: assumed.pool(),
            ..Training::of(train, &model.config, assumed.host)
        };
        let at_a_time = rows.at_a_time(config, &training);
        let generation = rows
            .generates
            .then(|| generation(config, &model.config, &rows, assumed));
        let generation = generation.transpose()?;
        let judging = rows
            .generates
            .then(|| judging::memory(config, &model.config, rows.longest_prompt, &assumed));
        let judging = judging.flatten();
        let fine_tuning = fine_tuning(config, &model.config, &assumed);
        let pairs_per_step = train.batch_size * train.gradient_accumulation;
        let epochs = train
            .stop_at_epoch
            .unwrap_or(train.epochs)
            .min(train.epochs);
        let steps = epochs * rows.pairs.div_ceil(pairs_per_step);
        let step = rows.mean(pairs_per_step);
        let job = Job {
            config,
            assumed: &assumed,
            memory: memory_bytes(&assumed),
            training: &training,
            fine_tuning: fine_tuning.as_ref(),
            generation: generation.as_ref(),
            judging: judging.as_ref(),
            rows: &rows,
            pairs_at_a_time: at_a_time,
            flops: rows.flops(config, &training, epochs),
            flops_per_step: flops::training(&model.config, training.lora.as_ref(), &step),
            steps,
        };
        let cluster = job.plan();
        let of_all = job.of(cluster.ranks);
        let memory = of_all.training;
        let mut notes = rows.notes.clone();
        let is_short = |mib: usize| memory.peak > (mib as u64) << 20;
        if train.memory_mib.is_some_and(is_short) {
            notes.push("one pair alone takes more than train.memory_mib".into());
        }
        Ok(Self {
            parameters: Sizes::of(&model.config, None).weights(),
            trained_parameters: training.trained(),
            precision: train.precision.word(),
            recompute: train.recompute.word(),
            pairs_per_step,
            pairs_at_a_time: at_a_time,
            pairs_per_iteration: rows.pairs,
            steps_per_iteration: steps,
            iterations: if rows.generates { config.iterations } else { 1 },
            tokens_per_step: rows.tokens(pairs_per_step),
            flops_per_step: job.flops_per_step,
            flops_per_iteration: job.flops,
            training: memory,
            fine_tuning: of_all.fine_tuning,
            peak_bytes: of_all.peak_bytes,
            memory_bytes: job.memory(cluster.ranks),
            fits: of_all.fits,
            remedy: job.remedy(),
            refused: of_all.refused,
            cluster,
            generation: generation.as_ref().map(|(memory, _)| *memory),
            judging,
            generation_precision: config.generate.precision.word(),
            roofline: (!assumed.host).then(|| job.roofline()),
            elsewhere: match assumed.host {
                true => Vec::new(),
                false => fit::elsewhere(config, &model.config, &rows),
            },
            notes,
            model: model.name,
        })
    }
}

/// Whether gradients are added by their owner, as `cluster.reduce` has it or the device's default.
fn ordered(config: &Config, host: bool) -> bool {
    match config.cluster.reduce {
        Some(reduce) => reduce == Reduce::Ordered,
        None => host,
    }
}

fn memory_bytes(assumed: &Assumed) -> Option<u64> {
    let driver = if assumed.host { 0 } else { fit::DRIVER << 20 };
    Some(assumed.memory?.saturating_sub(driver))
}

fn generation(
    config: &Config,
    model: &LlamaConfig,
    rows: &Rows,
    assumed: Assumed,
) -> Result<(GenerationMemory, CachePlan), StageError> {
    let generate = &config.generate;
    let context = model.max_position_embeddings;
    let tokens = (rows.longest_prompt + generate.max_new_tokens).min(context);
    let cores = match assumed.host {
        true => std::thread::available_parallelism().map_or(1, |n| n.get()),
        false => 1,
    };
    let budget = generate.cache_memory_mib.map(|mib| (mib as u64) << 20);
    let workers = CachePlan::workers_for(cores, generate.batch);
    let dtype = generate.precision.dtype();
    let pass = prefill_tokens(assumed.host);
    let of_cache = activations_dtype(assumed.host, dtype);
    let slots = CachePlan::new(
        model,
        of_cache,
        generate.batch,
        workers,
        tokens,
        pass,
        budget,
    )?;
    let memory = match assumed.host {
        true => memory::generation(model, dtype, &slots),
        false => memory::generation_on_gpu(model, dtype, &slots, assumed.pool()),
    };
    Ok((memory, slots))
}

fn fine_tuning(
    config: &Config,
    model: &LlamaConfig,
    assumed: &Assumed,
) -> Option<(Training, Batch)> {
    let sft = &config.sft;
    sft.data.as_ref()?;
    let training = Training {
        config: model.clone(),
        dtype: DType::F32,
        recompute: Recompute::None,
        optimizer_slots: optimizer::of_sft(sft).slots(),
        lora: None,
        accumulates: sft.gradient_accumulation > 1,
        host: assumed.host,
        card: assumed.pool(),
        ranks: 1,
        ordered: ordered(config, assumed.host),
    };
    let longest = sft.max_length.min(model.max_position_embeddings);
    Some((training, Batch::largest(sft.batch_size, longest)))
}
