//! What is on a GPU at the fullest moments, tensor by tensor, with the kernels of `sppo_model::ops`.

use burn::tensor::DType;
use sppo_model::llama::{Group, Kind, LlamaConfig, Lora, ParameterTable};
use sppo_model::ops::QUERY_TILE;
use sppo_model::pairrm::MOST_SCORES;

use super::batch::Batch;
use super::pool::Moment;

/// Parameters of one size.
struct Tensors {
    elements: f64,
    /// How many there are in the model.
    count: u64,
    in_block: bool,
    is_embedding: bool,
    is_adapter: bool,
    trained: bool,
}

fn tensors(config: &LlamaConfig, lora: Option<&Lora>) -> Vec<Tensors> {
    // All blocks are alike, so one tells.
    let one = LlamaConfig {
        num_hidden_layers: config.num_hidden_layers.min(1),
        ..config.clone()
    };
    let table = match lora {
        None => ParameterTable::new(&one),
        Some(lora) => lora.parameters(&one),
    };
    let of = |parameter: &sppo_model::llama::Parameter| {
        let in_block = matches!(parameter.group, Group::Block(_));
        Tensors {
            elements: parameter.range.len() as f64,
            count: if in_block {
                config.num_hidden_layers as u64
            } else {
                1
            },
            in_block,
            is_embedding: parameter.kind == Kind::Embedding,
            is_adapter: parameter.is_adapter(),
            trained: parameter.trained,
        }
    };
    table.all().iter().map(of).collect()
}

/// A model's weights in `dtype`.
pub fn weights(config: &LlamaConfig, lora: Option<&Lora>, dtype: DType) -> Moment {
    let size = |t: &Tensors| {
        if t.is_adapter {
            4.0
        } else {
            dtype.size() as f64
        }
    };
    let tensors = tensors(config, lora);
    let weights = tensors.iter();
    weights.fold(Moment::default(), |all, t| {
        all.with(size(t) * t.elements, t.count)
    })
}

/// A training, as [`super::memory::Training`] has it.
pub struct Step<'a> {
    pub config: &'a LlamaConfig,
    pub lora: Option<&'a Lora>,
    pub dtype: DType,
    /// Whether blocks are computed again in the backward pass.
    pub recomputes: bool,
    pub accumulates: bool,
    /// Tensors that the optimizer keeps for each parameter.
    pub slots: u64,
    pub ranks: u64,
    /// Bytes of gradients under way between ranks.
    pub exchange: u64,
    /// Rows of logits that are held at once.
    pub rows: usize,
}

/// What is there when, of a step on its largest batch.
pub struct Moments {
    /// At the head, at the first block that is computed backward, at the last one, at the embeddings
    /// and at the update.
    pub all: Vec<Moment>,
    /// Kept from the forward pass.
    pub kept: Moment,
    /// Of one block, beside that, while it is computed backward.
    pub block: Moment,
    /// Of one chunk.
    pub logits: Moment,
    /// The projection's gradient and a chunk's, or the embeddings' two.
    pub update: Moment,
}

