//! Throughput of training and generation on random rows.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::DType;
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use sppo_model::generate::{Engine, Event, Request, SamplingParams};
use sppo_model::llama::{Decoder, Llama, LlamaConfig, Lora};
use sppo_model::ops::{DeviceError, ModelOps, TrainingOps};

use super::error::StageError;
use super::generate::plan;
use crate::config::{Loss, Recompute, TrainLora};
use crate::cost::{Batch, flops};
use crate::data::{PairContent, PairProbabilities, PairRow, RowFile, read_rows};
use crate::learner::Learner;
use crate::monitor::Monitor;
use crate::optimizer::{Optimizer, RmsProp};
use crate::tokenise::{PreferencePair, TokenisedPair, tokenise_pairs};
use crate::trainer::{Cut, Objective, PreferenceObjective};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    /// Folder of the model.
    pub model: &'a Path,
    /// Pre-tokenised pairs to train on instead of random ones.
    pub pairs: Option<&'a Path>,
    /// Half of the measurement, where the other is not wanted.
    pub only: Option<Half>,
    /// Pairs of one step.
    pub batch: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Most tokens of a response; they have half of it to all of it.
    pub response: usize,
    /// Timed optimizer steps, behind one that is not timed.
    pub steps: usize,
    /// Sequences sampled together.
    pub generate: usize,
    /// New tokens of each.
    pub new: usize,
    /// With it, four times as many sequences pass through, of this many to `new` new tokens.
    pub shortest: Option<usize>,
    /// Of the sampling; 0 is greedy.
    pub temperature: f64,
    /// Samples from the most likely tokens that together have this probability.
    pub top_p: f64,
    /// Timed runs of the generation, of which the fastest counts.
    pub repeat: usize,
    /// Of weights, activations and cache.
    pub dtype: DType,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Trains adapters of this rank instead of all weights.
    pub lora: Option<usize>,
}

/// What a bench measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Training on pairs.
    Train,
    /// Generation of responses.
    Generate,
}

/// Tokens are those of prompts and responses, without padding; generation counts new ones only.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BenchReport {
    /// None where training is not measured.
    pub train_tokens_per_s: Option<f64>,
    /// Of one optimizer step.
    pub train_step_s: Option<f64>,
    /// Model FLOPs ([`flops::training`]) a second, in units of 1e12.
    pub train_tflops_per_s: Option<f64>,
    /// None where generation is not measured.
    pub generate_tokens_per_s: Option<f64>,
    /// Highest memory: of the device's allocator on a GPU, resident memory of the process else.
    pub peak_memory_mib: f64,
}

/// What the timed steps came to.
struct Timed {
    seconds: f64,
    tokens: usize,
    flops: f64,
}

/// Tokens of all random rows together, 1 GiB of them.
const MOST_TOKENS: u128 = 1 << 28;

/// Refuses numbers that do not go together or that no machine could hold.
fn check(job: Bench<'_>) -> Result<(), StageError> {
    let refuse = |message: String| Err(StageError::Input(message));
    if let Some(least) = job.shortest.filter(|least| *least > job.new) {
        return refuse(format!(
            "--shortest {least} is more than --new {}; sequences have from --shortest to --new new tokens",
            job.new
        ));
    }
    if job.pairs.is_some() && job.only == Some(Half::Generate) {
        return refuse("--pairs is for training, which --only generate leaves out".into());
    }
    let product = |numbers: [usize; 3]| numbers.iter().map(|n| *n as u128).product::<u128>();
    let rows = product([job.batch, job.steps + 1, 1]);
    let trained = product([job.batch, job.steps + 1, job.prompt + 2 * job.response]);
    let sampled = product([4, job.generate, job.prompt + job.new]);
    match trained.max(sampled) > MOST_TOKENS {
        true => refuse(format!(
            "{rows} pairs (--batch times one more than --steps) and {} sequences (--generate) hold more than {MOST_TOKENS} tokens; lower --batch, --steps, --generate or their lengths",
            job.generate
        )),
        false => Ok(()),
    }
}

