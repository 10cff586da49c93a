//! A block's forward and backward pass over the host's memory, for CPU backends.
//!
//! Matrix products are the backend's; everything between them is one pass over memory on all
//! cores, where under autodiff each elementwise operation is a pass of its own on one core.

use burn::module::ParamId;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

pub use super::host_grid::HostBatch;
use super::host_grid::Way;
use super::layout::PackedBatch;
use super::transformer::{Attention, Block, Llama};
use crate::host;
use crate::nn::{Adapter, Linear, RmsNorm};

/// What a block's backward pass needs of its forward pass.
pub struct Kept<B: Backend> {
    input: Tensor<B, 2>,
    attention_scales: Vec<f32>,
    attention_input: Tensor<B, 2>,
    grids: Vec<KeptGrid<B>>,
    mixed: Tensor<B, 2>,
    middle: Tensor<B, 2>,
    mlp_scales: Vec<f32>,
    mlp_input: Tensor<B, 2>,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    gated: Tensor<B, 2>,
}

/// The same of one rectangle's attention.
struct KeptGrid<B: Backend> {
    /// `[rows, kv_heads, group · longest, head_dim]`, scaled.
    queries: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    /// `[rows, kv_heads, group · longest, longest]`.
    weights: Tensor<B, 4>,
}

/// Takes flat gradients of parameters.
pub trait Sink<B: Backend> {
    /// Whether this parameter is trained; the gradients of others are not computed.
    fn wants(&self, id: ParamId) -> bool;
    /// Takes the gradient `[n]`.
    fn take(&mut self, id: ParamId, grad: Tensor<B, 1>);
}

/// A linear layer's gradient by its input, given the one by its output.
fn linear_back<B: Backend>(
    linear: &Linear<B>,
    input: &Tensor<B, 2>,
    grad: Tensor<B, 2>,
    sink: &mut dyn Sink<B>,
) -> Tensor<B, 2> {
    if sink.wants(linear.weight.id) {
        let of_weight = grad.clone().transpose().matmul(input.clone());
        sink.take(linear.weight.id, of_weight.reshape([-1]));
    }
    if let Some(bias) = &linear.bias
        && sink.wants(bias.id)
    {
        sink.take(bias.id, grad.clone().sum_dim(0).reshape([-1]));
    }
    let of_input = grad.clone().matmul(linear.weight.val());
    match &linear.adapter {
        Some(adapter) => of_input + adapter_back(adapter, input, grad, sink),
        None => of_input,
    }
}

/// An adapter's part of its layer's gradient by the input; x · Aᵀ is cheaper to compute again
/// than to keep.
fn adapter_back<B: Backend>(
    adapter: &Adapter<B>,
    input: &Tensor<B, 2>,
    grad: Tensor<B, 2>,
    sink: &mut dyn Sink<B>,
) -> Tensor<B, 2> {
    let (a, b) = (&adapter.lora_a, &adapter.lora_b);
    if sink.wants(b.id) {
        let narrow = input.clone().matmul(a.val().transpose()) * adapter.scale;
        let of_b = grad.clone().transpose().matmul(narrow);
        sink.take(b.id, of_b.reshape([-1]));
    }
    let of_narrow = grad.matmul(b.val()) * adapter.scale;
    if sink.wants(a.id) {
        let of_a = of_narrow.clone().transpose().matmul(input.clone());
        sink.take(a.id, of_a.reshape([-1]));
    }
    of_narrow.matmul(a.val())
}

/// RMSNorm of rows; also each row's scale 1/√(mean x² + ε).
fn norm<B: Backend>(norm: &RmsNorm<B>, x: &Tensor<B, 2>) -> (Tensor<B, 2>, Vec<f32>) {
    let weight = host::take(norm.weight.val());
    let mut scales = Vec::new();
    let normed = host::map(x.clone(), |x| {
        scales = host::rms_norm_scales(x, &weight, norm.eps as f32);
    });
    (normed, scales)
}

/// The gradient of RMSNorm's input `x`, given `added` that reaches it by another way, too.
fn norm_back<B: Backend>(
    norm: &RmsNorm<B>,
    x: &Tensor<B, 2>,
    scales: &[f32],
    grad: Tensor<B, 2>,
    added: Option<Tensor<B, 2>>,
    sink: &mut dyn Sink<B>,
) -> Tensor<B, 2> {
    let weight = host::take(norm.weight.val());
    let (x, added) = (host::take(x.clone()), added.map(host::take));
    let device = grad.device();
    let mut of_weight = Vec::new();
    let grad = host::map(grad, |grad| {
        of_weight = host::rms_norm_back(grad, &x, scales, &weight, added.as_deref());
    });
    if sink.wants(norm.weight.id) {
        sink.take(norm.weight.id, flat(of_weight, &device));
    }
    grad
}