impl Step<'_> {
    /// The moments of a step that is not the first, so that the optimizer's state is there.
    pub fn moments(&self, batch: &Batch) -> Moments {
        let tensors = tensors(self.config, self.lora);
        let config = self.config;
        let (size, ranks) = (self.dtype.size() as f64, self.ranks as f64);
        let layers = config.num_hidden_layers as u64;
        let has_masters = self.dtype != DType::F32 && self.lora.is_none();
        let trained = || tensors.iter().filter(|t| t.trained);
        let copies = self.slots + u64::from(has_masters);
        let fixed = trained().fold(weights(config, self.lora, self.dtype), |all, t| {
            all.with(4.0 * t.elements / ranks, t.count * copies)
        });
        // Gradients of those that `of` holds for, of so many blocks.
        let gradients = |blocks: u64, of: &dyn Fn(&Tensors) -> bool| {
            let of = trained().filter(|t| of(t));
            of.fold(Moment::default(), |all, t| {
                let count = if t.in_block { blocks } else { 1 };
                all.with(4.0 * t.elements / ranks, count)
            })
        };
        let all_gradients = gradients(layers, &|_| true);
        let before = match self.accumulates {
            true => all_gradients.clone(),
            false => Moment::default(),
        };
        // A group's on their way, where each is summed by another rank.
        let exchange = Moment::default().with(self.exchange as f64 / 2.0, 2);
        let vocabulary = (config.vocab_size * config.hidden_size) as f64;
        let of_vocabulary = |count: u64| match trained().any(|t| t.is_embedding) {
            true => Moment::default().with(4.0 * vocabulary, count),
            false => Moment::default(),
        };

        let hidden = size * (batch.packed.tokens * config.hidden_size) as f64;
        let input = Moment::default().with(hidden, 1);
        let parts = self.block(batch);
        let (kept, passing) = match self.recomputes {
            true => (
                input,
                parts.passing.map(|[again, passing]| again.and(&passing)),
            ),
            false => (
                input.and(&parts.kept),
                parts.passing.map(|[_, passing]| passing),
            ),
        };
        let block = passing[0].clone();
        let all_kept = Moment::default().and_times(&kept, layers);
        let logits = size * (self.rows.min(batch.response_tokens) * config.vocab_size) as f64;
        let logits = Moment::default().with(logits, 1);

        let start = || fixed.clone().and(&exchange);
        // The projection's gradient and a chunk's, which is added to it.
        let head = start()
            .and(&before)
            .and(&all_kept)
            .and(&logits)
            .and(&of_vocabulary(2));
        let head = head.with(hidden, 2);
        let outside = |t: &Tensors| !t.in_block && !t.is_embedding;
        let projection = match config.tie_word_embeddings {
            true => of_vocabulary(1),
            false => gradients(1, &outside),
        };
        let mut all = vec![head];
        for passing in passing {
            // A block's gradients are there twice where they are added to those before.
            let own = gradients(1, &|t| t.in_block);
            let first = start().and(&all_kept).and(&passing);
            all.push(match self.accumulates {
                true => first.and(&before).and(&own),
                false => first.and(&projection).and(&own),
            });
            let last = start().and(&kept).and(&passing).and(&projection);
            all.push(last.and(&gradients(layers, &|t| t.in_block)));
        }
        let more = u64::from(self.accumulates || config.tie_word_embeddings);
        all.push(
            start()
                .and(&all_gradients)
                .and(&of_vocabulary(more))
                .with(hidden, 2),
        );
        // New weights, rounded, one after the other.
        let largest = trained().map(|t| t.elements).fold(0.0, f64::max);
        all.push(fixed.and(&all_gradients).with(size * largest, 1));
        Moments {
            all,
            kept: all_kept,
            block,
            logits,
            update: of_vocabulary(2),
        }
    }

    /// What a block keeps, and what is there beside while it is computed backward.
    fn block(&self, batch: &Batch) -> OfBlock {
        let config = self.config;
        let size = self.dtype.size() as f64;
        let (tokens, cells) = (batch.packed.tokens as f64, batch.packed.cells as f64);
        let heads = config.num_attention_heads as f64;
        let queries = heads * config.head_dim as f64;
        let keys = (config.num_key_value_heads * config.head_dim) as f64;
        let hidden = size * tokens * config.hidden_size as f64;
        let inner = size * tokens * config.intermediate_size as f64;
        let (of_queries, of_keys) = (size * tokens * queries, size * tokens * keys);
        let longest = batch.packed.scores as f64 / cells.max(1.0);
        let tile = size * cells * heads * longest.min(QUERY_TILE as f64);

        // Attention keeps queries, keys, values and logarithms; SwiGLU gate and up; norms their input.
        let attention = Moment::default()
            .with(of_queries, 1)
            .with(of_keys, 2)
            .with(4.0 * cells * heads, 1);
        let mut below = Moment::default().and(&attention);
        let mut above = Moment::default().with(hidden, 1).with(inner, 2);
        match self.lora {
            // Layers keep their inputs: two norms' outputs, the mixed values, the product.
            None => {
                below = below.with(hidden, 1).with(of_queries, 1);
                above = above.with(hidden, 1).with(inner, 1);
            }
            // Adapters keep theirs in f32, each its own.
            Some(lora) => {
                let one = LlamaConfig {
                    num_hidden_layers: config.num_hidden_layers.min(1),
                    ..config.clone()
                };
                let table = lora.parameters(&one);
                for parameter in table.all().iter().filter(|p| p.kind == Kind::AdapterA) {
                    let width = parameter.shape[1] as f64;
                    above = above.with(4.0 * tokens * width, 1);
                }
            }
        }
        // An adapter's output in f32, the layer's, and their sum.
        let adapted = match self.lora {
            None => Moment::default(),
            Some(_) => Moment::default().with(2.0 * inner.max(hidden) * 2.0 / size, 2),
        };
        let feed_forward = Moment::default()
            .with(inner, 2)
            .with(hidden, 3)
            .and(&adapted);
        let (laid_queries, laid_keys) = (cells * queries, cells * keys);
        let attending = Moment::default()
            .with(size * laid_queries, 2)
            .with(size * laid_keys, 2)
            .with(4.0 * laid_queries, 1)
            .with(4.0 * laid_keys, 4)
            .with(tile, 2)
            .with(hidden, 4)
            .with(of_queries, 2)
            .with(of_keys, 2);
        let kept = above.and(&below);
        OfBlock {
            passing: [[kept.clone(), feed_forward], [below, attending]],
            kept,
        }
    }
}

