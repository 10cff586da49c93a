//! Flex and NdArray: passes over the host's memory in f32, the default bodies in other dtypes.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor};
use rayon::prelude::*;

use super::attention::{self, Attended, PackedAttention};
use super::cached_attention::{self, Visible};
use super::embedding::{self, TokenIds};
use super::memory::HostMemory;
use super::optimizer::{self, Optimizer, UpdateStep};
use super::relative_attention::{self, RelativePositions};
use super::rotary::{self, Rotation};
use super::{DeviceError, ModelOps, feed_forward, linear, norm, target_logps};

/// Elements that one thread takes at a time.
pub(super) const GRAIN: usize = 1 << 14;

/// Rows of `width` that one thread takes at a time.
pub(super) fn rows_of_a_thread(width: usize) -> usize {
    (GRAIN / width).max(1)
}

/// Σ x · y, in sixteen sums side by side.
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; 16];
    let (xs, ys) = (x.chunks_exact(16), y.chunks_exact(16));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest: f32 = rest.map(|(x, y)| x * y).sum();
    for (x, y) in xs.zip(ys) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x * y;
        }
    }
    rest + sums.iter().sum::<f32>()
}

/// e^x for x ≤ 0, to 3e-7 of its value; 0 below −87, NaN of NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Not `max`, which would turn NaN into a number.
    let x = if x < -87.0 { -87.0 } else { x };
    // Adding and taking away 1.5 · 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.388_888_9e-3_f32;
    let p = p * r + 8.333_334e-3;
    let p = p * r + 4.166_666_8e-2;
    let p = p * r + 1.666_666_7e-1;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // Such an n lies within −126..=0, so that its power of two is a normal number.
    let power = f32::from_bits(((n as i32 + 127) as u32) << 23);
    p * power
}

/// Softmax of one row in place; gives Σ exp(x − largest).
pub(super) fn softmax_row(row: &mut [f32]) -> f32 {
    let highest = row.iter().copied().fold(f32::MIN, f32::max);
    let mut sum = 0.0;
    for part in row.chunks_mut(16) {
        for x in part.iter_mut() {
            *x = exp(*x - highest);
        }
        sum += part.iter().sum::<f32>();
    }
    let scale = 1.0 / sum;
    row.iter_mut().for_each(|x| *x *= scale);
    sum
}

/// Softmax of the first `used` of each row; what lies behind becomes 0.
pub(super) fn softmax_used(values: &mut [f32], width: usize, used: impl Fn(usize) -> usize + Sync) {
    let rows = rows_of_a_thread(width);
    let softmax = |(block, rows_of_block): (usize, &mut [f32])| {
        for (i, row) in rows_of_block.chunks_mut(width).enumerate() {
            let (row, behind) = row.split_at_mut(used(block * rows + i));
            softmax_row(row);
            behind.fill(0.0);
        }
    };
    values
        .par_chunks_mut(rows * width)
        .enumerate()
        .for_each(softmax);
}

/// Turns the gradient by softmax's output into the one by its input, of the first `used` of each
/// row; what lies behind becomes 0.
pub(super) fn softmax_backward_used(
    grad: &mut [f32],
    weights: &[f32],
    width: usize,
    used: impl Fn(usize) -> usize + Sync,
) {
    let rows = rows_of_a_thread(width);
    let backward = |(block, (grad, weights)): (usize, (&mut [f32], &[f32]))| {
        let both = grad.chunks_mut(width).zip(weights.chunks(width));
        for (i, (grad, weights)) in both.enumerate() {
            let used = used(block * rows + i);
            let (grad, behind) = grad.split_at_mut(used);
            let weights = &weights[..used];
            let along = dot(grad, weights);
            for (grad, weight) in grad.iter_mut().zip(weights) {
                *grad = weight * (*grad - along);
            }
            behind.fill(0.0);
        }
    };
    grad.par_chunks_mut(rows * width)
        .zip(weights.par_chunks(rows * width))
        .enumerate()
        .for_each(backward);
}

/// The operations of a backend whose tensors lie in the host's memory.
macro_rules! host_ops {
    ($Backend:ty) => {
        impl ModelOps for $Backend {
            const ON_HOST: bool = true;

            fn for_few_rows(weight: Tensor<Self, 2>) -> Tensor<Self, 2> {
                linear::by_columns(weight)
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
            ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
                match f32(&x) && f32(&weight) {
                    true => norm::rms_norm_backward_on_host(grad, x, weight, eps),
                    false => norm::rms_norm_backward(grad, x, weight, eps),
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
                    true => attention::forward_on_host(q, k, v, over),
                    false => attention::forward(q, k, v, over),
                }
            }

            fn packed_attention_backward(
                grad: Tensor<Self, 2>,
                attended: Attended<Self>,
                over: &PackedAttention<Self>,
            ) -> [Tensor<Self, 2>; 3] {
                match f32(&grad) {
                    true => attention::backward_on_host(grad, attended, over),
                    false => attention::backward(grad, attended, over),
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

            fn target_logps_saving(
                x: Tensor<Self, 2>,
                weight: Tensor<Self, 2>,
                targets: &TokenIds<Self>,
            ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
                match f32(&x) {
                    true => target_logps::forward_on_host(x, weight, targets),
                    false => target_logps::forward(x, weight, targets),
                }
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
                weights: Tensor<Self, 1>,
                grad: Tensor<Self, 1>,
                slots: Vec<Tensor<Self, 1>>,
            ) -> (Tensor<Self, 1>, Vec<Tensor<Self, 1>>) {
                optimizer::update_on_host(optimizer, step, weights, grad, slots)
            }

            fn sums_of_squares(tensors: Vec<Tensor<Self, 1>>) -> Result<Vec<f64>, DeviceError> {
                let sums = tensors.into_iter().map(optimizer::sum_of_squares_on_host);
                Ok(sums.collect())
            }

            fn likeliest(
                logits: Tensor<Self, 2>,
                count: usize,
            ) -> (Tensor<Self, 2>, Tensor<Self, 2, Int>) {
                // `argtopk` is only on GPUs.
                logits.topk_with_indices(count, 1)
            }
        }
    };
}

fn f32<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    x.dtype() == DType::F32
}

#[cfg(feature = "flex")]
host_ops!(burn_flex::Flex<f32, i32>);
#[cfg(feature = "ndarray")]
host_ops!(burn_ndarray::NdArray<f32, i64, i8>);

#[cfg(feature = "flex")]
impl HostMemory for burn_flex::Flex<f32, i32> {
    fn values(x: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match x.as_slice::<f32>() {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(x.to_contiguous().storage::<f32>().to_vec()),
        }
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
}
