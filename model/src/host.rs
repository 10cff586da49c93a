//! Elementwise work in one pass over the host's memory, for backends whose tensors lie there.
//!
//! The CPU backends run such operations one by one, on one thread and through libm; taken together
//! they cost an encoder as much as its matrix products. Taking the data of a tensor that has no
//! other owner, and making a tensor of it again, copies nothing.

use std::ops::Range;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rayon::prelude::*;

/// Rows or elements that one thread takes at a time.
const GRAIN: usize = 1 << 14;

/// Whether tensors of this device lie in the host's memory.
pub fn is_host<B: Backend>(device: &B::Device) -> bool {
    // Within autodiff the name is "autodiff<flex>".
    let name = B::name(device);
    ["flex", "ndarray"].iter().any(|host| name.contains(host))
}

/// Takes a f32 tensor's data, changes it, and makes a tensor of it again.
pub fn map<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    change: impl FnOnce(&mut [f32]),
) -> Tensor<B, D> {
    let (shape, device) = (x.shape(), x.device());
    let mut values = take(x);
    change(&mut values);
    Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
}

/// Changes a tensor's bytes where they lie; the change gets the size of an element, too.
pub fn edit<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    change: impl FnOnce(&mut [u8], usize),
) -> Tensor<B, D> {
    let device = x.device();
    let mut data = x.into_data();
    let dtype = data.dtype;
    change(&mut data.bytes, dtype.size());
    Tensor::from_data(data, (&device, dtype))
}

/// A f32 tensor's data.
pub fn take<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    let data = x.into_data();
    // Only another dtype fails, which no caller has.
    data.into_vec::<f32>().unwrap_or_default()
}

/// x · Φ(x), the GELU by the error function.
pub fn gelu(values: &mut [f32]) {
    values.par_chunks_mut(GRAIN).for_each(|chunk| {
        for x in chunk {
            *x *= 0.5 + 0.5 * erf(*x * std::f32::consts::FRAC_1_SQRT_2);
        }
    });
}

/// The error function as a quotient of polynomials fitted on [0, 3.92], to 4e-7.
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

/// e^x for x ≤ 0, to 3e-7 of its value; 0 below −87, NaN of NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
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
pub fn softmax_row(row: &mut [f32]) -> f32 {
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
pub fn softmax_used(values: &mut [f32], width: usize, used: impl Fn(usize) -> usize + Sync) {
    let rows = (GRAIN / width).max(1);
    values
        .par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(block, rows_of_block)| {
            for (i, row) in rows_of_block.chunks_mut(width).enumerate() {
                let (row, behind) = row.split_at_mut(used(block * rows + i));
                softmax_row(row);
                behind.fill(0.0);
            }
        });
}

/// RMSNorm of rows of `weight.len()`.
pub fn rms_norm(x: &mut [f32], weight: &[f32], eps: f32) {
    rms_norm_scales(x, weight, eps);
}

