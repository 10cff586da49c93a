//! The same as passes over the host's memory.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::super::math::{softmax_backward_used, softmax_used};
use super::super::memory::{HostMemory, HostTensor, from_host, map};
use super::{Attended, AttendedBatch, Kept, PackedAttention, Padded};

/// How heads go between tokens and the cells of padded batches on the host.
#[derive(Clone, Copy)]
enum Move {
    /// As they are, to every cell of their token.
    Plain,
    /// Rotated to their positions and scaled.
    Rotated(f32),
    /// The token's first cell only.
    First,
}

impl<B: HostMemory> PackedAttention<B> {
    /// Heads of tokens `[tokens, heads · dim]` → for each padded batch
    /// `[rows, kv, group · longest, dim]`; zeros for padding.
    fn to_padded(&self, x: Tensor<B, 2>, how: Move) -> Vec<Tensor<B, 4>> {
        let (across, device) = (x.dims()[1], x.device());
        let x = HostTensor::new(x);
        let x = x.values();
        let fill = |(number, padded): (usize, &Padded)| {
            let values = self.fill(&x, across, number, how);
            let group = across / self.heads.dim / self.heads.kv;
            let (rows, kv) = (padded.rows(), self.heads.kv);
            let shape = [rows, kv, group * padded.longest, self.heads.dim];
            from_host(values, shape, &device)
        };
        self.places.padded.iter().enumerate().map(fill).collect()
    }

    /// The values of padded batch `number`, `[rows, heads, longest, dim]`.
    fn fill(&self, x: &[f32], across: usize, number: usize, how: Move) -> Vec<f32> {
        let width = self.heads.dim;
        let padded = &self.places.padded[number];
        let mut values = vec![0f32; padded.tokens.len() * across];
        let fill = |(row, values): (usize, &mut [f32])| {
            for i in 0..padded.lengths[row] {
                let cell = row * padded.longest + i;
                let Some(token) = padded.tokens[cell] else {
                    continue;
                };
                if matches!(how, Move::First) && self.places.cells_of[token][0] != (number, cell) {
                    continue;
                }
                let from = &x[token * across..(token + 1) * across];
                for (head, from) in from.chunks_exact(width).enumerate() {
                    let to = &mut values[(head * padded.longest + i) * width..][..width];
                    match how {
                        Move::Rotated(scale) => {
                            self.rotation.angles().rotate(to, from, token, scale, 1.0);
                        }
                        Move::Plain | Move::First => to.copy_from_slice(from),
                    }
                }
            }
        };
        let row = padded.longest * across;
        values.par_chunks_mut(row.max(1)).enumerate().for_each(fill);
        values
    }

    /// The way back, `[rows, kv, group · longest, dim]` of each padded batch →
    /// `[tokens, heads · dim]`: the transpose of [`Self::to_padded`] in the same manner.
    fn to_tokens(
        &self,
        padded: Vec<Tensor<B, 4>>,
        heads: usize,
        how: Move,
        device: &B::Device,
    ) -> Tensor<B, 2> {
        let tokens = self.places.cells_of.len();
        let width = self.heads.dim;
        let across = heads * width;
        let padded: Vec<HostTensor<B>> = padded.into_iter().map(HostTensor::new).collect();
        let padded: Vec<_> = padded.iter().map(HostTensor::values).collect();
        let mut out = vec![0f32; tokens * across];
        let fill = |rotated: &mut Vec<f32>, (token, out): (usize, &mut [f32])| {
            let cells = match how {
                Move::First => &self.places.cells_of[token][..1],
                Move::Plain | Move::Rotated(_) => &self.places.cells_of[token][..],
            };
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                for &(number, cell) in cells {
                    let longest = self.places.padded[number].longest;
                    let (row, i) = (cell / longest, cell % longest);
                    let at = ((row * heads + head) * longest + i) * width;
                    let from = &padded[number][at..at + width];
                    out.iter_mut().zip(from).for_each(|(to, x)| *to += x);
                }
                if let Move::Rotated(scale) = how {
                    self.rotation
                        .angles()
                        .rotate(rotated, out, token, scale, -1.0);
                    out.copy_from_slice(rotated);
                }
            }
        };
        out.par_chunks_mut(across)
            .with_min_len((tokens / 64).max(1))
            .enumerate()
            .for_each_init(|| vec![0f32; width], fill);
        from_host(out, [tokens, across], device)
    }
}

pub fn forward<B: HostMemory>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    over: &PackedAttention<B>,
) -> (Tensor<B, 2>, Attended<B>) {
    let (device, heads) = (q.device(), over.heads);
    let queries = over.to_padded(q, Move::Rotated(heads.scale() as f32));
    let keys = over.to_padded(k, Move::Rotated(1.0));
    let values = over.to_padded(v, Move::Plain);
    let (mut mixed, mut attended) = (Vec::new(), Vec::new());
    let parts = queries.into_iter().zip(keys).zip(values);
    for (((queries, keys), values), padded) in parts.zip(&over.places.padded) {
        let scores = queries.clone().matmul(keys.clone().transpose());
        let each = heads.queries * padded.longest;
        let weights = map(scores, |scores| {
            softmax_used(scores, padded.longest, |row| padded.visible(row, each));
        });
        mixed.push(weights.clone().matmul(values.clone()));
        attended.push(AttendedBatch {
            queries,
            keys,
            values,
            weights,
        });
    }
    let mixed = over.to_tokens(mixed, heads.queries, Move::First, &device);
    (mixed, Attended(Kept::Weights(attended)))
}

pub fn backward<B: HostMemory>(
    grad: Tensor<B, 2>,
    attended: Attended<B>,
    over: &PackedAttention<B>,
) -> [Tensor<B, 2>; 3] {
    let (device, heads) = (grad.device(), over.heads);
    let grads = over.to_padded(grad, Move::First);
    let (mut of_queries, mut of_keys, mut of_values) = (Vec::new(), Vec::new(), Vec::new());
    for ((saved, grad), padded) in attended
        .weights()
        .into_iter()
        .zip(grads)
        .zip(&over.places.padded)
    {
        of_values.push(saved.weights.clone().transpose().matmul(grad.clone()));
        let of_weights = grad.matmul(saved.values.transpose());
        let weights = HostTensor::new(saved.weights);
        let each = heads.queries * padded.longest;
        let of_scores = map(of_weights, |of_weights| {
            softmax_backward_used(of_weights, &weights.values(), padded.longest, |row| {
                padded.visible(row, each)
            });
        });
        of_queries.push(of_scores.clone().matmul(saved.keys));
        of_keys.push(of_scores.transpose().matmul(saved.queries));
    }
    let scale = heads.scale() as f32;
    [
        over.to_tokens(of_queries, heads.queries, Move::Rotated(scale), &device),
        over.to_tokens(of_keys, heads.kv, Move::Rotated(1.0), &device),
        over.to_tokens(of_values, heads.kv, Move::Plain, &device),
    ]
}
