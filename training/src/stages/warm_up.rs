//! The shapes that a run will meet, on random rows: so that a GPU's kernels are compiled and chosen
//! beforehand.

use std::iter::successors;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use sppo_model::generate::{Engine, Request, SamplingParams};
use sppo_model::llama::{Decoder, Llama, LlamaConfig, Lora};
use sppo_model::ops::{ModelOps, TrainingOps};

use super::error::StageError;
use super::generate::plan;
use super::generation::Sampling;
use super::train::memory_budget;
use crate::config::{Logging, Train};
use crate::cost::Batch;
use crate::data::PairProbabilities;
use crate::learner::Learner;
use crate::monitor::Monitor;
use crate::optimizer;
use crate::tokenise::{PreferencePair, TokenisedPair};
use crate::trainer::{Cut, MemoryBudget, Objective, PreferenceObjective};

/// Tokens below which lengths are not tried: such rows take no time.
const SHORTEST: usize = 16;

/// `longest` and its halves, down to `shortest`, and the lengths just below them: kernels are chosen by
/// powers of two and by how many elements can be loaded at once.
pub fn lengths(longest: usize, shortest: usize) -> Vec<usize> {
    let longest = longest.max(1);
    let halves = successors(Some(longest), |length| {
        Some(length / 2).filter(|half| *half > 0)
    });
    let lengths = halves.flat_map(|half| [half, half - 1]);
    let wanted = |length: &usize| *length >= shortest.max(1) || *length == longest;
    let mut lengths: Vec<usize> = lengths.filter(wanted).collect();
    lengths.dedup();
    lengths
}

/// Tokens of several prompts, each of up to `prompt` of them, that `slots` sequences begin with in one
/// pass: its [`lengths`] beyond one prompt.
fn passes(pass: usize, prompt: usize, slots: usize) -> Vec<usize> {
    let most = pass.min(prompt.saturating_mul(slots));
    let mut passes = lengths(most, prompt.saturating_add(1));
    passes.retain(|tokens| *tokens > prompt);
    passes
}

fn ids(config: &LlamaConfig, from: usize, count: usize) -> Vec<u32> {
    let id = |place: usize| (place % config.vocab_size) as u32;
    (from..from + count).map(id).collect()
}

/// Batches of each length that rows can have, as `[train]` cuts them: the reference's pass and a step.
pub fn warm_up_training<B: TrainingOps>(
    train: &Train,
    logging: &Logging,
    folder: &Path,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    // A GPU's pool gives back the pages of what was warmed up before.
    B::memory_cleanup(device);
    let (config, model) = Llama::<B>::load(folder, train.precision.dtype(), device)?;
    let memory_budget = memory_budget::<B>(train, &config, &[])?;
    let pair = |length: usize, number: usize| {
        let prompt = train.max_prompt_length.min(length / 2).max(1);
        let response = length.saturating_sub(prompt).max(1);
        // Sums of tokens that are as odd as those of a run's rows, where the length is.
        let cut = |count: usize| count.saturating_sub(length % 2 * (number % 3)).max(1);
        let of = |from, count| ids(&config, number + from, count);
        let probabilities = PairProbabilities::new(0.8, 0.7, 0.3);
        let prompt = ids(&config, number, prompt);
        Ok::<_, StageError>(PreferencePair {
            name: number.to_string(),
            pair: TokenisedPair::from_ids(
                &prompt,
                &of(1, cut(response)),
                &of(2, response),
                probabilities,
                usize::MAX,
            )?,
        })
    };
    let longest = train.max_length.min(config.max_position_embeddings);
    let mut pairs = Vec::new();
    for length in lengths(longest, SHORTEST) {
        let one = pair(length, 0)?;
        let holds = |m: &MemoryBudget| m.holds(&Batch::of(&one.pair.sides()));
        // A run refuses such rows before its first step.
        if memory_budget.as_ref().is_none_or(holds) {
            for number in 0..train.batch_size {
                pairs.push(pair(length, number)?);
            }
        }
    }
    let model = match &train.lora {
        None => model,
        Some(lora) => model.with_new_adapters(&config, &Lora::from(lora), 0)?,
    };
    let optimizer = optimizer::of_train(train);
    let mut learner = Learner::new(model, optimizer, train.recompute, train.max_grad_norm);
    let cut = Cut {
        batch_size: train.batch_size,
        memory_budget,
    };
    let rows: Vec<usize> = (0..pairs.len()).collect();
    let steps: Vec<&[usize]> = rows.chunks(train.batch_size).collect();
    monitor.begin("training", "steps", 0, steps.len());
    for window in &steps {
        let batch = |range: Range<usize>| {
            let rows = window[range].iter();
            let sides: Vec<_> = rows.flat_map(|row| pairs[*row].pair.sides()).collect();
            Batch::of(&sides)
        };
        for part in cut.deal(window.len(), batch) {
            let rows = part.iter().map(|place| &pairs[window[*place]]);
            learner.logps(&rows.flat_map(|row| row.pair.sides()).collect::<Vec<_>>())?;
        }
    }
    let reference = vec![[-1.0, -1.0]; pairs.len()];
    let mut objective = PreferenceObjective::new(pairs, reference, train.loss, train.beta)
        .with_token_metrics(logging.token_metrics);
    for window in steps {
        if monitor.interrupted() {
            return Err(StageError::Interrupted);
        }
        Objective::<B>::accumulate(&mut objective, &mut learner, window, &cut)?;
        learner.step(0.0)?;
        monitor.advance(1, None);
    }
    monitor.end();
    // Asked before each save.
    learner.is_finite()?;
    Ok(())
}

