//! Attention of new tokens over cached keys and values: prefill and decoding.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;

use super::attention::Heads;
use super::device::mask;
use super::embedding::TokenIds;
use super::math::softmax_used;
use super::memory::{HostMemory, cast, map, to_f32};
use super::rotary::Rotation;

/// How many of the columns each query sees, from the first.
#[derive(Clone, Debug)]
pub enum Visible {
    /// A prompt's next tokens behind `before` others: query `i` of each head's `new` sees
    /// `before + i + 1`.
    Causal {
        /// Tokens that are cached already.
        before: usize,
        /// Queries of a head.
        new: usize,
    },
    /// One new token for each sequence of a batch, behind so many others.
    Behind(Vec<usize>),
}

/// One new token behind each of some cached sequences.
#[derive(Clone, Debug)]
pub struct CachedStep<B: Backend> {
    /// Of a layer.
    pub heads: Heads,
    /// To the places of the new tokens.
    pub rotation: Rotation<B>,
    /// Cached tokens of each row.
    pub lengths: TokenIds<B>,
}

impl Visible {
    /// Of the query in row `row`, counted through a batch entry's heads, `each` rows a batch entry.
    fn columns(&self, row: usize, each: usize) -> usize {
        match self {
            Self::Causal { before, new } => before + row % new + 1,
            Self::Behind(lengths) => lengths[row / each] + 1,
        }
    }
}

pub(super) fn forward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: &Visible,
) -> Tensor<B, 4> {
    forward_by(q, k, v, visible, Tensor::matmul)
}

/// The same with products of another's.
pub(super) fn forward_by<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: &Visible,
    product: impl Fn(Tensor<B, 4>, Tensor<B, 4>) -> Tensor<B, 4>,
) -> Tensor<B, 4> {
    let (dtype, device) = (q.dtype(), q.device());
    let scores = to_f32(product(q, k));
    let [batch, _, rows, columns] = scores.dims();
    // One mask for all heads of a batch entry, or for all of everything.
    let mask: Tensor<B, 4> = match visible {
        Visible::Causal { .. } => {
            let mask = mask(rows, columns, |row| visible.columns(row, rows), &device);
            mask.reshape([1, 1, rows, columns])
        }
        Visible::Behind(_) => {
            let mask = mask(batch, columns, |entry| visible.columns(entry, 1), &device);
            mask.reshape([batch, 1, 1, columns])
        }
    };
    product(cast(softmax(scores + mask, 3), dtype), v)
}

pub(super) fn forward_on_host<B: HostMemory>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: &Visible,
) -> Tensor<B, 4> {
    let scores = q.matmul(k);
    let [_, heads, rows, columns] = scores.dims();
    let weights = map(scores, |scores| {
        softmax_used(scores, columns, |row| visible.columns(row, heads * rows));
    });
    match visible {
        Visible::Causal { .. } => in_blocks(weights, v),
        Visible::Behind(_) => weights.matmul(v),
    }
}

/// Columns of a prompt that are summed up in one go. The matrix products of CPUs cut longer sums
/// where the shape of the whole product says, and shapes depend on where a prompt is cut.
const BLOCK: usize = 512;

/// Sums of fewer columns are other routines' work.
const LEAST: usize = 4;

/// The columns that a prompt's attention over `used` takes, those behind them zeros, so that its
/// sums are the same wherever the prompt is cut.
pub fn columns_on_host(used: usize) -> usize {
    match used % BLOCK {
        short @ 1..LEAST => used + LEAST - short,
        _ => used,
    }
}

fn in_blocks<B: HostMemory>(weights: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    let columns = v.dims()[2];
    let block = |start: usize| {
        let count = BLOCK.min(columns - start);
        let weights = weights.clone().narrow(3, start, count);
        weights.matmul(v.clone().narrow(2, start, count))
    };
    let first = block(0);
    let others = (BLOCK..columns).step_by(BLOCK);
    others.fold(first, |sum, start| sum + block(start))
}
