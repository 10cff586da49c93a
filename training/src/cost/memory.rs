//! Memory of training and generation by part, in bytes.
//!
//! On a CPU what is kept for the backward pass follows from the code; the factors of what comes and
//! goes beside it were fitted to peaks counted on Flex (training/tests/memory holds the model to
//! them). On a GPU all tensors follow from the kernels (`gpu`), and the pages that they lie in from
//! CubeCL's pool (`pool`); `tests/cuda/run.py --memory` holds them to what a driver was asked for.

use burn::tensor::DType;
use serde::Serialize;
use sppo_model::generate::CachePlan;
use sppo_model::llama::slot_cache::rounded_width;
use sppo_model::llama::{LlamaConfig, Lora};

use super::batch::Batch;
pub use super::gpu::Encoder;
use super::gpu::{self, Step};
use super::pool::{Moment, reserved};
use super::sizes::Sizes;
use crate::config::{self, Recompute};
use crate::learner::chunk_rows;
use crate::optimizer;

/// Everything that a training's memory depends on but its batches.
#[derive(Clone, Debug)]
pub struct Training {
    /// Shape of the model.
    pub config: LlamaConfig,
    /// Of weights and activations.
    pub dtype: DType,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Tensors that the optimizer keeps for each parameter.
    pub optimizer_slots: usize,
    /// Adapters instead of full training.
    pub lora: Option<Lora>,
    /// Whether gradients of several batches are added up.
    pub accumulates: bool,
    /// Whether the device is a CPU, where operations in f32 are passes over its memory.
    pub host: bool,
    /// Bytes of a GPU's memory, which the pool's pages depend on; without it pages are not reckoned.
    pub card: Option<u64>,
    /// Ranks over which masters, optimizer state and summed gradients are spread (ZeRO-2).
    pub ranks: u64,
    /// Whether a rank receives the slices of all ranks and adds them itself, or NCCL's sum.
    pub ordered: bool,
}

/// Elements that shards are made of, the grain of the optimizer's passes.
const CHUNK: u64 = 16_384;

/// The most of `count` parameters of a group that one of `ranks` ranks has.
fn shard(count: u64, ranks: u64) -> u64 {
    match ranks {
        1 => count,
        _ => count.div_ceil(ranks).next_multiple_of(CHUNK).min(count),
    }
}

/// Peak of a training and what it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TrainingMemory {
    /// In bytes, as all of these; adapters included.
    pub weights: u64,
    /// f32 copies of weights that are not f32.
    pub masters: u64,
    /// Its state, f32.
    pub optimizer: u64,
    /// All of them, f32; of several ranks this one's sums.
    pub gradients: u64,
    /// Flat gradients of a group on their way to other ranks, and what is received of theirs; of
    /// two groups at most. 0 for one rank.
    pub exchange: u64,
    /// Kept from the forward pass for the backward pass.
    pub activations: u64,
    /// Of one block, beside what is kept, while it is computed backward.
    pub block: u64,
    /// One chunk of logits and what is made of it.
    pub logits: u64,
    /// Gradient of the largest parameter and its update on their way.
    pub update: u64,
    /// Of a GPU, what the pool reserves beyond the tensors of the fullest moment.
    pub pages: u64,
    /// Not the sum: the activations, block, logits and update are not all there at one time.
    pub peak: u64,
}

/// Peak of a generation and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GenerationMemory {
    /// In bytes, as all of these.
    pub weights: u64,
    /// Keys and values.
    pub cache: u64,
    /// Of one step.
    pub logits: u64,
    /// Of a GPU, what the pool reserves beyond them.
    pub pages: u64,
    /// The most at one time: the sum, or more while weights are packed.
    pub peak: u64,
}

/// Peak of judging and what it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct JudgingMemory {
    /// In bytes, as all of these.
    pub weights: u64,
    /// What is there beside them at the fullest moment of a batch.
    pub batch: u64,
    /// Of a GPU, what the pool reserves beyond them.
    pub pages: u64,
    /// The sum.
    pub peak: u64,
}

