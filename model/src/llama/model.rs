//! The Llama decoder as a Burn module; field names give the Hugging Face parameter names.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use super::attention::AttentionContext;
use super::block::Block;
use super::parameters::ParameterTable;
use crate::nn::{Linear, RmsNorm};
use crate::ops::{ModelOps, PackedAttention, TokenIds, to_f32};
use crate::packed_batch::PackedBatch;

/// A Llama decoder with its vocabulary projection.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Token embeddings `[vocab, hidden]`.
    pub embed_tokens: Param<Tensor<B, 2>>,
    /// The blocks, first to last.
    pub layers: Vec<Block<B>>,
    /// The norm behind the last block.
    pub norm: RmsNorm<B>,
    /// `None` where the projection is tied to the embeddings.
    pub lm_head: Option<Linear<B>>,
    /// Inverse frequencies of the rotary embedding `[head_dim / 2]`.
    #[module(skip)]
    pub rope: Vec<f32>,
    /// What each parameter is called, in the order of the fields.
    #[module(skip)]
    pub parameters: Arc<ParameterTable>,
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

    /// Number of token ids that it knows.
    pub fn vocab_size(&self) -> usize {
        self.embed_tokens.dims()[0]
    }

    /// The weight of the vocabulary projection `[vocab, hidden]`.
    pub fn head_weight(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.embed_tokens.val(),
        }
    }
}

impl<B: ModelOps> Llama<B> {
    /// Embeddings of ids → `[tokens, hidden]`.
    pub fn embed(&self, ids: &TokenIds<B>) -> Tensor<B, 2> {
        B::embed(self.embed_tokens.val(), ids)
    }

    /// Attention over the sequences of a batch, for all blocks.
    pub fn attention_over(&self, batch: &PackedBatch) -> PackedAttention<B> {
        let heads = self.layers.first().map(|block| block.self_attn.layout());
        let device = self.device();
        PackedAttention::new(
            batch,
            &self.rope,
            heads.unwrap_or_default(),
            self.dtype(),
            &device,
        )
    }

    /// Output of the last block, before the final norm, for embeddings `[tokens, hidden]`.
    pub fn blocks(
        &self,
        mut hidden: Tensor<B, 2>,
        context: &mut impl AttentionContext<B>,
    ) -> Tensor<B, 2> {
        for (layer, block) in self.layers.iter().enumerate() {
            hidden = block.forward(hidden, layer, context);
        }
        hidden
    }

    /// The same for the tokens of a batch.
    pub fn forward_blocks(&self, batch: &PackedBatch) -> Tensor<B, 2> {
        let embedded = self.embed(&TokenIds::new(&batch.ids, &self.device()));
        self.blocks(embedded, &mut self.attention_over(batch))
    }

    /// Logits of the last block's output, f32 `[rows, hidden]` → `[rows, vocab]`.
    pub fn project(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.norm.forward(hidden);
        to_f32(match &self.lm_head {
            Some(head) => head.forward(normed),
            None => B::linear_layer(normed, self.head_weight(), None),
        })
    }

    /// Logits of every token, f32 `[tokens, vocab]`.
    pub fn logits(&self, batch: &PackedBatch) -> Tensor<B, 2> {
        self.project(self.forward_blocks(batch))
    }

    /// Log-probabilities of `targets` f32 `[rows]`, one for each row of the last block's output
    /// `[rows, hidden]`.
    pub fn target_logps(&self, hidden: Tensor<B, 2>, targets: &TokenIds<B>) -> Tensor<B, 1> {
        B::target_logps(self.norm.forward(hidden), self.head_weight(), targets)
    }

    /// The same with what is logged of each row's distribution, f32 `[rows, 3]`
    /// ([`ModelOps::target_logps_measuring`]).
    pub fn measured_target_logps(
        &self,
        hidden: Tensor<B, 2>,
        targets: &TokenIds<B>,
    ) -> (Tensor<B, 1>, Tensor<B, 2>) {
        B::measured_target_logps(self.norm.forward(hidden), self.head_weight(), targets)
    }
}
