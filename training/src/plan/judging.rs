//! What judging an iteration's responses comes to.

use sppo_model::llama::LlamaConfig;

use super::shape::Assumed;
use crate::config::{Config, JudgeKind};
use crate::cost::flops;
use crate::cost::memory::{Encoder, JudgingMemory, judging_by_llama, judging_by_pairs};

/// PairRM's encoder, DeBERTa-v3-large.
const PAIRRM: Encoder = Encoder {
    vocab: 128_100,
    width: WIDTH as usize,
    inner: 4096,
    layers: LAYERS as usize,
    heads: 16,
    positions: 512,
};
const LAYERS: f64 = 24.0;
const WIDTH: f64 = 1024.0;
/// Where its texts are cut, as LLM-Blender cuts them.
const LONGEST_PROMPT: f64 = 1224.0;
const LONGEST_RESPONSE: f64 = 412.0;

/// Memory of the judge's model over a batch; None where no model is loaded. PairRM's shape is the
/// published one's; a reward model is taken to be as large as the policy.
pub(super) fn memory(
    config: &Config,
    policy: &LlamaConfig,
    longest_prompt: usize,
    assumed: &Assumed,
) -> Option<JudgingMemory> {
    let judge = &config.judge;
    let (dtype, card) = (judge.precision.dtype(), assumed.pool());
    let prompt = longest_prompt as f64;
    let longest = match judge.kind {
        JudgeKind::PairRm => {
            let prompt = prompt.min(LONGEST_PROMPT);
            let most = LONGEST_RESPONSE + (LONGEST_PROMPT - prompt) / 2.0;
            prompt + 2.0 * most.min(config.generate.max_new_tokens as f64)
        }
        _ => prompt + config.generate.max_new_tokens as f64,
    };
    let tokens = judge.batch_tokens.max(longest as usize);
    match judge.kind {
        JudgeKind::PairRm => {
            let longest = longest as usize;
            Some(judging_by_pairs(&PAIRRM, dtype, tokens, longest, card))
        }
        JudgeKind::Reward => {
            let longest = longest as usize;
            Some(judging_by_llama(policy, dtype, tokens, longest, card))
        }
        JudgeKind::Http | JudgeKind::Rubric | JudgeKind::Scores => None,
    }
}

/// Floating-point operations of judging the responses to `prompts` prompts, of these mean lengths.
/// A reward model is taken to be as large as the policy; other judges compute nothing here.
pub(super) fn flops(
    config: &Config,
    policy: &LlamaConfig,
    prompts: usize,
    prompt: usize,
    response: usize,
) -> f64 {
    let samples = config.generate.samples as f64;
    let (prompts, prompt, response) = (prompts as f64, prompt as f64, response as f64);
    match config.judge.kind {
        JudgeKind::PairRm => {
            let prompt = prompt.min(LONGEST_PROMPT);
            let most = LONGEST_RESPONSE + (LONGEST_PROMPT - prompt) / 2.0;
            let tokens = prompt + 2.0 * response.min(most);
            let linear = 2.0 * 12.0 * WIDTH * WIDTH;
            // Scores, both position terms, and values.
            let attention = 8.0 * WIDTH * tokens;
            let comparisons = prompts * samples * (samples - 1.0);
            comparisons * tokens * LAYERS * (linear + attention)
        }
        JudgeKind::Reward => {
            // One pass over each conversation, with next to no vocabulary.
            flops::generation(policy, prompts * samples, 1.0, prompt + response, 0.0)
        }
        JudgeKind::Http | JudgeKind::Rubric | JudgeKind::Scores => 0.0,
    }
}
