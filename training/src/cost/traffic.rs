//! What a training step moves through a GPU's memory beside its matrix products, with the kernels of
//! `sppo_model::ops`; and the operations of all products, those that are computed again included.
//!
//! Products are taken to be bound by their operations, everything else by memory: each buffer of a
//! launch once, as `tests/cuda/trace.py` counts them.

use sppo_model::ops::QUERY_TILE;

use super::batch::Batch;
use super::memory::Training;
use super::sizes::Sizes;
use crate::config::Recompute;

/// Of one step, or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations of matrix products.
    pub flops: f64,
    /// Bytes that all other kernels read and write.
    pub bytes: f64,
}

/// A step of `parts` parts, each like `batch`, and its update.
pub fn step(training: &Training, batch: &Batch, parts: usize) -> Work {
    let part = part(training, batch);
    let trained = training.trained() as f64;
    let size = training.dtype.size() as f64;
    // Gradients of further parts are added to those before; then sums of squares are taken.
    let added = 12.0 * trained * (parts.saturating_sub(1)) as f64;
    let slots = training.optimizer_slots as f64;
    let update = trained * (4.0 + 4.0 + 8.0 + 8.0 * slots + size);
    Work {
        flops: part.flops * parts as f64,
        bytes: part.bytes * parts as f64 + added + update,
    }
}

fn part(training: &Training, batch: &Batch) -> Work {
    let config = &training.config;
    let size = training.dtype.size() as f64;
    let layers = config.num_hidden_layers as f64;
    let tokens = batch.packed.tokens as f64;
    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
    let heads = config.num_attention_heads as f64;
    let queries = heads * config.head_dim as f64;
    let keys = (config.num_key_value_heads * config.head_dim) as f64;
    let vocabulary = (config.vocab_size * config.hidden_size) as f64;
    let rows = batch.response_tokens as f64;
    let chunks = rows / training.chunk_rows() as f64;
    let chunks = chunks.ceil().max(1.0);
    let forward = match training.recompute {
        Recompute::None => 1.0,
        Recompute::Layer => 2.0,
    };
    // By input and by weight; with adapters the frozen weights have none.
    let backward = if training.lora.is_some() { 1.0 } else { 2.0 };
    // Scores that tiles of queries compute.
    let cells = batch.packed.cells as f64;
    let longest = batch.packed.scores as f64 / cells.max(1.0);
    let scores = cells * (longest + longest.min(QUERY_TILE as f64)) / 2.0;

    let linear = Sizes::of(config, None).linear as f64;
    let of_linear = 2.0 * layers * linear * tokens * (forward + backward);
    let of_attention = 2.0 * layers * queries * scores * (2.0 * forward + 5.0);
    // Where chunks are several, logits are computed again.
    let again = if chunks > 1.0 { 1.0 } else { 0.0 };
    let of_vocabulary = 2.0 * vocabulary * rows * (1.0 + again + backward);

    // Norms and residual additions, and their backward steps with sums of gradients.
    let wide = tokens * hidden * (10.0 * forward + 21.0);
    let gated = tokens * inner * (3.0 * forward + 5.0);
    // Layout and what joins it again.
    let all = queries + 2.0 * keys;
    let laid = tokens * (forward * (2.0 * all + 2.0 * queries) + 2.0 * (all + queries) + 3.0 * all);
    let softmax = heads * scores * (2.0 * forward + 4.0);
    let of_layers = size * layers * (wide + gated + laid + softmax);
    let logits = size * rows * config.vocab_size as f64 * (1.0 + again + 2.0);
    let of_embeddings = match training.lora {
        // Each chunk's gradient is added to those before; the embeddings' begins with zeros.
        None => 4.0 * vocabulary * (3.0 * (chunks - 1.0) + 2.0),
        Some(_) => 0.0,
    };
    Work {
        flops: of_linear + of_attention + of_vocabulary,
        bytes: of_layers + logits + of_embeddings,
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;
    use crate::cost::published;

    /// Against `tests/cuda/run.py --8b train8 --layers 2` (2026-11-28, chunks of 2^25 logits then):
    /// 278.9 GB by other kernels than products, most of it to add chunks' gradients.
    #[test]
    fn a_step_of_eight_pairs_on_two_layers() {
        let mut config = published("meta-llama/Meta-Llama-3-8B").unwrap();
        config.num_hidden_layers = 2;
        let training = Training {
            config,
            dtype: DType::BF16,
            recompute: Recompute::Layer,
            optimizer_slots: 1,
            lora: None,
            accumulates: false,
            host: false,
            card: None,
            ranks: 1,
            ordered: false,
        };
        let found = step(&training, &Batch::alike(8, 512, 512), 1);
        let chunks = 8192f64 / training.chunk_rows() as f64;
        let fewer = (32.0 - chunks.ceil()) * 12.0 * 128_256.0 * 4096.0;
        // Six operations a weight and token, two more for the layers that are computed again.
        let linear = 8.0 * 2.0 * 218_103_808.0 * 12_288.0;
        let head = 8.0 * 128_256.0 * 4096.0 * 8192.0;
        assert!(
            (found.flops / (linear + head) - 1.0).abs() < 0.05,
            "{found:?}"
        );
        let bytes = found.bytes + fewer;
        assert!((bytes / 278.9e9 - 1.0).abs() < 0.05, "{found:?}, {bytes}");
    }
}
