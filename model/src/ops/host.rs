//! Flex and NdArray: passes over the host's memory in f32, the default bodies in other dtypes.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, bf16};

use super::attention::{self, Attended, PackedAttention};
use super::cached_attention::{self, Visible};
use super::device::{DeviceError, Placement};
use super::embedding::{self, TokenIds};
#[cfg(feature = "flex")]
use super::linear;
use super::memory::{self, HostMemory};
use super::optimizer::{self, Optimizer, UpdateStep, Updated, Updating};
use super::relative_attention::{self, RelativePositions};
use super::rotary::{self, Rotation};
use super::sampling::{self, Likeliest};
use super::{ModelOps, feed_forward, norm, packed_linear, target_logps};

/// The operations of a backend whose tensors lie in the host's memory.
macro_rules! host_ops {
    ($Backend:ty, { $($products:item)* }) => {
        impl Placement for $Backend {
            const ON_HOST: bool = true;
        }

        impl ModelOps for $Backend {
            $($products)*

            fn pack_weight(weight: Tensor<Self, 2>) -> Option<Tensor<Self, 2>> {
                packed_linear::pack(weight)
            }

            fn packed_linear_layer(
                x: Tensor<Self, 2>,
                packed: Tensor<Self, 2>,
                outputs: usize,
                bias: Option<Tensor<Self, 1>>,
            ) -> Tensor<Self, 2> {
                packed_linear::forward(x, packed, outputs, bias)
            }

            fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
                match f32(&x) && f32(&weight) {
                    true => norm::rms_norm_on_host(x, weight, eps),
                    false => norm::rms_norm(x, weight, eps),
                }
            }

            fn rms_norm_backward(
                grad: Tensor<Self, 2>,
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 1>,
                eps: f64,
                more: Option<Tensor<Self, 2>>,
            ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
                match f32(&x) && f32(&weight) {
                    true => norm::rms_norm_backward_on_host(grad, x, weight, eps, more),
                    false => norm::rms_norm_backward(grad, x, weight, eps, more),
                }
            }

            fn residual_layer_norm(
                x: Tensor<Self, 2>,
                residual: Option<Tensor<Self, 2>>,
                weight: Tensor<Self, 1>,
                bias: Tensor<Self, 1>,
                eps: f64,
            ) -> Tensor<Self, 2> {
                match f32(&x) && f32(&weight) {
                    true => norm::layer_norm_on_host(x, residual, weight, bias, eps),
                    false => norm::layer_norm(x, residual, weight, bias, eps),
                }
            }

            fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
                match f32(&gate) {
                    true => feed_forward::swiglu_on_host(gate, up),
                    false => feed_forward::swiglu(gate, up),
                }
            }

            fn swiglu_backward(
                grad: Tensor<Self, 2>,
                gate: Tensor<Self, 2>,
                up: Tensor<Self, 2>,
            ) -> [Tensor<Self, 2>; 2] {
                match f32(&gate) {
                    true => feed_forward::swiglu_backward_on_host(grad, gate, up),
                    false => feed_forward::swiglu_backward(grad, gate, up),
                }
            }

            fn exact_gelu(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
                match f32(&x) {
                    true => feed_forward::gelu_on_host(x),
                    false => burn::tensor::activation::gelu(x),
                }
            }

            fn embed_backward(
                grad: Tensor<Self, 2>,
                ids: &TokenIds<Self>,
                vocab: usize,
            ) -> Tensor<Self, 2> {
                match f32(&grad) {
                    true => embedding::backward_on_host(grad, ids, vocab),
                    false => embedding::backward(grad, ids, vocab),
                }
            }

            fn rotate(
                x: Tensor<Self, 2>,
                rotation: &Rotation<Self>,
                scale: f64,
            ) -> Tensor<Self, 3> {
                match f32(&x) {
                    true => rotary::rotate_on_host(x, rotation, scale),
                    false => rotary::rotate(x, rotation, scale),
                }
            }

            fn packed_attention_saving(
                q: Tensor<Self, 2>,
                k: Tensor<Self, 2>,
                v: Tensor<Self, 2>,
                over: &PackedAttention<Self>,
            ) -> (Tensor<Self, 2>, Attended<Self>) {
                match f32(&q) {
                    true => attention::host::forward(q, k, v, over),
                    false => attention::forward(q, k, v, over),
                }
            }

            fn packed_attention_backward(
                grad: Tensor<Self, 2>,
                attended: Attended<Self>,
                over: &PackedAttention<Self>,
            ) -> [Tensor<Self, 2>; 3] {
                match f32(&grad) {
                    true => attention::host::backward(grad, attended, over),
                    false => attention::backward(grad, attended, over),
                }
            }

            fn permuted<const D: usize>(
                x: Tensor<Self, D>,
                axes: [usize; D],
            ) -> Tensor<Self, D> {
                match f32(&x) {
                    true => memory::permuted(x, axes),
                    false => x.permute(axes),
                }
            }

            fn cached_attention(
                q: Tensor<Self, 4>,
                k: Tensor<Self, 4>,
                v: Tensor<Self, 4>,
                visible: &Visible,
            ) -> Tensor<Self, 4> {
                match f32(&q) {
                    true => cached_attention::forward_on_host(q, k, v, visible),
                    false => cached_attention::forward(q, k, v, visible),
                }
            }

            fn slot_attention(
                q: Tensor<Self, 4>,
                caches: [Tensor<Self, 4>; 2],
                visible: &Visible,
                columns: usize,
            ) -> Tensor<Self, 4> {
                if f32(&q) {
                    return cached_attention::slots_on_host(q, caches, visible);
                }
                let slots = q.dims()[0];
                let [keys, values] = cached_attention::first_columns(caches, slots, columns);
                Self::cached_attention(q, keys, values, visible)
            }

            fn target_logps_saving(
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 2>,
                targets: &TokenIds<Self>,
            ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
                let logits = Self::linear_layer(x, weight, None);
                match f32(&logits) {
                    true => target_logps::forward_on_host(logits, targets),
                    false => target_logps::forward(logits, targets),
                }
            }

            fn target_logps_measuring(
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 2>,
                targets: &TokenIds<Self>,
            ) -> (Tensor<Self, 1>, Tensor<Self, 2>, Tensor<Self, 2>) {
                let logits = Self::linear_layer(x, weight, None);
                let host = f32(&logits);
                let measures = match host {
                    true => target_logps::measures_on_host(logits.clone(), targets),
                    false => target_logps::measures(logits.clone(), targets),
                };
                let (logps, saved) = match host {
                    true => target_logps::forward_on_host(logits, targets),
                    false => target_logps::forward(logits, targets),
                };
                (logps, saved, measures)
            }

            fn target_logps_backward(
                grad: Tensor<Self, 1>,
                probabilities: Tensor<Self, 2>,
                targets: &TokenIds<Self>,
            ) -> Tensor<Self, 2> {
                target_logps::backward_on_host(grad, probabilities, targets)
            }

            fn relative_attention_weights(
                contents: Tensor<Self, 4>,
                to: Tensor<Self, 3>,
                from: Tensor<Self, 3>,
                positions: &RelativePositions<Self>,
                scale: f64,
            ) -> Tensor<Self, 4> {
                match f32(&contents) {
                    true => {
                        relative_attention::weights_on_host(contents, to, from, positions, scale)
                    }
                    false => relative_attention::weights(contents, to, from, positions, scale),
                }
            }

            fn update(
                optimizer: &Optimizer,
                step: UpdateStep,
                all: Vec<Updating<Self>>,
                dtype: DType,
                _non_finite: &mut Option<Tensor<Self, 1>>,
            ) -> Vec<Updated<Self>> {
                let update = |one: Updating<Self>| {
                    let (weights, slots) = optimizer::update_on_host(optimizer, step, one);
                    Updated::new(weights, slots, dtype)
                };
                all.into_iter().map(update).collect()
            }

            fn sums_of_squares(
                tensors: Vec<Tensor<Self, 1>>,
            ) -> Result<Vec<Vec<f64>>, DeviceError> {
                let sums = tensors.into_iter().map(optimizer::sums_of_squares_on_host);
                Ok(sums.collect())
            }

            fn likeliest(
                logits: Tensor<Self, 2>,
                scales: Tensor<Self, 1>,
                count: usize,
            ) -> Likeliest<Self> {
                // `argtopk` is only on GPUs.
                let (best, tokens) = logits.clone().topk_with_indices(count, 1);
                sampling::with_sums(logits, scales, best, tokens)
            }
        }
    };
}