/// Prompts of each of the [`lengths`] up to `prompt` tokens, by themselves, and some that together
/// have as many tokens as go through the model at once, or a length below that; then as many
/// sequences at once as there are slots, to the last token that they may have. All this for each way
/// of sampling.
pub fn warm_up_generation<B: ModelOps>(
    samplings: &[Sampling],
    prompt: usize,
    folder: &Path,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    let Some(first) = samplings.first() else {
        return Ok(());
    };
    B::memory_cleanup(device);
    let (config, model) = Llama::<B>::load(folder, first.dtype, device)?;
    let decoder = Arc::new(Decoder::new(model, &config));
    let context = config.max_position_embeddings;
    for sampling in samplings {
        let new = sampling.max_new_tokens.min(context - 1);
        let prompt = prompt.clamp(1, context - new);
        let request = |number: usize, prompt: usize, samples: usize, new: usize| {
            let params = SamplingParams {
                temperature: sampling.temperature,
                top_p: sampling.top_p,
                top_k: sampling.top_k,
                max_new_tokens: new,
                stop_ids: Vec::new(),
                seed: 0,
                ..SamplingParams::default()
            };
            Request::new(
                number.to_string(),
                ids(&config, number, prompt),
                samples,
                params,
            )
        };
        let longest = [(0, request(0, prompt, 1, new))].into();
        let (slots, budget) = (sampling.batch, sampling.cache_memory_mib);
        let plan = plan::<B>(&config, &longest, slots, budget, sampling.dtype)?;
        let mut engine = Engine::new(decoder.clone(), plan, None);
        let mut run = |requests: &mut dyn Iterator<Item = Request>| {
            for request in requests {
                engine.submit(request)?;
            }
            while !engine.is_idle() {
                engine.step()?;
                if monitor.interrupted() {
                    return Err(StageError::Interrupted);
                }
            }
            Ok(())
        };
        let singles = lengths(prompt, 1);
        let packed = passes(plan.pass, prompt, plan.slots);
        monitor.begin("generation", "waves", 0, singles.len() + packed.len() + 1);
        for length in singles {
            run(&mut [request(0, length, sampling.samples, new.min(2))].into_iter())?;
            monitor.advance(1, None);
        }
        for tokens in packed {
            let prompts = (0..tokens).step_by(prompt).enumerate();
            run(&mut prompts.map(|(number, before)| {
                request(number, prompt.min(tokens - before), 1, new.min(2))
            }))?;
            monitor.advance(1, None);
        }
        run(&mut (0..plan.slots).map(|number| request(number, prompt, 1, new)))?;
        monitor.advance(1, None);
        monitor.end();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_halved() {
        assert_eq!(lengths(125, 16), [125, 124, 62, 61, 31, 30]);
        assert_eq!(lengths(5, 1), [5, 4, 2, 1]);
        assert_eq!(lengths(3, 16), [3]);
        assert_eq!(lengths(0, 0), [1]);
    }

    #[test]
    fn prompts_fill_a_pass_together() {
        assert_eq!(passes(1024, 300, 64), [1024, 1023, 512, 511]);
        assert_eq!(passes(1024, 64, 4), [256, 255, 128, 127]);
        assert!(passes(1024, 1024, 64).is_empty());
        assert!(passes(1024, 2000, 64).is_empty());
        assert!(passes(1024, 300, 1).is_empty());
    }
}