impl JudgingMemory {
    fn of(weights: &Moment, moments: &[Moment], card: Option<u64>) -> Self {
        let (peak, pages) = on_card(card, moments);
        let weights = weights.bytes();
        Self {
            weights,
            batch: (peak - pages).saturating_sub(weights),
            pages,
            peak,
        }
    }
}

/// What a card gives to tensors of these moments, and how much of it is beyond the fullest one.
fn on_card(card: Option<u64>, moments: &[Moment]) -> (u64, u64) {
    let tensors = moments.iter().map(Moment::bytes).max().unwrap_or(0);
    let peak = card.map_or(tensors, |card| reserved(card, moments).max(tensors));
    (peak, peak - tensors)
}

impl Training {
    /// Of `[train]` on a model; `host` says whether the device is a CPU.
    pub fn of(train: &config::Train, config: &LlamaConfig, host: bool) -> Self {
        Self {
            config: config.clone(),
            dtype: train.precision.dtype(),
            recompute: train.recompute,
            optimizer_slots: optimizer::of_train(train).slots(),
            lora: train.lora.as_ref().map(Into::into),
            accumulates: train.gradient_accumulation > 1 || train.memory_mib.is_some(),
            host,
            card: None,
            ranks: 1,
            ordered: host,
        }
    }

    /// What a rank keeps whatever the batch.
    pub fn fixed(memory: &TrainingMemory) -> u64 {
        memory.weights + memory.masters + memory.optimizer + memory.gradients
    }

    /// Bytes that a rank with `parts` parts of a step sends for it: the gradients of each part, and
    /// the new weights.
    pub fn sent(&self, parts: u64) -> f64 {
        let ranks = self.ranks as f64;
        let element = 4 * parts + self.trained_dtype();
        (ranks - 1.0) / ranks * self.trained() as f64 * element as f64
    }

    /// Bytes of a trained parameter as the model has it; adapters are f32.
    fn trained_dtype(&self) -> u64 {
        match self.lora {
            Some(_) => 4,
            None => self.dtype.size() as u64,
        }
    }

    /// What is under way between ranks: of a block, and of a group beside it.
    fn exchange(&self, sizes: &Sizes) -> u64 {
        if self.ranks == 1 {
            return 0;
        }
        let [(_, embeddings), (_, block), (_, head)] = sizes.groups();
        let groups = block + embeddings.max(head).max(block);
        let received = match self.ordered {
            true => groups,
            false => groups.div_ceil(self.ranks),
        };
        4 * (groups + received)
    }

    /// Rows of logits that are held at once.
    pub fn chunk_rows(&self) -> usize {
        let in_place = !self.host && self.dtype == DType::BF16;
        chunk_rows(self.config.vocab_size, in_place)
    }

    /// Number of parameters that are trained.
    pub fn trained(&self) -> u64 {
        self.trained_of(&Sizes::of(&self.config, self.lora.as_ref()))
    }

    fn trained_of(&self, sizes: &Sizes) -> u64 {
        match self.lora {
            Some(_) => sizes.adapters(),
            None => sizes.weights(),
        }
    }

