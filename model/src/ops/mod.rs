//! The operations that the models are made of, each fused where a backend allows.
//!
//! [`ModelOps`] is an extension of Burn's `Backend`. Its default bodies are tensor operations,
//! which run on any backend in any dtype. Flex and NdArray, whose tensors lie in the host's memory,
//! do in one pass on all cores what the default bodies do one operation after the other, in f32
//! (`host`). Autodiff takes an operation as one node of its graph, whose backward step is written
//! by hand (`autodiff`). GPUs have kernels (`cube`).
//!
//! A file an operation: its default body, its host pass and its backward step stand together; its
//! kernels in the file of the same name under `cube`.

mod attention;
mod autodiff;
mod cached_attention;
#[cfg(feature = "cubecl")]
mod cube;
mod device;
mod embedding;
mod feed_forward;
mod host;
mod linear;
mod math;
mod memory;
mod norm;
mod optimizer;
mod packed_linear;
mod relative_attention;
mod rotary;
mod sampling;
mod target_logps;
#[cfg(test)]
mod tests;
pub(crate) mod vectors;

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Int, Tensor};

pub use attention::{Attended, Heads, PackedAttention, QUERY_TILE};
pub use cached_attention::{CachedStep, Visible, columns_on_host};
#[cfg(feature = "cubecl")]
pub use cube::{LinearProducts, linear_products, use_linear_products};
pub(crate) use device::ints;
pub use device::{DeviceError, Placement};
pub use embedding::TokenIds;
pub use math::GRAIN;
pub(crate) use math::{is_finite, largest};
pub use memory::{cast, edit_bytes, to_f32, to_host};
pub use optimizer::{AdamW, Optimizer, RmsProp, Sgd, UpdateStep, Updated, Updating};
pub use relative_attention::RelativePositions;
pub use rotary::Rotation;
pub use sampling::Likeliest;
pub(crate) use vectors::{LANES, vectorised};

/// A backend with the operations of a Llama step, of generation, and of PairRM.
pub trait ModelOps: Placement {
    /// `x · weightᵀ + bias`: `[rows, in]`, `[out, in]`, `[out]` → `[rows, out]`.
    fn linear_layer(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        linear::forward(x, weight, bias)
    }

    /// The gradient by the weight `[out, in]`, given the one by the output `[rows, out]` and the
    /// input `[rows, in]`; in their dtype or in f32.
    fn linear_layer_weight_gradient(grad: Tensor<Self, 2>, x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        grad.transpose().matmul(x)
    }

    /// The gradient by the input `[rows, in]`, given the one by the output `[rows, out]`.
    fn linear_layer_input_gradient(
        grad: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        grad.matmul(weight)
    }

    /// A weight `[out, in]` packed for products of few rows, where the backend has such products: for
    /// [`Self::packed_linear_layer`] alone.
    fn pack_weight(_weight: Tensor<Self, 2>) -> Option<Tensor<Self, 2>> {
        None
    }

    /// [`Self::linear_layer`] with a weight that [`Self::pack_weight`] packed, of so many outputs; f32,
    /// also where the weight is bf16. A row has the same bits whichever others there are.
    fn packed_linear_layer(
        _x: Tensor<Self, 2>,
        _packed: Tensor<Self, 2>,
        _outputs: usize,
        _bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        unreachable!("a backend that packs weights has products with them")
    }