/// The same; gives each row's 1/√(mean x² + ε).
pub fn rms_norm_scales(x: &mut [f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let mut scales = vec![0f32; x.len() / width];
    let rows = (GRAIN / width).max(1);
    x.par_chunks_mut(rows * width)
        .zip(scales.par_chunks_mut(rows))
        .for_each(|(x, scales)| {
            for (x, kept) in x.chunks_mut(width).zip(scales) {
                let scale = 1.0 / (dot(x, x) / width as f32 + eps).sqrt();
                *kept = scale;
                for (x, weight) in x.iter_mut().zip(weight) {
                    *x = *x * scale * weight;
                }
            }
        });
    scales
}

/// Turns the gradient by RMSNorm's output into the one by its input `x`, `added` added; gives the
/// one by the weight.
pub fn rms_norm_back(
    grad: &mut [f32],
    x: &[f32],
    scales: &[f32],
    weight: &[f32],
    added: Option<&[f32]>,
) -> Vec<f32> {
    let width = weight.len();
    let rows = (GRAIN / width).max(1);
    let block = |(number, grad): (usize, &mut [f32])| {
        let mut of_weight = vec![0f32; width];
        let mut behind = vec![0f32; width];
        for (i, grad) in grad.chunks_mut(width).enumerate() {
            let row = number * rows + i;
            let (x, scale) = (&x[row * width..][..width], scales[row]);
            for ((sum, grad), x) in of_weight.iter_mut().zip(&*grad).zip(x) {
                *sum += grad * x * scale;
            }
            for ((behind, grad), weight) in behind.iter_mut().zip(&*grad).zip(weight) {
                *behind = grad * weight;
            }
            let along = dot(&behind, x) / width as f32 * scale * scale;
            for ((grad, behind), x) in grad.iter_mut().zip(&behind).zip(x) {
                *grad = scale * (behind - x * along);
            }
            if let Some(added) = added {
                let added = &added[row * width..][..width];
                grad.iter_mut().zip(added).for_each(|(g, a)| *g += a);
            }
        }
        of_weight
    };
    let blocks = grad.par_chunks_mut(rows * width).enumerate().map(block);
    // In the order of the rows, so that the sum is the same each time.
    let blocks: Vec<Vec<f32>> = blocks.collect();
    let mut sum = vec![0f32; width];
    for block in blocks {
        sum.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
    }
    sum
}

/// Σ x · y, in sixteen sums side by side.
fn dot(x: &[f32], y: &[f32]) -> f32 {
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

/// Turns the gradient by softmax's output into the one by its input, of the first `used` of each
/// row; what lies behind becomes 0.
pub fn softmax_back(
    grad: &mut [f32],
    weights: &[f32],
    width: usize,
    used: impl Fn(usize) -> usize + Sync,
) {
    let rows = (GRAIN / width).max(1);
    grad.par_chunks_mut(rows * width)
        .zip(weights.par_chunks(rows * width))
        .enumerate()
        .for_each(|(block, (grad, weights))| {
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
        });
}

/// Turns logits into probabilities, rows of `vocab`; gives the log-probability of each row's token.
pub fn log_softmax_at(logits: &mut [f32], vocab: usize, tokens: &[usize]) -> Vec<f32> {
    logits
        .par_chunks_mut(vocab)
        .zip(tokens)
        .map(|(row, &token)| {
            let highest = row.iter().copied().fold(f32::MIN, f32::max);
            let own = row[token] - highest;
            let sum = softmax_row(row);
            own - sum.ln()
        })
        .collect()
}

/// Turns probabilities into the gradient of Σ wᵢ · logpᵢ by the logits.
pub fn log_softmax_back(
    probabilities: &mut [f32],
    vocab: usize,
    tokens: &[usize],
    weights: &[f32],
) {
    probabilities
        .par_chunks_mut(vocab)
        .zip(tokens.par_iter().zip(weights))
        .for_each(|(row, (&token, &weight))| {
            row.iter_mut().for_each(|p| *p *= -weight);
            row[token] += weight;
        });
}

/// The heads at `part` of every row of `x`, turned (rotate-half) and scaled; rows of `row`, heads
/// of `width`, cosines and signed sines `[rows, width]`.
pub fn rotate(
    x: &[f32],
    row: usize,
    part: Range<usize>,
    cos: &[f32],
    sin: &[f32],
    width: usize,
    scale: f32,
) -> Vec<f32> {
    let half = width / 2;
    let mut out = Vec::with_capacity(x.len() / row * part.len());
    let turns = cos.chunks_exact(width).zip(sin.chunks_exact(width));
    for (x, (cos, sin)) in x.chunks_exact(row).zip(turns) {
        for head in x[part.clone()].chunks_exact(width) {
            let (first, second) = head.split_at(half);
            let swapped = second.iter().chain(first);
            let turned = head.iter().zip(swapped).zip(cos.iter().zip(sin));
            out.extend(turned.map(|((x, other), (cos, sin))| (x * cos + other * sin) * scale));
        }
    }
    out
}

/// x · σ(x) · y, into `x`.
pub fn swiglu(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(GRAIN)
        .zip(y.par_chunks(GRAIN))
        .for_each(|(x, y)| {
            for (x, y) in x.iter_mut().zip(y) {
                // e^-|x|, so that nothing overflows.
                let e = exp(-x.abs());
                let numerator = if *x < 0.0 { e } else { 1.0 };
                *x *= numerator / (1.0 + e) * y;
            }
        });
}

/// Turns `gate` and `up` into their gradients, given that of silu(gate) · up.
pub fn swiglu_back(gate: &mut [f32], up: &mut [f32], grad: &[f32]) {
    gate.par_chunks_mut(GRAIN)
        .zip(up.par_chunks_mut(GRAIN))
        .zip(grad.par_chunks(GRAIN))
        .for_each(|((gate, up), grad)| {
            for ((gate, up), grad) in gate.iter_mut().zip(up).zip(grad) {
                let x = *gate;
                let e = exp(-x.abs());
                let numerator = if x < 0.0 { e } else { 1.0 };
                let sigmoid = numerator / (1.0 + e);
                *gate = grad * *up * sigmoid * (1.0 + x * (1.0 - sigmoid));
                *up = grad * x * sigmoid;
            }
        });
}

/// LayerNorm of `x + y`, rows of `weight.len()`, into `x`.
pub fn add_layer_norm(x: &mut [f32], y: &[f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len();
    let rows = (GRAIN / width).max(1) * width;
    x.par_chunks_mut(rows)
        .zip(y.par_chunks(rows))
        .for_each(|(x, y)| {
            for (x, y) in x.chunks_mut(width).zip(y.chunks(width)) {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
                let mean = x.iter().sum::<f32>() / width as f32;
                x.iter_mut().for_each(|x| *x -= mean);
                let variance = x.iter().map(|x| x * x).sum::<f32>() / width as f32;
                let scale = 1.0 / (variance + eps).sqrt();
                for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
                    *x = *x * scale * weight + bias;
                }
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_stays_so() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut row = [0.5, bad, -1.0, 0.0];
            assert!(softmax_row(&mut row).is_nan());
            assert!(row.iter().all(|x| x.is_nan()), "{row:?}");
            let logps = log_softmax_at(&mut [bad, 1.0, 2.0], 3, &[1]);
            assert!(logps[0].is_nan());
        }
    }

    #[test]
    fn gelu_is_that_of_the_error_function() {
        // erf by the series x·2/√π·Σ (−1)^n x^2n / (n! (2n+1)), in f64.
        let exact = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        for i in -400..=400 {
            let x = f64::from(i) / 100.0;
            let mut found = [x as f32];
            gelu(&mut found);
            let expected = 0.5 * x * (1.0 + exact(x / 2f64.sqrt()));
            assert!(
                (f64::from(found[0]) - expected).abs() < 2e-6,
                "{x}: {}",
                found[0]
            );
        }
        let mut far = [-30.0, 30.0];
        gelu(&mut far);
        assert!(far[0].abs() < 2e-5 && far[1] == 30.0, "{far:?}");
    }

    #[test]
    fn swiglu_and_rms_norm() {
        for x in [-100.0f32, -5.0, -0.1, 0.0, 0.3, 7.0, 90.0] {
            let mut found = [x];
            swiglu(&mut found, &[2.0]);
            let expected = 2.0 * x / (1.0 + (-x).exp());
            assert!((found[0] - expected).abs() < 1e-5 * (1.0 + x.abs()), "{x}");
        }
        let mut x: Vec<f32> = (0..19).map(|i| i as f32 - 9.0).collect();
        let mean = x.iter().map(|x| x * x).sum::<f32>() / 19.0;
        rms_norm(&mut x, &[2.0; 19], 0.5);
        assert!((x[0] + 18.0 / (mean + 0.5).sqrt()).abs() < 1e-5);
    }

    #[test]
    fn softmax_sums_to_one_and_keeps_ratios() {
        for i in 0..870 {
            let x = -(i as f32) / 10.0;
            let relative = exp(x) / x.exp() - 1.0;
            assert!(relative.abs() < 1e-6, "{x}: {relative}");
        }
        let mut row: Vec<f32> = (0..37)
            .map(|i| (i * 7 % 11) as f32 - 1000.0 * (i == 5) as u8 as f32)
            .collect();
        let before = row.clone();
        softmax_row(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(row[5] < 1e-37);
        let ratio = row[3] / row[2];
        assert!((ratio / (before[3] - before[2]).exp() - 1.0).abs() < 1e-5);
    }
}