/// Measures a model folder.
pub fn bench<B: TrainingOps>(
    job: Bench<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<BenchReport, StageError> {
    check(job)?;
    let wanted = |half| job.only.is_none_or(|only| only == half);
    let generate = wanted(Half::Generate).then(|| time_generation::<B>(job, device, monitor));
    let generate_tokens_per_s = generate.transpose()?;
    // Read before pages are given back, which a device's number then no longer holds.
    let peak_of_generation = monitor.peak_memory_bytes();
    B::memory_cleanup(device);
    let train = wanted(Half::Train).then(|| time_training::<B>(job, device, monitor));
    let train = train.transpose()?;
    let peak = monitor.peak_memory_bytes();
    let of_train = |value: &dyn Fn(&Timed) -> f64| train.as_ref().map(value);
    Ok(BenchReport {
        train_tokens_per_s: of_train(&|t| t.tokens as f64 / t.seconds),
        train_step_s: of_train(&|t| t.seconds / job.steps as f64),
        train_tflops_per_s: of_train(&|t| t.flops / t.seconds / 1e12),
        generate_tokens_per_s,
        peak_memory_mib: peak.max(peak_of_generation) as f64 / (1 << 20) as f64,
    })
}

fn check_context(job: Bench<'_>, config: &LlamaConfig, more: usize) -> Result<(), StageError> {
    let (longest, context) = (job.prompt + more, config.max_position_embeddings);
    match longest <= context {
        true => Ok(()),
        false => Err(StageError::Input(format!(
            "sequences of {longest} tokens do not fit into the model's context of {context}; lower --prompt, --response or --new"
        ))),
    }
}

fn random_ids(generator: &mut ChaCha12Rng, count: usize, vocab: usize) -> Vec<u32> {
    (0..count)
        .map(|_| generator.random_range(0..vocab as u32))
        .collect()
}

/// Pairs of random tokens.
fn random_pairs(
    job: Bench<'_>,
    count: usize,
    config: &LlamaConfig,
) -> Result<Vec<PreferencePair>, StageError> {
    check_context(job, config, job.response)?;
    let mut generator = ChaCha12Rng::seed_from_u64(0);
    let pair = |number: usize| {
        let mut ids = |count| random_ids(&mut generator, count, config.vocab_size);
        let prompt = ids(job.prompt);
        let mut lengths = ChaCha12Rng::seed_from_u64(number as u64 + 1);
        let mut length = || lengths.random_range(job.response.div_ceil(2)..=job.response);
        let (chosen, rejected) = (ids(length()), ids(length()));
        let probabilities = PairProbabilities::new(0.8, 0.7, 0.3);
        let pair = TokenisedPair::from_ids(&prompt, &chosen, &rejected, probabilities, usize::MAX)?;
        Ok(PreferencePair {
            name: number.to_string(),
            pair,
        })
    };
    (0..count).map(pair).collect()
}

fn is_text(row: &PairRow) -> bool {
    matches!(row.content, PairContent::Text { .. })
}

/// The first `count` rows of a file of pre-tokenised pairs.
fn given_pairs(
    path: &Path,
    count: usize,
    config: &LlamaConfig,
) -> Result<Vec<PreferencePair>, StageError> {
    let mut rows = read_rows::<PairRow>(path)?;
    if rows.len() < count {
        return Err(StageError::Input(format!(
            "{}: {} rows, but {count} are needed (--batch times one more than --steps)",
            path.display(),
            rows.len()
        )));
    }
    rows.truncate(count);
    if let Some(row) = rows.iter().position(is_text) {
        return Err(StageError::Input(format!(
            "{}: row {} holds text; sppo bench takes rows of ids (prompt_ids, chosen_ids, rejected_ids)",
            path.display(),
            row + 1
        )));
    }
    let (vocab, context) = (config.vocab_size, config.max_position_embeddings);
    let file = RowFile::of(path, rows);
    Ok(tokenise_pairs(&file, Err(path), usize::MAX, vocab, context)?.rows)
}

fn time_training<B: TrainingOps>(
    job: Bench<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<Timed, StageError> {
    let (config, model) = Llama::<B>::load(job.model, job.dtype, device)?;
    let count = job.batch * (job.steps + 1);
    let pairs = match job.pairs {
        Some(path) => given_pairs(path, count, &config)?,
        None => random_pairs(job, count, &config)?,
    };
    let lora = job.lora.map(|rank| TrainLora {
        rank,
        ..Default::default()
    });
    let lora: Option<Lora> = lora.as_ref().map(Into::into);
    let flops = pairs[job.batch..].chunks(job.batch).map(|batch| {
        let sequences: Vec<_> = batch.iter().flat_map(|p| p.pair.sides()).collect();
        flops::training(&config, lora.as_ref(), &Batch::of(&sequences))
    });
    let flops = flops.sum();
    // Known beforehand, as the trainer keeps them on disk; their values do not matter here.
    let reference = vec![[-1.0, -1.0]; count];
    let mut objective = PreferenceObjective::new(pairs, reference, Loss::Sppo, 0.001);
    let optimizer = Optimizer::RmsProp(RmsProp {
        alpha: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    });
    let model = match &lora {
        None => model,
        Some(lora) => model.with_new_adapters(&config, lora, 0)?,
    };
    let mut learner = Learner::new(model, optimizer, job.recompute, None);
    let mut step = |number: usize| {
        let window: Vec<usize> = (number * job.batch..(number + 1) * job.batch).collect();
        let report = Objective::<B>::accumulate(
            &mut objective,
            &mut learner,
            &window,
            &Cut::rows(job.batch),
        )?;
        learner.step(5e-7)?;
        Ok::<_, StageError>(report.tokens)
    };
    monitor.begin("training", "steps", 0, job.steps);
    step(0)?;
    sync::<B>(device)?;
    let begun = Instant::now();
    let mut tokens = 0;
    for number in 1..=job.steps {
        if monitor.interrupted() {
            return Err(StageError::Interrupted);
        }
        tokens += step(number)?;
        monitor.advance(1, None);
    }
    sync::<B>(device)?;
    monitor.end();
    Ok(Timed {
        seconds: begun.elapsed().as_secs_f64(),
        tokens,
        flops,
    })
}

fn time_generation<B: TrainingOps>(
    job: Bench<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<f64, StageError> {
    let (config, model) = Llama::<B::InnerBackend>::load(job.model, job.dtype, device)?;
    check_context(job, &config, job.new)?;
    let mut generator = ChaCha12Rng::seed_from_u64(1);
    let vocab = config.vocab_size;
    let mut lengths = ChaCha12Rng::seed_from_u64(2);
    let mut request = |number: usize, new: usize| {
        let params = SamplingParams {
            temperature: job.temperature,
            top_p: job.top_p,
            top_k: 0,
            max_new_tokens: new,
            stop_ids: Vec::new(),
            seed: 0,
            ..SamplingParams::default()
        };
        let prompt = random_ids(&mut generator, job.prompt, vocab);
        Request::new(number.to_string(), prompt, 1, params)
    };
    let mut wave = |new: &mut dyn FnMut() -> usize, count: usize| -> VecDeque<(usize, Request)> {
        (0..count).map(|n| (n, request(n, new()))).collect()
    };
    let warm = wave(&mut || job.new.min(2), job.generate);
    let timed = match job.shortest {
        None => wave(&mut || job.new, job.generate),
        // Enough to see slots change hands.
        Some(least) => wave(
            &mut || lengths.random_range(least..=job.new),
            4 * job.generate,
        ),
    };
    let plan = plan::<B::InnerBackend>(&config, &timed, job.generate, None, job.dtype)?;
    let decoder = Arc::new(Decoder::new(model, &config));
    let run = |requests: VecDeque<(usize, Request)>| {
        let mut engine = Engine::new(decoder.clone(), plan, None);
        for (_, request) in requests {
            engine.submit(request)?;
        }
        let mut tokens = 0;
        while !engine.is_idle() {
            let events = engine.step()?;
            let drawn = events.iter().filter(|e| matches!(e, Event::Token { .. }));
            tokens += drawn.count();
            if monitor.interrupted() {
                return Err(StageError::Interrupted);
            }
        }
        Ok::<usize, StageError>(tokens)
    };
    run(warm)?;
    let mut best = 0.0f64;
    for _ in 0..job.repeat {
        let begun = Instant::now();
        let tokens = run(timed.clone())?;
        best = best.max(tokens as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn sync<B: ModelOps>(device: &B::Device) -> Result<(), StageError> {
    B::sync(device)
        .map_err(|e| DeviceError(e.to_string()))
        .map_err(StageError::from)
}
