//! Log-probabilities of given tokens: projection on the vocabulary, log-softmax, gather.

use burn::tensor::IndexingUpdateOp;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::embedding::TokenIds;
use super::math::{Softmax, exp, largest_of, softmax};
use super::memory::{HostMemory, HostTensor, from_host, map, to_f32};
use super::vectors::{LANES, vectorised};

/// Of logits `[rows, vocab]`.
pub(super) fn forward<B: Backend>(
    logits: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let all = log_softmax(to_f32(logits), 1);
    let logps = all.clone().gather(1, targets.on_device().unsqueeze_dim(1));
    (logps.squeeze_dim(1), all.exp())
}

/// Logits whose measures are taken at once: a bound on the memory.
const MEASURED: usize = 1 << 22;

/// Entropy, mean logit and whether the token is the likeliest, of logits `[rows, vocab]` → f32
/// `[rows, 3]`; what TRL logs (`ChunkedLogProbFunction` of trl/kernels/chunked_logprob.py in 1.16).
pub(super) fn measures<B: Backend>(logits: Tensor<B, 2>, targets: &TokenIds<B>) -> Tensor<B, 2> {
    let [rows, vocab] = logits.dims();
    let at_once = (MEASURED / vocab).max(1);
    let tokens = targets.on_device();
    let parts = (0..rows).step_by(at_once).map(|start| {
        let range = start..(start + at_once).min(rows);
        let logits = to_f32(logits.clone().slice([range.clone()]));
        let tokens = tokens.clone().slice([range]).unsqueeze_dim(1);
        let likeliest = to_f32(logits.clone().argmax(1).equal(tokens).float());
        let mean = logits.clone().mean_dim(1);
        let logps = log_softmax(logits, 1);
        let entropy = (logps.clone().exp() * logps).sum_dim(1).neg();
        Tensor::cat(vec![entropy, mean, likeliest], 1)
    });
    Tensor::cat(parts.collect(), 0)
}

pub(super) fn measures_on_host<B: HostMemory>(
    logits: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> Tensor<B, 2> {
    let ([rows, vocab], device) = (logits.dims(), logits.device());
    let logits = HostTensor::new(logits);
    let values = logits.values();
    let rows_and_tokens = values.par_chunks(vocab).zip(targets.on_host());
    let measured = rows_and_tokens.map(|(row, &token)| measures_of_row(row, token as usize));
    let measured: Vec<[f32; 3]> = measured.collect();
    from_host(measured.into_flattened(), [rows, 3], &device)
}

vectorised! {
    fn measures_of_row(row: &[f32], token: usize) -> [f32; 3] {
        let highest = largest_of(row);
        // Σ e^(z − highest), the same times z − highest, Σ z.
        let mut sums = [0.0f64; 3];
        for block in row.chunks(1024) {
            let mut lanes = [[0.0f32; LANES]; 3];
            for part in block.chunks(LANES) {
                for (lane, &z) in part.iter().enumerate() {
                    let below = z - highest;
                    let e = exp(below);
                    lanes[0][lane] += e;
                    lanes[1][lane] += e * below;
                    lanes[2][lane] += z;
                }
            }
            for (sum, lanes) in sums.iter_mut().zip(&lanes) {
                *sum += f64::from(lanes.iter().sum::<f32>());
            }
        }
        let likeliest = row[token] >= highest && row[..token].iter().all(|&z| z < highest);
        let entropy = sums[0].ln() - sums[1] / sums[0];
        let mean = sums[2] / row.len() as f64;
        [entropy as f32, mean as f32, f32::from(u8::from(likeliest))]
    }
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
            let own = row[token as usize];
            let Softmax { largest, sum } = softmax(row);
            own - largest - sum.ln()
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
                scale(row, -grad);
                row[token as usize] += grad;
            });
    })
}

vectorised! {
    fn scale(row: &mut [f32], by: f32) {
        row.iter_mut().for_each(|x| *x *= by);
    }
}
