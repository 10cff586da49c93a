//! RMSNorm and LayerNorm of rows.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::math::{add, dot_of, rows_of_a_thread};
use super::memory::{HostMemory, HostTensor, cast, from_host, map, to_f32};
use super::vectors::vectorised;

pub(super) fn rms_norm<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    let dtype = x.dtype();
    let x = to_f32(x);
    let root = row_roots(&x, eps);
    cast(x / root, dtype) * weight.unsqueeze()
}

/// √(mean x² + ε) of f32 rows, `[rows, 1]`.
fn row_roots<B: Backend>(x: &Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    let mean_square = x.clone().powi_scalar(2).mean_dim(1);
    (mean_square + eps).sqrt()
}

/// With n = x / r and r = √(mean x² + ε): ∂x = (g − n · mean(g · n)) / r for g = grad · weight.
pub(super) fn rms_norm_backward<B: Backend>(
    grad: Tensor<B, 2>,
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    eps: f64,
    more: Option<Tensor<B, 2>>,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let dtype = x.dtype();
    let (grad, x) = (to_f32(grad), to_f32(x));
    let root = row_roots(&x, eps);
    let normed = x / root.clone();
    let of_weight = (grad.clone() * normed.clone()).sum_dim(0).squeeze_dim(0);
    let grad = grad * to_f32(weight).unsqueeze();
    let along = (grad.clone() * normed.clone()).mean_dim(1);
    let of_x = (grad - normed * along) / root;
    (plus(cast(of_x, dtype), more), cast(of_weight, dtype))
}

fn plus<B: Backend>(x: Tensor<B, 2>, more: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
    match more {
        Some(more) => x + more,
        None => x,
    }
}

pub(super) fn layer_norm<B: Backend>(
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    let x = plus(x, residual);
    let dtype = x.dtype();
    let x = to_f32(x);
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let scaled = centred / (variance + eps).sqrt() * to_f32(weight).unsqueeze();
    cast(scaled + to_f32(bias).unsqueeze(), dtype)
}

pub(super) fn rms_norm_on_host<B: HostMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    let weight = HostTensor::new(weight);
    let weight = weight.values();
    let width = weight.len();
    map(x, |x| {
        x.par_chunks_mut(rows_of_a_thread(width) * width)
            .for_each(|rows| norm_rows(rows, &weight, eps as f32));
    })
}

vectorised! {
    fn norm_rows(rows: &mut [f32], weight: &[f32], eps: f32) {
        for row in rows.chunks_mut(weight.len()) {
            let scale = row_scale(row, eps);
            for (x, weight) in row.iter_mut().zip(weight) {
                *x = *x * scale * weight;
            }
        }
    }
}

#[inline(always)]
fn row_scale(row: &[f32], eps: f32) -> f32 {
    1.0 / (dot_of(row, row) / row.len() as f32 + eps).sqrt()
}

pub(super) fn rms_norm_backward_on_host<B: HostMemory>(
    grad: Tensor<B, 2>,
    x: Tensor<B, 2>,
    weight: Tensor<B, 1>,
    eps: f64,
    more: Option<Tensor<B, 2>>,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let device = grad.device();
    let (x, weight) = (HostTensor::new(x), HostTensor::new(weight));
    let (x, weight) = (x.values(), weight.values());
    let width = weight.len();
    let block = rows_of_a_thread(width) * width;
    let mut of_weight = vec![0f32; width];
    let grad = map(grad, |grad| {
        let blocks = grad.par_chunks_mut(block).zip(x.par_chunks(block));
        let sums: Vec<Vec<f32>> = blocks
            .map(|(grad, x)| rows_backward(grad, x, &weight, eps as f32))
            .collect();
        // In the order of the rows, so that the sum is the same each time.
        for sum in sums {
            of_weight.iter_mut().zip(sum).for_each(|(all, x)| *all += x);
        }
    });
    (plus(grad, more), from_host(of_weight, [width], &device))
}

vectorised! {
    /// Turns the gradient by the output of some rows into the one by their input; gives the one by the
    /// weight.
    fn rows_backward(grad: &mut [f32], x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
        let width = weight.len();
        let mut of_weight = vec![0f32; width];
        let mut behind = vec![0f32; width];
        for (grad, x) in grad.chunks_mut(width).zip(x.chunks(width)) {
            let scale = row_scale(x, eps);
            for ((sum, grad), x) in of_weight.iter_mut().zip(&*grad).zip(x) {
                *sum += grad * x * scale;
            }
            for ((behind, grad), weight) in behind.iter_mut().zip(&*grad).zip(weight) {
                *behind = grad * weight;
            }
            let along = dot_of(&behind, x) / width as f32 * scale * scale;
            for ((grad, behind), x) in grad.iter_mut().zip(&behind).zip(x) {
                *grad = scale * (behind - x * along);
            }
        }
        of_weight
    }
}

pub(super) fn layer_norm_on_host<B: HostMemory>(
    x: Tensor<B, 2>,
    residual: Option<Tensor<B, 2>>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, 2> {
    let (weight, bias) = (HostTensor::new(weight), HostTensor::new(bias));
    let (weight, bias) = (weight.values(), bias.values());
    let residual = residual.map(HostTensor::new);
    let residual = residual.as_ref().map(HostTensor::values);
    let width = weight.len();
    let block = rows_of_a_thread(width) * width;
    map(x, |x| {
        x.par_chunks_mut(block)
            .enumerate()
            .for_each(|(number, rows)| {
                if let Some(residual) = &residual {
                    let residual = &residual[number * block..][..rows.len()];
                    add(rows, residual);
                }
                layer_norm_rows(rows, &weight, &bias, eps as f32);
            });
    })
}

vectorised! {
    fn layer_norm_rows(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        let width = weight.len();
        for row in rows.chunks_mut(width) {
            let mean = row.iter().sum::<f32>() / width as f32;
            row.iter_mut().for_each(|x| *x -= mean);
            let variance = row.iter().map(|x| x * x).sum::<f32>() / width as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                *x = *x * scale * weight + bias;
            }
        }
    }
}