    /// RMSNorm of rows `[rows, width]`: in f32, cast back, then scaled by `weight` `[width]` (the
    /// order of transformers).
    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        norm::rms_norm(x, weight, eps)
    }

    /// `x + residual` and its RMSNorm.
    fn residual_rms_norm(
        x: Tensor<Self, 2>,
        residual: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let sum = x + residual;
        (sum.clone(), Self::rms_norm(sum, weight, eps))
    }

    /// The gradients by input, to which `more` is added, and by weight in its dtype or in f32.
    fn rms_norm_backward(
        grad: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        eps: f64,
        more: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
        norm::rms_norm_backward(grad, x, weight, eps, more)
    }

    /// LayerNorm of `x`, or of `x + residual`, rows `[rows, width]`, in f32.
    fn residual_layer_norm(
        x: Tensor<Self, 2>,
        residual: Option<Tensor<Self, 2>>,
        weight: Tensor<Self, 1>,
        bias: Tensor<Self, 1>,
        eps: f64,
    ) -> Tensor<Self, 2> {
        norm::layer_norm(x, residual, weight, bias, eps)
    }

    /// gate · σ(gate) · up, `[rows, width]`.
    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        feed_forward::swiglu(gate, up)
    }

    /// The gradients by gate and up.
    fn swiglu_backward(
        grad: Tensor<Self, 2>,
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        feed_forward::swiglu_backward(grad, gate, up)
    }

    /// The GELU by the error function.
    fn exact_gelu(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        burn::tensor::activation::gelu(x)
    }

    /// Rows of `weight` `[vocab, hidden]` → `[tokens, hidden]`.
    fn embed(weight: Tensor<Self, 2>, ids: &TokenIds<Self>) -> Tensor<Self, 2> {
        weight.select(0, ids.on_device())
    }

    /// The gradient by the weight `[vocab, hidden]`, in the dtype of `grad` or in f32.
    fn embed_backward(
        grad: Tensor<Self, 2>,
        ids: &TokenIds<Self>,
        vocab: usize,
    ) -> Tensor<Self, 2> {
        embedding::backward(grad, ids, vocab)
    }

    /// Queries and keys of heads `[tokens, heads · head_dim]` rotated to their positions (the
    /// rotate-half layout) and multiplied by `scale` → `[tokens, heads, head_dim]`.
    fn rotate(x: Tensor<Self, 2>, rotation: &Rotation<Self>, scale: f64) -> Tensor<Self, 3> {
        rotary::rotate(x, rotation, scale)
    }

    /// Causal attention within each sequence of a packed batch, queries and keys not rotated yet:
    /// `[tokens, heads · head_dim]`, twice `[tokens, kv_heads · head_dim]` → as the queries.
    fn packed_attention(
        q: Tensor<Self, 2>,
        k: Tensor<Self, 2>,
        v: Tensor<Self, 2>,
        over: &PackedAttention<Self>,
    ) -> Tensor<Self, 2> {
        Self::packed_attention_saving(q, k, v, over).0
    }

    /// The same, with what the backward step needs.
    fn packed_attention_saving(
        q: Tensor<Self, 2>,
        k: Tensor<Self, 2>,
        v: Tensor<Self, 2>,
        over: &PackedAttention<Self>,
    ) -> (Tensor<Self, 2>, Attended<Self>) {
        attention::forward(q, k, v, over)
    }

    /// The gradients by queries, keys and values.
    fn packed_attention_backward(
        grad: Tensor<Self, 2>,
        attended: Attended<Self>,
        over: &PackedAttention<Self>,
    ) -> [Tensor<Self, 2>; 3] {
        attention::backward(grad, attended, over)
    }

    /// `x` with dimension `axes[i]` as its `i`-th, on a host laid out so at once.
    fn permuted<const D: usize>(x: Tensor<Self, D>, axes: [usize; D]) -> Tensor<Self, D> {
        x.permute(axes)
    }

    /// Attention over cached keys and values: `[batch, kv_heads, rows, head_dim]` of queries, rotated
    /// and scaled, `[batch, kv_heads, head_dim, columns]`, `[batch, kv_heads, columns, head_dim]` → as
    /// the queries. Each query sees the first columns, as many as `visible` says.
    fn cached_attention(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: &Visible,
    ) -> Tensor<Self, 4> {
        cached_attention::forward(q, k, v, visible)
    }

    /// The same of one new token in each of the first slots of caches, keys
    /// `[slots, kv_heads, head_dim, capacity]` and values `[slots, kv_heads, capacity, head_dim]`, of
    /// which no query sees more than `columns`.
    fn slot_attention(
        q: Tensor<Self, 4>,
        caches: [Tensor<Self, 4>; 2],
        visible: &Visible,
        columns: usize,
    ) -> Tensor<Self, 4> {
        let [keys, values] = cached_attention::first_columns(caches, q.dims()[0], columns);
        Self::cached_attention(q, keys, values, visible)
    }

    /// Puts one new token behind each of some cached sequences and attends over them, queries
    /// `[rows, heads · head_dim]`, keys and values `[rows, kv_heads · head_dim]`, not rotated yet →
    /// as the queries. Caches `[slots, kv_heads, capacity, head_dim]`, of the first rows.
    ///
    /// None where the backend has no kernel for it, or none for such heads: the caches are as they
    /// were then.
    fn append_and_attend(
        _heads: [Tensor<Self, 2>; 3],
        _step: &CachedStep<Self>,
        _caches: [&mut Tensor<Self, 4>; 2],
    ) -> Option<Tensor<Self, 2>> {
        None
    }

    /// Puts rows of keys and values `[tokens, kv_heads, head_dim]` at the start of slots of caches
    /// `[slots, kv_heads, capacity, head_dim]`, zeros behind them; three integers of `fills` a slot:
    /// which one, the first row and how many. False where the backend has no kernel for it: the
    /// caches are as they were then.
    fn fill_slots(
        _caches: [&mut Tensor<Self, 4>; 2],
        _rows: [Tensor<Self, 3>; 2],
        _fills: Tensor<Self, 1, Int>,
    ) -> bool {
        false
    }

    /// Copies the first `tokens` of one slot of caches `[slots, kv_heads, capacity, head_dim]` to
    /// another and sets to zero what lies behind them; false where the backend has no kernel for it:
    /// the caches are as they were then.
    fn copy_slot(
        _caches: [&mut Tensor<Self, 4>; 2],
        _from: usize,
        _to: usize,
        _tokens: usize,
    ) -> bool {
        false
    }

    /// Log-probabilities f32 `[rows]` of a token for each row of `x` `[rows, hidden]`: projection by
    /// `weight` `[vocab, hidden]`, log-softmax in f32, gather.
    fn target_logps(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> Tensor<Self, 1> {
        Self::target_logps_saving(x, weight, targets).0
    }

    /// The same, with what the backward step needs: probabilities f32 or logits, `[rows, vocab]`.
    fn target_logps_saving(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        target_logps::forward(Self::linear_layer(x, weight, None), targets)
    }

    /// The same, and what is logged of each row's distribution, f32 `[rows, 3]`: its entropy in nats,
    /// the mean of its logits, and 1 where the token is the likeliest (the first of equals), else 0.
    fn target_logps_measuring(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>, Tensor<Self, 2>) {
        let logits = Self::linear_layer(x, weight, None);
        let measures = target_logps::measures(logits.clone(), targets);
        let (logps, saved) = target_logps::forward(logits, targets);
        (logps, saved, measures)
    }

    /// [`Self::target_logps`] with these measures, which have no gradient.
    fn measured_target_logps(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let (logps, _, measures) = Self::target_logps_measuring(x, weight, targets);
        (logps, measures)
    }

    /// The gradient by the logits `[rows, vocab]`, given the one by the log-probabilities `[rows]`.
    fn target_logps_backward(
        grad: Tensor<Self, 1>,
        saved: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> Tensor<Self, 2> {
        target_logps::backward(grad, saved, targets)
    }

    /// Weights of attention with relative positions (DeBERTa's): softmax of
    /// (contents + to + from) · scale, contents `[heads, sequences, length, length]`, the two tables
    /// `[heads, sequences · length, rows]` read where `positions` says.
    fn relative_attention_weights(
        contents: Tensor<Self, 4>,
        to: Tensor<Self, 3>,
        from: Tensor<Self, 3>,
        positions: &RelativePositions<Self>,
        scale: f64,
    ) -> Tensor<Self, 4> {
        relative_attention::weights(contents, to, from, positions, scale)
    }

    /// One step of an optimizer for some weights. They are given in `dtype` too, where that is not
    /// f32.
    ///
    /// A backend that looks at what it writes makes `non_finite`, f32 `[1]`, and sets it above 0 once
    /// a weight or a slot is NaN or infinite; others leave it as it is.
    fn update(
        optimizer: &Optimizer,
        step: UpdateStep,
        all: Vec<Updating<Self>>,
        dtype: DType,
        _non_finite: &mut Option<Tensor<Self, 1>>,
    ) -> Vec<Updated<Self>> {
        let update = |one: Updating<Self>| {
            let (weights, slots) = optimizer::update(optimizer, step, one);
            Updated::new(weights, slots, dtype)
        };
        all.into_iter().map(update).collect()
    }

    /// Σ x² of every [`GRAIN`] elements of each tensor f32 `[n]`, whose squares may overflow f32.
    fn sums_of_squares(tensors: Vec<Tensor<Self, 1>>) -> Result<Vec<Vec<f64>>, DeviceError> {
        optimizer::sums_of_squares(tensors)
    }

    /// The largest logits of each row f32 `[rows, vocab]`, and sums over the row at these scales
    /// `[rows]`, which are above 0.
    fn likeliest(
        logits: Tensor<Self, 2>,
        scales: Tensor<Self, 1>,
        count: usize,
    ) -> Likeliest<Self> {
        sampling::likeliest(logits, scales, count)
    }
}

/// A backend that trains: autodiff over a backend with the same operations.
pub trait TrainingOps: ModelOps + AutodiffBackend<InnerBackend: ModelOps> {
    /// A tensor `[1]` whose backward pass begins with `grad` as the gradient by `output`, of one
    /// shape.
    fn with_gradient(
        output: Tensor<Self, 2>,
        grad: Tensor<Self::InnerBackend, 2>,
    ) -> Tensor<Self, 1>;

    /// The same for the output `residual + x · weightᵀ`, which is not computed.
    fn linear_layer_with_gradient(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        grad: Tensor<Self::InnerBackend, 2>,
    ) -> Tensor<Self, 1>;
}
