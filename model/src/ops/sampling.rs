//! The likeliest tokens of logits.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

pub(super) fn likeliest<B: Backend>(
    logits: Tensor<B, 2>,
    count: usize,
) -> (Tensor<B, 2>, Tensor<B, 2, Int>) {
    let tokens = logits.clone().argtopk(count, 1);
    (logits.gather(1, tokens.clone()), tokens)
}
