//! A Llama prepared for generation: prompts into prefixes, and one token a slot behind them.

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::attention::{Attention, AttentionContext};
use super::block::{Block, Mlp};
use super::config::LlamaConfig;
use super::model::Llama;
use super::slot_cache::{Prefix, SlotCache, rounded_width};
use crate::nn::Linear;
use crate::ops::{Heads, ModelOps, Rotation, TokenIds, Visible};

/// A Llama for generation only. Results differ from [`Llama`]'s by rounding.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    model: Llama<B>,
    /// The config of the model taken over.
    pub config: LlamaConfig,
}

impl<B: ModelOps> Decoder<B> {
    /// Takes a model over, layer by layer; adapters are added to its weights.
    pub fn new(model: Llama<B>, config: &LlamaConfig) -> Self {
        let mut model = model.merged();
        let layers = model.layers.into_iter().map(for_few_rows);
        model.layers = layers.collect();
        let head = model.lm_head.unwrap_or_else(|| Linear {
            weight: Param::from_tensor(model.embed_tokens.val()),
            bias: None,
            adapter: None,
        });
        model.lm_head = Some(head.for_few_rows());
        Self {
            model,
            config: config.clone(),
        }
    }

    /// The device that the weights live on.
    pub fn device(&self) -> B::Device {
        self.model.device()
    }

    /// The dtype of weights, activations and cache.
    pub fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// Runs the next tokens of a prompt behind those in `prefix` and adds them to it; the last
    /// token's logits, f32 `[1, vocab]`.
    pub fn prefill(&self, tokens: &[u32], prefix: &mut Prefix<B>) -> Tensor<B, 2> {
        let new = tokens.len();
        let before = prefix.first().map_or(0, |layer| layer.1.dims()[1]);
        let positions: Vec<u32> = (before as u32..(before + new) as u32).collect();
        let mut context = PrefillContext {
            prefix,
            rotation: self.rotation(&positions),
            heads: self.heads(),
            visible: Visible::Causal { before, new },
        };
        let hidden = self.run(tokens, &mut context);
        self.model.project(hidden.narrow(0, new - 1, 1))
    }

    /// Runs one token a row, row `i` behind the `lengths[i]` tokens of slot `i`, and keeps its
    /// keys and values there; logits, f32 `[rows, vocab]`.
    pub fn step(&self, ids: &[u32], lengths: &[usize], cache: &mut SlotCache<B>) -> Tensor<B, 2> {
        let longest = lengths.iter().max().map_or(0, |l| l + 1);
        cache.reserve(longest, &self.device());
        let positions: Vec<u32> = lengths.iter().map(|&l| l as u32).collect();
        let mut context = StepContext {
            cache,
            lengths,
            columns: rounded_width(longest),
            rotation: self.rotation(&positions),
            heads: self.heads(),
            visible: Visible::Behind(lengths.to_vec()),
        };
        let hidden = self.run(ids, &mut context);
        self.model.project(hidden)
    }

    fn run(&self, ids: &[u32], context: &mut impl AttentionContext<B>) -> Tensor<B, 2> {
        let ids = TokenIds::new(ids, &self.device());
        self.model.blocks(self.model.embed(&ids), context)
    }

    fn heads(&self) -> Heads {
        Heads {
            queries: self.config.num_attention_heads,
            kv: self.config.num_key_value_heads,
            dim: self.config.head_dim,
        }
    }

    fn rotation(&self, positions: &[u32]) -> Rotation<B> {
        Rotation::new(&self.model.rope, positions, self.dtype(), &self.device())
    }
}

/// The same block with weights laid out for products of few rows.
fn for_few_rows<B: ModelOps>(block: Block<B>) -> Block<B> {
    let (attention, mlp) = (block.self_attn, block.mlp);
    Block {
        self_attn: Attention {
            q_proj: attention.q_proj.for_few_rows(),
            k_proj: attention.k_proj.for_few_rows(),
            v_proj: attention.v_proj.for_few_rows(),
            o_proj: attention.o_proj.for_few_rows(),
            ..attention
        },
        mlp: Mlp {
            gate_proj: mlp.gate_proj.for_few_rows(),
            up_proj: mlp.up_proj.for_few_rows(),
            down_proj: mlp.down_proj.for_few_rows(),
        },
        ..block
    }
}

/// The next tokens of one prompt behind its first ones.
struct PrefillContext<'a, B: Backend> {
    prefix: &'a mut Prefix<B>,
    rotation: Rotation<B>,
    heads: Heads,
    visible: Visible,
}

impl<B: ModelOps> AttentionContext<B> for PrefillContext<'_, B> {
    fn attend(
        &mut self,
        layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let heads = self.heads;
        let new = queries.dims()[0];
        let queries = B::rotate(queries, &self.rotation, heads.scale());
        let keys = B::rotate(keys, &self.rotation, 1.0).permute([1, 2, 0]);
        let values = values.reshape([new, heads.kv, heads.dim]).swap_dims(0, 1);
        let (keys, values) = match self.prefix.get(layer) {
            None => (keys, values),
            Some((old_keys, old_values)) => (
                Tensor::cat(vec![old_keys.clone(), keys], 2),
                Tensor::cat(vec![old_values.clone(), values], 1),
            ),
        };
        let queries = queries
            .reshape([new, heads.kv, heads.group(), heads.dim])
            .permute([1, 2, 0, 3])
            .reshape([1, heads.kv, heads.group() * new, heads.dim]);
        let all_keys = keys.clone().unsqueeze_dim(0);
        let all_values = values.clone().unsqueeze_dim(0);
        let mixed = B::cached_attention(queries, all_keys, all_values, &self.visible);
        match self.prefix.get_mut(layer) {
            None => self.prefix.push((keys, values)),
            Some(place) => *place = (keys, values),
        }
        mixed
            .reshape([heads.kv, heads.group(), new, heads.dim])
            .permute([2, 0, 1, 3])
            .reshape([new, heads.queries * heads.dim])
    }
}

/// One new token behind each of some sequences in slots.
struct StepContext<'a, B: Backend> {
    cache: &'a mut SlotCache<B>,
    lengths: &'a [usize],
    /// Places of the cache that are read.
    columns: usize,
    rotation: Rotation<B>,
    heads: Heads,
    visible: Visible,
}

impl<B: ModelOps> AttentionContext<B> for StepContext<'_, B> {
    fn attend(
        &mut self,
        layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (rows, heads) = (self.lengths.len(), self.heads);
        let queries = B::rotate(queries, &self.rotation, heads.scale());
        let queries = queries.reshape([rows, heads.kv, heads.group(), heads.dim]);
        let keys = B::rotate(keys, &self.rotation, 1.0);
        let values = values.reshape([rows, heads.kv, heads.dim]);
        self.cache.append(layer, self.lengths, keys, values);
        let (keys, values) = self.cache.read(layer, rows, self.columns);
        let mixed = B::cached_attention(queries, keys, values, &self.visible);
        mixed.reshape([rows, heads.queries * heads.dim])
    }
}
