//! What judging an iteration's responses comes to.

use sppo_model::llama::LlamaConfig;

use crate::config::{Config, JudgeKind};
use crate::cost::flops;

/// Layers and width of PairRM.
const LAYERS: f64 = 24.0;
const WIDTH: f64 = 1024.0;
/// Where its texts are cut, as LLM-Blender cuts them.
const LONGEST_PROMPT: f64 = 1224.0;
const LONGEST_RESPONSE: f64 = 412.0;

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
