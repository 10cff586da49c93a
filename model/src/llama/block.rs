//! One decoder block.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::attention::{Attention, AttentionContext};
use crate::nn::{Linear, RmsNorm};
use crate::ops::{ModelOps, TrainingOps};

/// Attention and feed-forward, each behind a norm and added to its input.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before the attention.
    pub input_layernorm: RmsNorm<B>,
    /// Attention to the tokens up to one's own.
    pub self_attn: Attention<B>,
    /// Before the feed-forward, behind the attention.
    pub post_attention_layernorm: RmsNorm<B>,
    /// The feed-forward.
    pub mlp: Mlp<B>,
}

/// SwiGLU feed-forward.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Goes through SiLU, `[intermediate, hidden]`.
    pub gate_proj: Linear<B>,
    /// Multiplied with the gate, `[intermediate, hidden]`.
    pub up_proj: Linear<B>,
    /// From their product back, `[hidden, intermediate]`.
    pub down_proj: Linear<B>,
}

impl<B: ModelOps> Block<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`, as layer `layer` of its model.
    pub fn forward(
        &self,
        hidden: Tensor<B, 2>,
        layer: usize,
        context: &mut impl AttentionContext<B>,
    ) -> Tensor<B, 2> {
        let (hidden, normed) = self.attend(hidden, layer, context);
        hidden + self.mlp.forward(normed)
    }

    /// The hidden state behind the attention, and its norm.
    fn attend(
        &self,
        hidden: Tensor<B, 2>,
        layer: usize,
        context: &mut impl AttentionContext<B>,
    ) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let normed = self.input_layernorm.forward(hidden.clone());
        let attended = self.self_attn.forward(normed, layer, context);
        self.post_attention_layernorm.add(hidden, attended)
    }
}

impl<B: TrainingOps> Block<B> {
    /// A tensor `[1]` whose backward pass begins with `grad` as the gradient by the output of
    /// [`Self::forward`], which is not computed to its end.
    pub fn with_gradient(
        &self,
        hidden: Tensor<B, 2>,
        layer: usize,
        context: &mut impl AttentionContext<B>,
        grad: Tensor<B::InnerBackend, 2>,
    ) -> Tensor<B, 1> {
        let (hidden, normed) = self.attend(hidden, layer, context);
        let gated = self.mlp.gated(normed);
        self.mlp.down_proj.with_gradient(hidden, gated, grad)
    }
}

impl<B: ModelOps> Mlp<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.down_proj.forward(self.gated(x))
    }

    /// `[tokens, hidden]` → `[tokens, intermediate]`.
    fn gated(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let gate = self.gate_proj.forward(x.clone());
        let up = self.up_proj.forward(x);
        B::swiglu(gate, up)
    }
}
