//! Summed log-probabilities of responses; the vocabulary projection runs at their positions only.

use std::iter::Sum;
use std::ops::Range;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use sppo_model::llama::Llama;
use sppo_model::ops::{DeviceError, ModelOps, TokenIds, to_host};
use sppo_model::packed_batch::{PackedBatch, Places};

use crate::tokenise::TokenisedSequence;

/// Most logits held at once: 128 MiB in f32, of which every GPU binds as much.
const CHUNK_LOGITS: usize = 1 << 25;

/// The same in bf16 on a GPU, where their gradient takes their place, and a chunk's gradient by the
/// vocabulary's weights, which is added to those before, is more than the logits themselves.
const CHUNK_LOGITS_IN_PLACE: usize = 1 << 27;

#[cfg(test)]
thread_local! {
    /// Rows of a chunk in tests, whose vocabularies are small.
    pub(super) static SMALL_CHUNKS: std::cell::Cell<Option<usize>> =
        const { std::cell::Cell::new(None) };
}

/// Rows of logits over `vocab` that are held at once, `in_place` in bf16 on a GPU.
pub fn chunk_rows(vocab: usize, in_place: bool) -> usize {
    #[cfg(test)]
    if let Some(rows) = SMALL_CHUNKS.get() {
        return rows;
    }
    let most = match in_place {
        true => CHUNK_LOGITS_IN_PLACE,
        false => CHUNK_LOGITS,
    };
    (most / vocab).max(1)
}

/// What the logits tell of a sequence's response, summed over its tokens: what TRL's trainers log.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenSums {
    /// Entropy of the distribution that each token was predicted from, in nats.
    pub entropy: f64,
    /// Mean of its logits.
    pub logits: f64,
    /// Tokens that were the likeliest of it.
    pub likeliest: f64,
}

impl Sum for TokenSums {
    fn sum<I: Iterator<Item = Self>>(sums: I) -> Self {
        sums.fold(Self::default(), |a, b| Self {
            entropy: a.entropy + b.entropy,
            logits: a.logits + b.logits,
            likeliest: a.likeliest + b.likeliest,
        })
    }
}

/// The response tokens of a batch: where they are predicted, and what they are.
pub(super) struct Targets<B: Backend> {
    /// Packed positions that predict a response token `[rows]`.
    pub rows: Tensor<B, 1, Int>,
    /// The tokens themselves.
    pub tokens: TokenIds<B>,
    /// Response tokens of each sequence.
    counts: Vec<usize>,
}

impl<B: ModelOps> Targets<B> {
    /// Of sequences whose tokens lie at `places`.
    pub fn new(sequences: &[&TokenisedSequence], places: &[Places], device: &B::Device) -> Self {
        let mut rows = Vec::new();
        let mut tokens = Vec::new();
        for (sequence, places) in sequences.iter().zip(places) {
            for i in sequence.response_start..sequence.ids.len() {
                rows.push(places.at(i - 1) as i64);
                tokens.push(sequence.ids[i]);
            }
        }
        let count = rows.len();
        Self {
            rows: Tensor::from_data(TensorData::new(rows, [count]), device),
            tokens: TokenIds::new(&tokens, device),
            counts: sequences.iter().map(|s| s.response().len()).collect(),
        }
    }

    /// Ranges of rows whose logits over `vocab`, of `dtype`, fit into memory together.
    pub fn chunks(&self, vocab: usize, dtype: DType) -> Vec<Range<usize>> {
        let rows = self.tokens.len();
        let size = chunk_rows(vocab, B::HAS_KERNELS && dtype == DType::BF16);
        (0..rows)
            .step_by(size)
            .map(|start| start..(start + size).min(rows))
            .collect()
    }

    /// Sums of `[rows]` by sequence, in f64.
    pub fn sum(&self, values: &[f32]) -> Vec<f64> {
        let mut rest = values;
        let sum = |&count: &usize| {
            let (own, others) = rest.split_at(count);
            rest = others;
            own.iter().map(|&x| x as f64).sum()
        };
        self.counts.iter().map(sum).collect()
    }

    /// Sums of measures `[rows, 3]` by sequence.
    pub fn token_sums(&self, measures: &[f32]) -> Vec<TokenSums> {
        let column = |i: usize| -> Vec<f64> {
            let values: Vec<f32> = measures.iter().skip(i).step_by(3).copied().collect();
            self.sum(&values)
        };
        let columns = [0, 1, 2].map(column);
        let sums = (0..self.counts.len()).map(|i| TokenSums {
            entropy: columns[0][i],
            logits: columns[1][i],
            likeliest: columns[2][i],
        });
        sums.collect()
    }

    /// Each sequence's weight at each of its rows, f32 `[rows]`.
    pub fn spread(&self, weights: &[f64], device: &B::Device) -> Tensor<B, 1> {
        let each = weights.iter().zip(&self.counts);
        let values = each.flat_map(|(&w, &count)| std::iter::repeat_n(w as f32, count));
        let values: Vec<f32> = values.collect();
        let rows = values.len();
        Tensor::from_data(TensorData::new(values, [rows]), (device, DType::F32))
    }
}

/// Log-probabilities `[rows]` from the last block's output there `[rows, hidden]`; with `measure`
/// the measures of their distributions `[rows, 3]`.
pub(super) fn head_logps<B: ModelOps>(
    model: &Llama<B>,
    picked: Tensor<B, 2>,
    targets: &TokenIds<B>,
    measure: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    match measure {
        true => {
            let (logps, measures) = model.measured_target_logps(picked, targets);
            (logps, Some(measures))
        }
        false => (model.target_logps(picked, targets), None),
    }
}

/// The same, chunk by chunk.
pub(super) fn chunked_logps<B: ModelOps>(
    model: &Llama<B>,
    picked: Tensor<B, 2>,
    targets: &Targets<B>,
    chunks: &[Range<usize>],
    measure: bool,
) -> (Tensor<B, 1>, Option<Tensor<B, 2>>) {
    let part = |range: &Range<usize>| {
        let picked = picked.clone().slice([range.clone()]);
        head_logps(model, picked, &targets.tokens.slice(range.clone()), measure)
    };
    let (logps, measures): (Vec<_>, Vec<_>) = chunks.iter().map(part).unzip();
    let measures: Option<Vec<_>> = measures.into_iter().collect();
    let measures = measures.filter(|parts| !parts.is_empty());
    let joined = measures.map(|measures| Tensor::cat(measures, 0));
    (Tensor::cat(logps, 0), joined)
}

/// Summed response log-probabilities of `sequences` under `model`.
pub fn sequence_logps<B: ModelOps>(
    model: &Llama<B>,
    sequences: &[&TokenisedSequence],
) -> Result<Vec<f64>, DeviceError> {
    if sequences.is_empty() {
        return Ok(Vec::new());
    }
    let device = model.device();
    let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
    let batch = PackedBatch::new(&ids);
    let targets = Targets::new(sequences, &batch.places, &device);
    let picked = model.forward_blocks(&batch).select(0, targets.rows.clone());
    let chunks = targets.chunks(model.vocab_size(), model.dtype());
    let (token_logps, _) = chunked_logps(model, picked, &targets, &chunks, false);
    Ok(targets.sum(&to_host(token_logps)?))
}
