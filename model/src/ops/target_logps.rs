//! Log-probabilities of given tokens: projection on the vocabulary, log-softmax, gather.

use burn::tensor::IndexingUpdateOp;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::embedding::TokenIds;
use super::math::softmax_row;
use super::memory::{HostMemory, HostTensor, from_host, map, to_f32};

/// Of logits `[rows, vocab]`.
pub(super) fn forward<B: Backend>(
    logits: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let all = log_softmax(to_f32(logits), 1);
    let logps = all.clone().gather(1, targets.on_device().unsqueeze_dim(1));
    (logps.squeeze_dim(1), all.exp())
}

/// (onehot − p) · grad.
pub(super) fn backward<B: Backend>(
    grad: Tensor<B, 1>,
    probabilities: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> Tensor<B, 2> {
    let grad: Tensor<B, 2> = grad.unsqueeze_dim(1);
    let places = targets.on_device().unsqueeze_dim(1);
    let of_logits = probabilities * grad.clone().neg();
    of_logits.scatter(1, places, grad, IndexingUpdateOp::Add)
}

pub(super) fn forward_on_host<B: HostMemory>(
    logits: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let (vocab, device) = (logits.dims()[1], logits.device());
    let mut logps = Vec::new();
    let probabilities = map(logits, |logits| {
        logps = log_softmax_at(logits, vocab, targets.on_host());
    });
    let rows = logps.len();
    (from_host(logps, [rows], &device), probabilities)
}

/// Turns logits into probabilities, rows of `vocab`; gives the log-probability of each row's token.
pub(super) fn log_softmax_at(logits: &mut [f32], vocab: usize, tokens: &[u32]) -> Vec<f32> {
    logits
        .par_chunks_mut(vocab)
        .zip(tokens)
        .map(|(row, &token)| {
            let highest = row.iter().copied().fold(f32::MIN, f32::max);
            let own = row[token as usize] - highest;
            let sum = softmax_row(row);
            own - sum.ln()
        })
        .collect()
}

pub(super) fn backward_on_host<B: HostMemory>(
    grad: Tensor<B, 1>,
    probabilities: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> Tensor<B, 2> {
    let vocab = probabilities.dims()[1];
    let grad = HostTensor::new(grad);
    map(probabilities, |probabilities| {
        probabilities
            .par_chunks_mut(vocab)
            .zip(targets.on_host().par_iter().zip(&*grad.values()))
            .for_each(|(row, (&token, &grad))| {
                row.iter_mut().for_each(|p| *p *= -grad);
                row[token as usize] += grad;
            });
    })
}