    /// The memory of a training whose largest batch is `batch`.
    pub fn memory(&self, batch: &Batch) -> TrainingMemory {
        let config = &self.config;
        let sizes = Sizes::of(config, self.lora.as_ref());
        let trained = self.trained_of(&sizes);
        let layers = config.num_hidden_layers as u64;
        let size = self.dtype.size() as u64;
        let adapters = if self.lora.is_some() { 4 * trained } else { 0 };
        let weights = sizes.weights() * size + adapters;
        // Adapters are f32 themselves.
        let has_masters = self.dtype != DType::F32 && self.lora.is_none();
        let groups = sizes.groups();
        let of_rank = groups.map(|(number, count)| number * shard(count, self.ranks));
        let of_rank: u64 = of_rank.iter().sum();
        let masters = if has_masters { 4 * of_rank } else { 0 };
        let optimizer = 4 * of_rank * self.optimizer_slots as u64;
        let gradients = 4 * of_rank;
        let exchange = self.exchange(&sizes);
        let shared = TrainingMemory {
            weights,
            masters,
            optimizer,
            gradients,
            exchange,
            ..Default::default()
        };
        if !self.host {
            return self.on_gpu(shared, batch);
        }

        let parts = self.activations(batch, &sizes);
        let input = bytes((size as usize * config.hidden_size) as f64 * batch.packed.tokens as f64);
        let (activations, last) = match self.recompute {
            Recompute::None => (layers * parts.kept, 0),
            Recompute::Layer => (layers * input, parts.kept),
        };
        let block = last + parts.passing;
        let logits = parts.logits;
        let largest = match self.lora {
            None => 4 * sizes.vocabulary,
            Some(_) => 0,
        };
        // The vocabulary's gradient, cast and added to the one before.
        let of_vocabulary = match self.in_passes() {
            true => 2 * largest,
            false => 7 * largest / 2,
        };
        // One pass updates in place; of several ranks each gathers all new weights.
        let gathered = if self.ranks > 1 { largest } else { 0 };
        let of_step = largest / self.ranks + gathered;
        let update = of_vocabulary.max(of_step);
        let beside = largest / 2;
        let backward = match (self.ranks > 1, self.accumulates) {
            // The vocabulary's gradient is one of those under way.
            (true, _) => {
                let of_blocks = activations + logits.max(block) + beside + exchange;
                gradients + of_blocks.max(of_vocabulary + exchange.saturating_sub(largest))
            }
            (false, true) => {
                gradients + (activations + logits.max(block) + beside).max(of_vocabulary)
            }
            (false, false) => {
                // At the first block and at the last.
                let first = activations + logits.max(block) + beside;
                let of_blocks = match self.lora {
                    None => 4 * layers.saturating_sub(1) * sizes.block,
                    Some(_) => gradients,
                };
                let last = activations / layers + block + of_blocks + largest;
                first.max(last).max(gradients + of_vocabulary / 2)
            }
        };
        let fixed = weights + masters + optimizer;
        TrainingMemory {
            activations,
            block,
            logits,
            update,
            peak: fixed + backward.max(gradients + of_step),
            ..shared
        }
    }

    /// The same on a GPU, where `shared` is what does not depend on the device.
    fn on_gpu(&self, shared: TrainingMemory, batch: &Batch) -> TrainingMemory {
        let step = Step {
            config: &self.config,
            lora: self.lora.as_ref(),
            dtype: self.dtype,
            recomputes: self.recompute == Recompute::Layer,
            accumulates: self.accumulates,
            slots: self.optimizer_slots as u64,
            ranks: self.ranks,
            exchange: shared.exchange,
            rows: self.chunk_rows(),
        };
        let moments = step.moments(batch);
        let (peak, pages) = on_card(self.card, &moments.all);
        TrainingMemory {
            activations: moments.kept.bytes(),
            block: moments.block.bytes(),
            logits: moments.logits.bytes(),
            update: moments.update.bytes(),
            pages,
            peak,
            ..shared
        }
    }

    /// Whether operations are passes over the host's memory, on a CPU.
    fn in_passes(&self) -> bool {
        self.dtype == DType::F32
    }