fn flat<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

impl<B: Backend> Block<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`, and what the way back needs.
    pub fn forward_on_host(
        &self,
        input: Tensor<B, 2>,
        batch: &HostBatch,
    ) -> (Tensor<B, 2>, Kept<B>) {
        let attention = &self.self_attn;
        let (x, attention_scales) = norm(&self.input_layernorm, &input);
        let (grids, mixed) = attention.attend_on_host(&x, batch);
        let middle = input.clone() + attention.o_proj.forward(mixed.clone());
        let (mlp_input, mlp_scales) = norm(&self.post_attention_layernorm, &middle);
        let gate = self.mlp.gate_proj.forward(mlp_input.clone());
        let up = self.mlp.up_proj.forward(mlp_input.clone());
        let of_up = host::take(up.clone());
        let gated = host::map(gate.clone(), |gate| host::swiglu(gate, &of_up));
        let out = middle.clone() + self.mlp.down_proj.forward(gated.clone());
        let kept = Kept {
            input,
            attention_scales,
            attention_input: x,
            grids,
            mixed,
            middle,
            mlp_scales,
            mlp_input,
            gate,
            up,
            gated,
        };
        (out, kept)
    }

    /// The gradient by the input, given the one by the output; those of the parameters go to
    /// `sink`.
    pub fn backward_on_host(
        &self,
        grad: Tensor<B, 2>,
        kept: Kept<B>,
        batch: &HostBatch,
        sink: &mut dyn Sink<B>,
    ) -> Tensor<B, 2> {
        let mlp = &self.mlp;
        let of_gated = linear_back(&mlp.down_proj, &kept.gated, grad.clone(), sink);
        let mut of_gate = host::take(kept.gate);
        let of_up = host::map(kept.up, |up| {
            host::swiglu_back(&mut of_gate, up, &host::take(of_gated))
        });
        let shape = of_up.dims();
        let of_gate = Tensor::from_data(
            TensorData::new(of_gate, shape),
            (&of_up.device(), DType::F32),
        );
        let of_input = linear_back(&mlp.gate_proj, &kept.mlp_input, of_gate, sink)
            + linear_back(&mlp.up_proj, &kept.mlp_input, of_up, sink);
        let norm = &self.post_attention_layernorm;
        let grad = norm_back(
            norm,
            &kept.middle,
            &kept.mlp_scales,
            of_input,
            Some(grad),
            sink,
        );

        let attention = &self.self_attn;
        let of_mixed = linear_back(&attention.o_proj, &kept.mixed, grad.clone(), sink);
        let x = &kept.attention_input;
        let of_x = attention.attend_back_on_host(x, of_mixed, kept.grids, batch, sink);
        let norm = &self.input_layernorm;
        norm_back(
            norm,
            &kept.input,
            &kept.attention_scales,
            of_x,
            Some(grad),
            sink,
        )
    }
}

impl<B: Backend> Attention<B> {
    /// What attention makes of normed `x` before its last layer, `[tokens, heads · head_dim]`.
    fn attend_on_host(
        &self,
        x: &Tensor<B, 2>,
        batch: &HostBatch,
    ) -> (Vec<KeptGrid<B>>, Tensor<B, 2>) {
        let kv = self.kv_heads;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let grids = |linear: &Linear<B>, way| batch.to_grids(linear.forward(x.clone()), kv, way);
        let queries = grids(&self.q_proj, Way::Turned(scale));
        let keys = grids(&self.k_proj, Way::Turned(1.0));
        let values = grids(&self.v_proj, Way::Plain);
        let mut kept = Vec::with_capacity(batch.grids.len());
        let mut mixed = Vec::with_capacity(batch.grids.len());
        let heads = queries.into_iter().zip(keys).zip(values);
        for (((queries, keys), values), grid) in heads.zip(&batch.grids) {
            let scores = queries.clone().matmul(keys.clone().transpose());
            let each = self.heads * grid.longest;
            let weights = host::map(scores, |scores| {
                host::softmax_used(scores, grid.longest, |row| grid.used(row, each));
            });
            mixed.push(weights.clone().matmul(values.clone()));
            kept.push(KeptGrid {
                queries,
                keys,
                values,
                weights,
            });
        }
        (kept, batch.to_tokens(mixed, self.heads, Way::Owner))
    }

    /// The gradient by `x`, given the one by what [`Self::attend_on_host`] made of it.
    fn attend_back_on_host(
        &self,
        x: &Tensor<B, 2>,
        of_mixed: Tensor<B, 2>,
        kept: Vec<KeptGrid<B>>,
        batch: &HostBatch,
        sink: &mut dyn Sink<B>,
    ) -> Tensor<B, 2> {
        let (heads, kv) = (self.heads, self.kv_heads);
        let of_mixed = batch.to_grids(of_mixed, kv, Way::Owner);
        let (mut of_queries, mut of_keys, mut of_values) = (Vec::new(), Vec::new(), Vec::new());
        for ((kept, of_mixed), grid) in kept.into_iter().zip(of_mixed).zip(&batch.grids) {
            of_values.push(kept.weights.clone().transpose().matmul(of_mixed.clone()));
            let of_weights = of_mixed.matmul(kept.values.transpose());
            let weights = host::take(kept.weights);
            let each = heads * grid.longest;
            let of_scores = host::map(of_weights, |of_weights| {
                host::softmax_back(of_weights, &weights, grid.longest, |row| {
                    grid.used(row, each)
                });
            });
            of_queries.push(of_scores.clone().matmul(kept.keys));
            of_keys.push(of_scores.transpose().matmul(kept.queries));
        }
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let of_queries = batch.to_tokens(of_queries, heads, Way::Turned(scale));
        let of_keys = batch.to_tokens(of_keys, kv, Way::Turned(1.0));
        let of_values = batch.to_tokens(of_values, kv, Way::Plain);
        linear_back(&self.q_proj, x, of_queries, sink)
            + linear_back(&self.k_proj, x, of_keys, sink)
            + linear_back(&self.v_proj, x, of_values, sink)
    }
}

/// Summed log-probabilities of tokens under a model's head, over the host's memory.
pub struct HostHead<B: Backend> {
    picked: Tensor<B, 2>,
    scales: Vec<f32>,
    normed: Tensor<B, 2>,
    /// Probabilities `[rows, vocab]`.
    probabilities: Tensor<B, 2>,
    tokens: Vec<usize>,
    /// Log-probability of each row's token.
    pub logps: Vec<f32>,
}

impl<B: Backend> Llama<B> {
    /// Log-probabilities of `tokens`, one a row, from the last block's output there
    /// `[rows, hidden]`.
    pub fn head_on_host(&self, picked: Tensor<B, 2>, tokens: Vec<usize>) -> HostHead<B> {
        let (normed, scales) = norm(&self.norm, &picked);
        let vocab = self.embed_tokens.dims()[0];
        let mut logps = Vec::new();
        let probabilities = host::map(self.project(normed.clone()), |logits| {
            logps = host::log_softmax_at(logits, vocab, &tokens);
        });
        HostHead {
            picked,
            scales,
            normed,
            probabilities,
            tokens,
            logps,
        }
    }

    /// The gradient of Σ wᵢ · logpᵢ by the head's input.
    pub fn head_backward_on_host(
        &self,
        head: HostHead<B>,
        weights: &[f32],
        sink: &mut dyn Sink<B>,
    ) -> Tensor<B, 2> {
        let vocab = self.embed_tokens.dims()[0];
        let of_logits = host::map(head.probabilities, |p| {
            host::log_softmax_back(p, vocab, &head.tokens, weights);
        });
        let of_normed = match &self.lm_head {
            Some(linear) => linear_back(linear, &head.normed, of_logits, sink),
            None => {
                if sink.wants(self.embed_tokens.id) {
                    let of_weight = of_logits.clone().transpose().matmul(head.normed);
                    sink.take(self.embed_tokens.id, of_weight.reshape([-1]));
                }
                of_logits.matmul(self.embed_tokens.val())
            }
        };
        norm_back(
            &self.norm,
            &head.picked,
            &head.scales,
            of_normed,
            None,
            sink,
        )
    }

    /// The embeddings' gradient, given that of their rows `[tokens, hidden]`.
    pub fn embed_backward_on_host(
        &self,
        batch: &PackedBatch<B>,
        grad: Tensor<B, 2>,
        sink: &mut dyn Sink<B>,
    ) {
        if !sink.wants(self.embed_tokens.id) {
            return;
        }
        let [vocab, hidden] = self.embed_tokens.dims();
        let device = grad.device();
        let ids: Vec<i64> = batch.ids.to_data().iter::<i64>().collect();
        let mut sums = vec![0f32; vocab * hidden];
        for (id, grad) in ids.into_iter().zip(host::take(grad).chunks_exact(hidden)) {
            let sums = &mut sums[id as usize * hidden..][..hidden];
            sums.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
        }
        sink.take(self.embed_tokens.id, flat(sums, &device));
    }
}
