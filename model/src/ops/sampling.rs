//! The likeliest tokens of logits, and what a draw needs to know of the others.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

/// Of each row of logits.
#[derive(Clone, Debug)]
pub struct Likeliest<B: Backend> {
    /// f32 `[rows, count + 2]`: the largest logits in any order, then Σ exp((logit − largest) · scale)
    /// and Σ exp(logit − largest) over the whole row: not finite where a logit is NaN or +∞, not
    /// finite or 0 where all are −∞.
    pub floats: Tensor<B, 2>,
    /// The tokens of these logits, `[rows, count]`.
    pub tokens: Tensor<B, 2, Int>,
}

pub(super) fn likeliest<B: Backend>(
    logits: Tensor<B, 2>,
    scales: Tensor<B, 1>,
    count: usize,
) -> Likeliest<B> {
    let tokens = logits.clone().argtopk(count, 1);
    let best = logits.clone().gather(1, tokens.clone());
    with_sums(logits, scales, best, tokens)
}

/// The same, where these are known.
pub(super) fn with_sums<B: Backend>(
    logits: Tensor<B, 2>,
    scales: Tensor<B, 1>,
    best: Tensor<B, 2>,
    tokens: Tensor<B, 2, Int>,
) -> Likeliest<B> {
    let behind = logits - best.clone().max_dim(1);
    let plain_sums = behind.clone().exp().sum_dim(1);
    let sums = (behind * scales.unsqueeze_dim(1)).exp().sum_dim(1);
    Likeliest {
        floats: Tensor::cat(vec![best, sums, plain_sums], 1),
        tokens,
    }
}