/// A block's tensors.
struct OfBlock {
    /// For its backward pass.
    kept: Moment,
    /// In the feed-forward step and in attention: what is left of the above, and what is beside.
    passing: [[Moment; 2]; 2],
}

/// What is there while `slots` sequences are decoded.
pub struct Decoding {
    pub weights: Moment,
    /// Keys and values of `width` tokens a slot, and of a prompt.
    pub cache: Moment,
    pub logits: Moment,
}

/// Decoding in `dtype`; a slot has room for `width` tokens.
pub fn decoding(config: &LlamaConfig, dtype: DType, slots: usize, width: usize) -> Decoding {
    let size = dtype.size() as f64;
    let tensors = 2 * config.num_hidden_layers as u64;
    let of_token = size * (config.num_key_value_heads * config.head_dim) as f64;
    let of_layer = |slots: usize| of_token * slots as f64 * width as f64;
    let logits = (slots * config.vocab_size) as f64;
    Decoding {
        weights: weights(config, None, dtype),
        // One grows at a time; a prompt's are there twice while a chunk is added.
        cache: Moment::default()
            .with(of_layer(slots), tensors + 1)
            .with(of_layer(1), 2 * tensors),
        // As they are computed, in f32, and a copy that the likeliest are taken from.
        logits: Moment::default()
            .with(size * logits, 1)
            .with(4.0 * logits, 2),
    }
}

/// An encoder of comparisons in the shape of PairRM.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    /// Rows of the embeddings.
    pub vocab: usize,
    /// Of the hidden state.
    pub width: usize,
    /// Of the feed-forward step.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Of attention.
    pub heads: usize,
    /// Rows of the relative positions' tables.
    pub positions: usize,
}

/// The encoder's weights, and what is there when: at loading, in attention, in the feed-forward step.
pub fn comparing(
    e: &Encoder,
    dtype: DType,
    tokens: usize,
    longest: usize,
) -> (Moment, Vec<Moment>) {
    let size = dtype.size() as f64;
    let square = size * (e.width * e.width) as f64;
    let wide = size * (e.width * e.inner) as f64;
    let table = size * (e.positions * e.width) as f64;
    let layers = e.layers as u64;
    let words = Moment::default().with(size * (e.vocab * e.width) as f64, 1);
    let weights = Moment::default()
        .and(&words)
        .with(square, layers)
        .with(3.0 * square, layers)
        .with(wide, 2 * layers)
        .with(table, 2 * layers)
        .with(2.0 * square, 1);
    // The three are joined when all are read, block by block.
    let loading = words
        .with(square, 4 * layers + 2)
        .with(3.0 * square, 1)
        .with(wide, 2 * layers)
        .with(table, 2);
    let hidden = size * (tokens * e.width) as f64;
    // Sequences of one length attend together, as many as this allows.
    let together = (MOST_SCORES / (e.heads * longest * longest).max(1)).max(1);
    let sequences = together.min(tokens / longest.max(1)).max(1);
    let scores = 4.0 * (sequences * e.heads * longest * longest) as f64;
    let relative = size * (e.heads * sequences * longest * e.positions.min(2 * longest)) as f64;
    let attending = weights
        .clone()
        .with(hidden, 3)
        .with(3.0 * hidden, 1)
        .with(size * (3 * sequences * longest * e.width) as f64, 2)
        .with(relative, 2)
        .with(scores, 4);
    let inner = size * (tokens * e.inner) as f64;
    let feeding = weights.clone().with(hidden, 4).with(inner, 3);
    (weights, vec![loading, attending, feeding])
}

/// A reward model's weights, and what is there in its blocks.
pub fn rewarding(
    config: &LlamaConfig,
    dtype: DType,
    tokens: usize,
    longest: usize,
) -> (Moment, Vec<Moment>) {
    let weights = weights(config, None, dtype);
    let size = dtype.size() as f64;
    let heads = config.num_attention_heads as f64;
    let of_width = |width: usize| size * (tokens * width) as f64;
    let (hidden, inner) = (
        of_width(config.hidden_size),
        of_width(config.intermediate_size),
    );
    let queries = of_width(config.num_attention_heads * config.head_dim);
    let keys = of_width(config.num_key_value_heads * config.head_dim);
    let tile = size * tokens as f64 * heads * longest.min(QUERY_TILE) as f64;
    let attending = weights
        .clone()
        .with(hidden, 2)
        .with(queries, 4)
        .with(keys, 4)
        .with(tile, 1);
    let feeding = weights.clone().with(hidden, 3).with(inner, 3);
    (weights, vec![attending, feeding])
}