    /// What a batch's activations come to.
    fn activations(&self, batch: &Batch, sizes: &Sizes) -> Activations {
        let config = &self.config;
        let size = self.dtype.size() as f64;
        let queries = (config.num_attention_heads * config.head_dim) as f64;
        let keys = (config.num_key_value_heads * config.head_dim) as f64;
        let tokens = batch.packed.tokens as f64;
        let of_hidden = size * tokens * config.hidden_size as f64;
        let of_ffn = size * tokens * config.intermediate_size as f64;
        let of_mixed = size * tokens * queries;
        let of_heads = size * batch.packed.cells as f64 * (queries + 2.0 * keys);
        let scores = 4.0 * batch.packed.scores as f64 * config.num_attention_heads as f64;
        let rows = self.chunk_rows().min(batch.response_tokens);
        let logits = 4.0 * (rows * config.vocab_size) as f64;
        // Inputs of adapters, in f32 whatever the dtype of the activations.
        let adapters = 4.0 * tokens * sizes.adapter_inputs as f64;
        // Inputs of both norms and of the layers behind them, gate, up and their product.
        let kept = 4.0 * of_hidden + of_mixed + 3.0 * of_ffn;
        let (kept, passing, logits) = match self.in_passes() {
            true => {
                // Attention's inputs and a logarithm a head.
                let of_tokens = size * tokens * (queries + 2.0 * keys);
                let log_sums = 4.0 * tokens * config.num_attention_heads as f64;
                // While the feed-forward layer's product and its gradient are both there; and
                // attention's gradients, with its keys and values as tiles read them, when what
                // the feed-forward layer kept is gone.
                let feeding = of_ffn + of_hidden;
                let of_keys = size * batch.packed.blocked as f64 * keys;
                let attending = 2.0 * of_mixed + 5.0 * of_keys - 3.0 * of_ffn;
                let passing = feeding.max(attending);
                (kept + of_tokens + log_sums, passing, 2.1 * logits)
            }
            // Attention's weights are in the activations' dtype.
            false => (
                kept + of_heads + scores * size / 4.0 + adapters,
                2.7 * scores,
                4.0 * logits,
            ),
        };
        Activations {
            kept: bytes(kept),
            passing: bytes(passing),
            logits: bytes(logits),
        }
    }
}

/// At most a petabyte, so that sums of absurd sizes stay within 64 bits.
fn bytes(size: f64) -> u64 {
    size.min(1e15) as u64
}

/// What a batch's activations take.
struct Activations {
    /// Of one block, for the backward pass.
    kept: u64,
    /// Of one block beside it, meanwhile.
    passing: u64,
    logits: u64,
}

/// Generation as `plan` lays it out, on a CPU.
pub fn generation(config: &LlamaConfig, dtype: DType, plan: &CachePlan) -> GenerationMemory {
    let size = dtype.size() as u64;
    let table = (config.vocab_size * config.hidden_size) as u64;
    // Embeddings are f32 whatever the others are, and a head that they are, too, is packed beside them.
    let beside = table * (4 - size) + table * size * u64::from(config.tie_word_embeddings);
    let weights = Sizes::of(config, None).weights() * size + beside;
    let logits = 4 * (plan.slots * config.vocab_size) as u64;
    // While the head is packed, or the embeddings are widened, what they are made from is there, too.
    let from = match config.tie_word_embeddings && size == 4 {
        // The embeddings that stay.
        true => 0,
        false => table * size,
    };
    let loading = weights + from;
    GenerationMemory {
        weights,
        cache: plan.bytes,
        logits,
        pages: 0,
        peak: loading.max(weights + plan.bytes + logits),
    }
}

/// The same on a GPU of `card` bytes.
pub fn generation_on_gpu(
    config: &LlamaConfig,
    dtype: DType,
    plan: &CachePlan,
    card: Option<u64>,
) -> GenerationMemory {
    let width = rounded_width(plan.tokens);
    let decoding = gpu::decoding(config, dtype, plan.slots, width);
    let all = decoding
        .weights
        .clone()
        .and(&decoding.cache)
        .and(&decoding.logits);
    let (peak, pages) = on_card(card, &[all]);
    GenerationMemory {
        weights: decoding.weights.bytes(),
        cache: decoding.cache.bytes(),
        logits: decoding.logits.bytes(),
        pages,
        peak,
    }
}

/// Judging by PairRM, batches of up to `tokens` tokens of sequences of up to `longest`.
pub fn judging_by_pairs(
    encoder: &Encoder,
    dtype: DType,
    tokens: usize,
    longest: usize,
    card: Option<u64>,
) -> JudgingMemory {
    let (weights, moments) = gpu::comparing(encoder, dtype, tokens, longest);
    JudgingMemory::of(&weights, &moments, card)
}

