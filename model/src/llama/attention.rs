//! Grouped-query attention; what its queries see is its caller's affair.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::nn::Linear;
use crate::ops::{Heads, ModelOps, PackedAttention};

/// Grouped-query attention: `heads` queries share `kv_heads` keys and values.
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// Queries, `[heads · head_dim, hidden]`.
    pub q_proj: Linear<B>,
    /// Keys, `[kv_heads · head_dim, hidden]`.
    pub k_proj: Linear<B>,
    /// Values, `[kv_heads · head_dim, hidden]`.
    pub v_proj: Linear<B>,
    /// From the heads back to the hidden state, `[hidden, heads · head_dim]`.
    pub o_proj: Linear<B>,
    /// Number of query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// What the queries of some tokens attend to: the sequences of a packed batch, or a cache.
pub trait AttentionContext<B: Backend> {
    /// Mixes the values `[tokens, kv_heads · head_dim]` of layer `layer` by queries
    /// `[tokens, heads · head_dim]` and keys, neither rotated yet → as the queries.
    fn attend(
        &mut self,
        layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2>;
}

impl<B: ModelOps> AttentionContext<B> for PackedAttention<B> {
    fn attend(
        &mut self,
        _layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        B::packed_attention(queries, keys, values, self)
    }
}

impl<B: Backend> Attention<B> {
    /// How its heads are laid out.
    pub fn layout(&self) -> Heads {
        Heads {
            queries: self.heads,
            kv: self.kv_heads,
            dim: self.head_dim,
        }
    }
}

impl<B: ModelOps> Attention<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward(
        &self,
        x: Tensor<B, 2>,
        layer: usize,
        context: &mut impl AttentionContext<B>,
    ) -> Tensor<B, 2> {
        let queries = self.q_proj.forward(x.clone());
        let keys = self.k_proj.forward(x.clone());
        let values = self.v_proj.forward(x);
        let mixed = context.attend(layer, queries, keys, values);
        self.o_proj.forward(mixed)
    }
}
