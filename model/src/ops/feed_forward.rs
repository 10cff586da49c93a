//! What stands between the linear layers of a feed-forward network: SwiGLU and GELU.

use burn::tensor::Tensor;
use burn::tensor::activation::{sigmoid, silu};
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::math::{GRAIN, exp};
use super::memory::{HostMemory, HostTensor, cast, from_host, map, take, to_f32};
use super::vectors::vectorised;

pub(super) fn swiglu<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    silu(gate) * up
}

/// σ'(x) · x + σ(x) = σ(x) · (1 + x · (1 − σ(x))).
pub(super) fn swiglu_backward<B: Backend>(
    grad: Tensor<B, 2>,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    let dtype = gate.dtype();
    let (grad, gate, up) = (to_f32(grad), to_f32(gate), to_f32(up));
    let sigmoid = sigmoid(gate.clone());
    let slope = sigmoid.clone() * (gate.clone() * (sigmoid.clone().neg() + 1.0) + 1.0);
    let of_gate = grad.clone() * up * slope;
    [cast(of_gate, dtype), cast(grad * gate * sigmoid, dtype)]
}

/// σ(x), by e^-|x|, so that nothing overflows.
#[inline(always)]
fn sigmoid_of(x: f32) -> f32 {
    let e = exp(-x.abs());
    let numerator = if x < 0.0 { e } else { 1.0 };
    numerator / (1.0 + e)
}

pub(super) fn swiglu_on_host<B: HostMemory>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    let up = HostTensor::new(up);
    let up = up.values();
    map(gate, |gate| {
        let parts = gate.par_chunks_mut(GRAIN).zip(up.par_chunks(GRAIN));
        parts.for_each(|(gate, up)| gated(gate, up));
    })
}

vectorised! {
    fn gated(gate: &mut [f32], up: &[f32]) {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate *= sigmoid_of(*gate) * up;
        }
    }
}

pub(super) fn swiglu_backward_on_host<B: HostMemory>(
    grad: Tensor<B, 2>,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
) -> [Tensor<B, 2>; 2] {
    let (shape, device) = (gate.dims(), gate.device());
    let mut gate = take(gate);
    let grad = HostTensor::new(grad);
    let grad = grad.values();
    let of_up = map(up, |up| {
        let parts = gate.par_chunks_mut(GRAIN).zip(up.par_chunks_mut(GRAIN));
        parts
            .zip(grad.par_chunks(GRAIN))
            .for_each(|((gate, up), grad)| gated_backward(gate, up, grad));
    });
    [from_host(gate, shape, &device), of_up]
}

vectorised! {
    /// Both become the gradients by them.
    fn gated_backward(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
        for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
            let x = *gate;
            let sigmoid = sigmoid_of(x);
            *gate = grad * *up * sigmoid * (1.0 + x * (1.0 - sigmoid));
            *up = grad * x * sigmoid;
        }
    }
}

pub(super) fn gelu_on_host<B: HostMemory>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    map(x, |values| {
        values.par_chunks_mut(GRAIN).for_each(gelu);
    })
}

vectorised! {
    fn gelu(values: &mut [f32]) {
        for x in values {
            *x *= 0.5 + 0.5 * erf(*x * std::f32::consts::FRAC_1_SQRT_2);
        }
    }
}

/// The error function as a quotient of polynomials fitted on [0, 3.92], to 4e-7.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const BOUND: f32 = 3.92;
    let x = x.clamp(-BOUND, BOUND);
    let t = x * x;
    let over = 1.992_146_6e-8_f32;
    let over = over * t - 1.994_306_5e-6;
    let over = over * t + 1.489_877e-4;
    let over = over * t + 3.972_921_7e-3;
    let over = over * t + 5.139_736e-2;
    let over = over * t + 2.061_148_5e-1;
    let over = over * t + 1.128_378_8;
    let under = 1.024_132e-3_f32;
    let under = under * t + 1.488_927_2e-2;
    let under = under * t + 1.175_648_2e-1;
    let under = under * t + 5.159_933e-1;
    let under = under * t + 1.0;
    x * over / under
}