fn f32<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    x.dtype() == DType::F32
}

#[cfg(feature = "flex")]
host_ops!(burn_flex::Flex<f32, i32>, {
    fn linear_layer(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        match f32(&x) && f32(&weight) {
            true => linear::forward_on_flex(x, weight, bias),
            false => linear::forward(x, weight, bias),
        }
    }

    fn linear_layer_weight_gradient(grad: Tensor<Self, 2>, x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        match f32(&grad) && f32(&x) {
            true => linear::weight_gradient_on_flex(grad, x),
            false => grad.transpose().matmul(x),
        }
    }

    fn linear_layer_input_gradient(
        grad: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        match f32(&grad) && f32(&weight) {
            true => linear::input_gradient_on_flex(grad, weight),
            false => grad.matmul(weight),
        }
    }
});
#[cfg(feature = "ndarray")]
// Its own products, which Flex's are held to.
host_ops!(burn_ndarray::NdArray<f32, i64, i8>, {});

#[cfg(feature = "flex")]
impl HostMemory for burn_flex::Flex<f32, i32> {
    fn values(x: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match x.as_slice::<f32>() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(x.to_contiguous().storage::<f32>().to_vec()),
        }
    }

    fn bf16_values(x: &FloatTensor<Self>) -> Option<&[bf16]> {
        x.as_slice()
    }
}

#[cfg(feature = "ndarray")]
impl HostMemory for burn_ndarray::NdArray<f32, i64, i8> {
    fn values(x: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        let burn_ndarray::NdArrayTensor::F32(storage) = x else {
            return Cow::Owned(Vec::new());
        };
        let view = storage.view();
        match view.to_slice() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(view.iter().copied().collect()),
        }
    }

    fn bf16_values(_: &FloatTensor<Self>) -> Option<&[bf16]> {
        // It has no bf16.
        None
    }
}
