//! Floating-point operations of matrix products; a multiplication and its addition are two.

use sppo_model::llama::{LlamaConfig, Lora};

use super::batch::Batch;
use super::sizes::Sizes;

/// A forward pass: shared prompts once, attention below the diagonal only, the vocabulary
/// projection for response tokens only.
pub fn forward(config: &LlamaConfig, batch: &Batch) -> f64 {
    let layers = config.num_hidden_layers as f64;
    let width = (config.num_attention_heads * config.head_dim) as f64;
    let linear = 2.0 * layers * Sizes::of(config, None).linear as f64 * batch.packed.tokens as f64;
    let attention = 4.0 * layers * width * batch.attended as f64;
    let vocabulary = 2.0 * (config.hidden_size * config.vocab_size) as f64;
    linear + attention + vocabulary * batch.response_tokens as f64
}

/// Forward and backward pass: three times the forward pass where all weights are trained; where
/// adapters are, twice that and three times the adapters' own. What is computed again to save
/// memory does not count, as in the usual model FLOPs utilisation.
pub fn training(config: &LlamaConfig, lora: Option<&Lora>, batch: &Batch) -> f64 {
    let Some(lora) = lora else {
        return 3.0 * forward(config, batch);
    };
    let adapters =
        2.0 * Sizes::of(config, Some(lora)).adapters() as f64 * batch.packed.tokens as f64;
    2.0 * forward(config, batch) + 3.0 * adapters
}

/// Sampling `new` tokens behind each of `sequences` prompts of `prompt` tokens, `samples` of which
/// share one prompt.
pub fn generation(
    config: &LlamaConfig,
    sequences: f64,
    samples: f64,
    prompt: f64,
    new: f64,
) -> f64 {
    let layers = config.num_hidden_layers as f64;
    let width = (config.num_attention_heads * config.head_dim) as f64;
    let linear = 2.0 * layers * Sizes::of(config, None).linear as f64;
    let vocabulary = 2.0 * (config.hidden_size * config.vocab_size) as f64;
    let attended = new * (prompt + new / 2.0);
    let prefill = prompt * linear + 4.0 * layers * width * prompt * prompt / 2.0;
    sequences * (new * (linear + vocabulary) + 4.0 * layers * width * attended + prefill / samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::published;

    #[test]
    fn an_8b_model_takes_six_operations_a_weight_and_token() {
        let config = published("meta-llama/Meta-Llama-3-8B-Instruct").unwrap();
        // All tokens response, attention of short sequences does not count.
        let batch = Batch::largest(100, 8);
        let weights = 8.03e9 - 128256.0 * 4096.0;
        let found = training(&config, None, &batch) / batch.packed.tokens as f64;
        assert!((found / (6.0 * weights) - 1.0).abs() < 1e-3, "{found}");
    }
}
