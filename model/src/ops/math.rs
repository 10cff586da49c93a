//! Arithmetic on rows of f32 in the host's memory.

use rayon::prelude::*;

use super::vectors::{LANES, vectorised};

/// Elements that one thread takes at a time, and of which sums are taken first.
pub const GRAIN: usize = 1 << 14;

/// Rows of `width` that one thread takes at a time.
pub(super) fn rows_of_a_thread(width: usize) -> usize {
    (GRAIN / width).max(1)
}

/// Σ x · y, in sixteen sums side by side.
#[inline(always)]
pub(super) fn dot_of(x: &[f32], y: &[f32]) -> f32 {
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

/// e^x for x ≤ 0, to 3e-7 of its value; that of −87 below it, which is 1.6e-38, NaN of NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Not `max`, which would turn NaN into a number.
    let x = if x < -87.0 { -87.0 } else { x };
    // Adding and taking away 1.5 · 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.388_888_9e-3_f32;
    let p = p * r + 8.333_334e-3;
    let p = p * r + 4.166_666_8e-2;
    let p = p * r + 1.666_666_7e-1;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // Such an n lies within −126..=0, so that its power of two is a normal number. It stands in the
    // lowest bits: a conversion would look for what no integer holds.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    p * power
}

/// The largest number, NaN left out; −∞ of none.
#[inline(always)]
pub(super) fn largest_of(row: &[f32]) -> f32 {
    let (whole, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for part in whole {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    let all = lanes.iter().chain(rest).copied();
    all.fold(f32::NEG_INFINITY, f32::max)
}

vectorised! {
    /// The largest number, NaN left out; −∞ of none.
    pub(crate) fn largest(row: &[f32]) -> f32 {
        largest_of(row)
    }
}

vectorised! {
    /// Whether none is NaN or infinite.
    pub(crate) fn is_finite(row: &[f32]) -> bool {
        row.iter().fold(true, |all, x| all & (x.abs() < f32::INFINITY))
    }
}

vectorised! {
    /// Adds `x` to `sum`.
    pub(super) fn add(sum: &mut [f32], x: &[f32]) {
        sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
}

vectorised! {
    /// Σ x · y, in sixteen sums side by side.
    pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
        dot_of(x, y)
    }
}

/// The largest number of a row and Σ exp(x − largest).
pub(super) struct Softmax {
    pub largest: f32,
    pub sum: f32,
}

vectorised! {
    /// Softmax of one row in place, NaN where all of it is −∞.
    pub(super) fn softmax(row: &mut [f32]) -> Softmax {
        softmax_row(row)
    }
}

/// The same; its sum is taken in [`LANES`] sums side by side.
#[inline(always)]
pub(super) fn softmax_row(row: &mut [f32]) -> Softmax {
    let largest = largest_of(row);
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for part in whole {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *x = exp(*x - largest);
            *lane += *x;
        }
    }
    let mut sum = lanes.iter().sum::<f32>();
    for x in rest {
        *x = exp(*x - largest);
        sum += *x;
    }
    let scale = 1.0 / sum;
    row.iter_mut().for_each(|x| *x *= scale);
    Softmax { largest, sum }
}

/// Softmax of the first `used` of each row; what lies behind becomes 0.
pub(super) fn softmax_used(values: &mut [f32], width: usize, used: impl Fn(usize) -> usize + Sync) {
    let rows = rows_of_a_thread(width);
    let of_block = |(block, rows_of_block): (usize, &mut [f32])| {
        for (i, row) in rows_of_block.chunks_mut(width).enumerate() {
            let (row, behind) = row.split_at_mut(used(block * rows + i));
            softmax(row);
            behind.fill(0.0);
        }
    };
    values
        .par_chunks_mut(rows * width)
        .enumerate()
        .for_each(of_block);
}
