//! Throughput of training and generation on random rows.

use std::path::Path;
use std::time::Instant;

use burn::tensor::DType;
use burn::tensor::backend::{AutodiffBackend, Backend};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use serde::Serialize;
use sppo_model::generate::{Request, SamplingParams};

use super::{Policy, StageError};
use crate::config::{Loss, Recompute};
use crate::learner::Learner;
use crate::monitor::Monitor;
use crate::optimizer::{Optimizer, RmsProp};
use crate::tokenise::TokenisedPair;
use crate::trainer::{Objective, PreferenceObjective, PreferencePair, peak_memory_bytes};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Bench<'a> {
    pub model: &'a Path,
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
    pub dtype: DType,
    pub recompute: Recompute,
}

/// Tokens are those of prompts and responses, without padding; generation counts new ones only.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BenchReport {
    pub train_tokens_per_s: f64,
    pub generate_tokens_per_s: f64,
    /// Highest resident memory of the process (of the host, not of a GPU).
    pub peak_memory_mib: f64,
}

/// Measures a model folder.
pub fn bench<B: AutodiffBackend>(
    job: Bench<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<BenchReport, StageError> {
    let generate_tokens_per_s = time_generation::<B>(job, device, monitor)?;
    let train_tokens_per_s = time_training::<B>(job, device, monitor)?;
    Ok(BenchReport {
        train_tokens_per_s,
        generate_tokens_per_s,
        peak_memory_mib: peak_memory_bytes() as f64 / (1 << 20) as f64,
    })
}

fn check_room(
    job: Bench<'_>,
    config: &sppo_model::llama::LlamaConfig,
    more: usize,
) -> Result<(), StageError> {
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

fn time_training<B: AutodiffBackend>(
    job: Bench<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<f64, StageError> {
    let policy = Policy::<B>::load(job.model, job.dtype, device)?;
    check_room(job, &policy.config, job.response)?;
    let mut generator = ChaCha12Rng::seed_from_u64(0);
    let mut pair = |number: usize| {
        let mut ids = |count| random_ids(&mut generator, count, policy.config.vocab_size);
        let prompt = ids(job.prompt);
        let mut lengths = ChaCha12Rng::seed_from_u64(number as u64 + 1);
        let mut length = || lengths.random_range(job.response.div_ceil(2)..=job.response);
        let (chosen, rejected) = (ids(length()), ids(length()));
        let pair =
            TokenisedPair::from_ids(&prompt, &chosen, &rejected, [0.8, 0.7, 0.3], usize::MAX)?;
        Ok::<_, StageError>(PreferencePair {
            name: number.to_string(),
            pair,
        })
    };
    let count = job.batch * (job.steps + 1);
    let pairs = (0..count).map(&mut pair).collect::<Result<Vec<_>, _>>()?;
    // Known beforehand, as the trainer keeps them on disk; their values do not matter here.
    let reference = vec![[-1.0, -1.0]; count];
    let mut objective = PreferenceObjective::new(pairs, reference, Loss::Sppo, 0.001);
    let optimizer = Optimizer::RmsProp(RmsProp {
        alpha: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    });
    let mut learner = Learner::new(policy.model, optimizer, job.recompute, None);
    let mut step = |number: usize| {
        let window: Vec<usize> = (number * job.batch..(number + 1) * job.batch).collect();
        let report = Objective::<B>::accumulate(&mut objective, &mut learner, &window, job.batch)?;
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
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

fn time_generation<B: AutodiffBackend>(
    job: Bench<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<f64, StageError> {
    let policy = Policy::<B::InnerBackend>::load(job.model, job.dtype, device)?;
    check_room(job, &policy.config, job.new)?;
    let mut generator = ChaCha12Rng::seed_from_u64(1);
    let vocab = policy.config.vocab_size;
    let requests: Vec<Request> = (0..job.generate)
        .map(|number| Request {
            id: number.to_string(),
            prompt: random_ids(&mut generator, job.prompt, vocab),
            samples: 1,
        })
        .collect();
    let mut params = SamplingParams {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        max_new_tokens: 2,
        stop_ids: Vec::new(),
        seed: 0,
    };
    let run = |params: &SamplingParams| {
        let going = |_| !monitor.interrupted();
        let answers = sppo_model::generate::generate(
            &policy.model,
            &policy.config,
            &requests,
            params,
            going,
        )?;
        let answers = answers.ok_or(StageError::Interrupted)?;
        let tokens = answers.iter().flatten().map(|sample| sample.tokens.len());
        Ok::<usize, StageError>(tokens.sum())
    };
    run(&params)?;
    params.max_new_tokens = job.new;
    let begun = Instant::now();
    let tokens = run(&params)?;
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

fn sync<B: Backend>(device: &B::Device) -> Result<(), StageError> {
    B::sync(device)
        .map_err(|e| crate::learner::LearnerError::Device(e.to_string()))
        .map_err(StageError::from)
}