/// Judging by a Llama with a head of one score.
pub fn judging_by_llama(
    config: &LlamaConfig,
    dtype: DType,
    tokens: usize,
    longest: usize,
    card: Option<u64>,
) -> JudgingMemory {
    let (weights, moments) = gpu::rewarding(config, dtype, tokens, longest);
    JudgingMemory::of(&weights, &moments, card)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::published;

    /// Against the numbers of Meta's card and ZeRO's arithmetic: 8 030 261 248 parameters, of 2
    /// bytes each in bf16, and 4 bytes for each of master, average and gradient.
    #[test]
    fn an_8b_model_in_bf16() {
        let training = |accumulates, ranks| Training {
            config: published("meta-llama/Meta-Llama-3-8B").unwrap(),
            dtype: DType::BF16,
            recompute: Recompute::Layer,
            optimizer_slots: 1,
            lora: None,
            accumulates,
            host: false,
            card: None,
            ranks,
            ordered: false,
        };
        const PARAMETERS: u64 = 8_030_261_248;
        let batch = Batch::largest(16, 1024);
        let several = training(true, 1).memory(&batch);
        assert_eq!(several.weights, 2 * PARAMETERS);
        for part in [several.masters, several.optimizer, several.gradients] {
            assert_eq!(part, 4 * PARAMETERS);
        }
        // One input of 8 KiB a token is kept for each of 32 layers.
        assert_eq!(several.activations, 32 * 8192 * batch.packed.tokens as u64);
        assert!(several.peak > 14 * PARAMETERS + several.activations + several.logits);
        // Gradients that need not wait for each other take less.
        let one = training(false, 1).memory(&batch);
        assert!((10 * PARAMETERS..several.peak).contains(&one.peak));
    }

    /// ZeRO-2 on 8 cards: 26.2 GiB are fixed on each, 42 GB are sent a step and card.
    #[test]
    fn an_8b_model_on_8_cards() {
        const GIB: f64 = (1u64 << 30) as f64;
        let training = |ranks, ordered| Training {
            config: published("meta-llama/Meta-Llama-3-8B").unwrap(),
            dtype: DType::BF16,
            recompute: Recompute::Layer,
            optimizer_slots: 1,
            lora: None,
            accumulates: true,
            host: false,
            card: None,
            ranks,
            ordered,
        };
        let memory = training(8, false).memory(&Batch::largest(16, 1024));
        let fixed = Training::fixed(&memory) as f64 / GIB;
        assert!((fixed - 26.2).abs() < 0.05, "{fixed}");
        // Whole chunks: at most one more than its part of each of 34 groups.
        for part in [memory.masters, memory.optimizer, memory.gradients] {
            let spread = 4 * 8_030_261_248u64 / 8;
            assert!((spread..=spread + 34 * 4 * CHUNK).contains(&part), "{part}");
        }
        // Gradients of head and block, and an eighth of their sums.
        let groups = 4 * (128_256 * 4096 + 4096 + 218_112_000);
        assert_eq!(memory.exchange, groups + groups / 8);
        let ordered = training(8, true).memory(&Batch::largest(16, 1024));
        assert_eq!(ordered.exchange, 2 * groups);
        assert!(memory.peak as f64 / GIB <= 50.0, "{}", memory.peak);
        let shorter = training(8, false).memory(&Batch::alike(8, 150, 300));
        assert!(shorter.peak as f64 / GIB <= 36.0, "{}", shorter.peak);
        let sent = |ranks, parts| training(ranks, false).sent(parts) / 1e9;
        assert!((sent(8, 1) - 42.16).abs() < 0.01, "{}", sent(8, 1));
        // Parts send their gradients each, and the weights go once.
        assert!((sent(2, 4) - 0.5 * 8.030261 * 18.0).abs() < 1e-4);
        assert_eq!(sent(1, 64), 0.0);
    }
}
