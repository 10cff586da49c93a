//! The Llama decoder as a Burn module; field names give the Hugging Face parameter names.

use burn::module::{Module, Param};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, Int, Tensor, backend::Backend};

use super::layout::PackedBatch;
use super::rope::{Rope, RopeRows};
use crate::nn::{Linear, RmsNorm, from_f32, to_f32};

/// A Llama decoder with its vocabulary projection.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Token embeddings `[vocab, hidden]`.
    pub embed_tokens: Param<Tensor<B, 2>>,
    pub layers: Vec<Block<B>>,
    pub norm: RmsNorm<B>,
    /// `None` where the projection is tied to the embeddings.
    pub lm_head: Option<Linear<B>>,
    pub(crate) rope: Rope<B>,
}

/// One decoder block: attention and feed-forward, each behind a norm and added to its input.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    pub input_layernorm: RmsNorm<B>,
    pub self_attn: Attention<B>,
    pub post_attention_layernorm: RmsNorm<B>,
    pub mlp: Mlp<B>,
}

/// Grouped-query attention: `heads` queries share `kv_heads` keys and values.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    pub q_proj: Linear<B>,
    pub k_proj: Linear<B>,
    pub v_proj: Linear<B>,
    pub o_proj: Linear<B>,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// SwiGLU feed-forward.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    pub gate_proj: Linear<B>,
    pub up_proj: Linear<B>,
    pub down_proj: Linear<B>,
}

impl<B: Backend> Llama<B> {
    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.val().dtype()
    }

    /// The device that the weights live on.
    pub fn device(&self) -> B::Device {
        self.embed_tokens.val().device()
    }

    /// Embeddings of `ids` `[tokens]` → `[tokens, hidden]`.
    pub fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_tokens.val().select(0, ids)
    }

    /// Cosines and sines for the positions of `batch`, shared by all blocks.
    pub fn rope_rows(&self, batch: &PackedBatch<B>) -> RopeRows<B> {
        self.rope_at(batch.positions.clone())
    }

    fn rope_at(&self, positions: Tensor<B, 1, Int>) -> RopeRows<B> {
        let (heads, kv_heads) = self
            .layers
            .first()
            .map_or((1, 1), |b| (b.self_attn.heads, b.self_attn.kv_heads));
        self.rope.rows(positions, heads, kv_heads, self.dtype())
    }

    /// Output of the last block, before the final norm, `[tokens, hidden]`.
    pub fn forward_blocks(&self, batch: &PackedBatch<B>) -> Tensor<B, 2> {
        let rope = self.rope_rows(batch);
        let mut hidden = self.embed(batch.ids.clone());
        for block in &self.layers {
            hidden = block.forward(hidden, &rope, batch);
        }
        hidden
    }

    /// Logits of normed hidden states, f32 `[rows, hidden]` → `[rows, vocab]`.
    pub fn project(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let logits = match &self.lm_head {
            Some(head) => head.forward(hidden),
            None => hidden.matmul(self.embed_tokens.val().transpose()),
        };
        to_f32(logits)
    }

    /// Logits of every token, f32 `[tokens, vocab]`.
    pub fn logits(&self, batch: &PackedBatch<B>) -> Tensor<B, 2> {
        self.project(self.norm.forward(self.forward_blocks(batch)))
    }
}

impl<B: Backend> Block<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward(
        &self,
        hidden: Tensor<B, 2>,
        rope: &RopeRows<B>,
        batch: &PackedBatch<B>,
    ) -> Tensor<B, 2> {
        let normed = self.input_layernorm.forward(hidden.clone());
        let hidden = hidden + self.self_attn.forward(normed, rope, batch);
        self.feed_forward(hidden)
    }

    fn feed_forward(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.post_attention_layernorm.forward(hidden.clone());
        hidden + self.mlp.forward(normed)
    }
}

impl<B: Backend> Attention<B> {
    /// Causal self-attention within each sequence, `[tokens, hidden]` → `[tokens, hidden]`.
    fn forward(&self, x: Tensor<B, 2>, rope: &RopeRows<B>, batch: &PackedBatch<B>) -> Tensor<B, 2> {
        let (q, k, v) = self.project_rotated(x, rope);
        let mixed = batch.grids.iter().map(|grid| {
            let pad = |x: &Tensor<B, 3>| grid.pad(x.clone());
            let mask = grid.mask.clone().unsqueeze::<4>();
            self.attend(
                pad(&q),
                pad(&k).swap_dims(1, 2),
                pad(&v).swap_dims(1, 2),
                mask,
            )
        });
        self.o_proj.forward(batch.unpad(mixed.collect()))
    }

    /// Queries, keys and values `[tokens, heads, head_dim]`, the first two rotated.
    fn project_rotated(
        &self,
        x: Tensor<B, 2>,
        rope: &RopeRows<B>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 3>) {
        let tokens = x.dims()[0];
        let split = |x: Tensor<B, 2>, heads| x.reshape([tokens, heads, self.head_dim]);
        let q = split(self.q_proj.forward(x.clone()), self.heads);
        let k = split(self.k_proj.forward(x.clone()), self.kv_heads);
        let v = split(self.v_proj.forward(x), self.kv_heads);
        (rope.queries.apply(q), rope.keys.apply(k), v)
    }

    /// Queries `[rows, new, heads, head_dim]` over keys and values
    /// `[rows, kv_heads, slots, head_dim]` under an additive mask `[rows | 1, 1, new, slots]`
    /// → `[rows · new, heads · head_dim]`.
    ///
    /// The queries of a group lie below each other as rows of one matrix, so that keys and values
    /// are never copied per head.
    fn attend(
        &self,
        q: Tensor<B, 4>,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
        mask: Tensor<B, 4>,
    ) -> Tensor<B, 2> {
        let [rows, new, heads, width] = q.dims();
        let group = heads / self.kv_heads;
        let dtype = q.dtype();
        let q = q
            .reshape([rows, new, self.kv_heads, group, width])
            .permute([0, 2, 3, 1, 4])
            .reshape([rows, self.kv_heads, group * new, width]);
        let scale = 1.0 / (width as f64).sqrt();
        let scores = to_f32(q.matmul(k.transpose())) * scale;
        let weights = from_f32(softmax(add_mask(scores, mask, group), 3), dtype);
        weights
            .matmul(v)
            .reshape([rows, self.kv_heads, group, new, width])
            .permute([0, 3, 1, 2, 4])
            .reshape([rows * new, heads * width])
    }
}

/// Adds a mask `[rows | 1, 1, new, slots]` to scores `[rows, kv_heads, group · new, slots]`.
fn add_mask<B: Backend>(scores: Tensor<B, 4>, mask: Tensor<B, 4>, group: usize) -> Tensor<B, 4> {
    let [rows, kv_heads, queries, slots] = scores.dims();
    let [mask_rows, _, new, _] = mask.dims();
    let mask = match new {
        1 => mask,
        _ => mask.repeat_dim(2, group),
    };
    if mask_rows != 1 || new == 1 {
        return scores + mask;
    }
    // One row of a matrix for all: the broadcast that CPU backends do fast.
    let flat = scores.reshape([rows * kv_heads, queries * slots]);
    let masked = flat + mask.reshape([1, queries * slots]);
    masked.reshape([rows, kv_heads, queries, slots])
}

impl<B: Backend> Mlp<B> {
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let gate = silu(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}
