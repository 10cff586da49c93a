//! Summed log-probabilities of responses; the vocabulary projection runs at their positions only.

use std::ops::Range;

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use sppo_model::llama::layout::{Places, ints};
use sppo_model::llama::{Llama, PackedBatch};

use super::LearnerError;
use super::host::{HostPass, fits};
use crate::config::Recompute;
use crate::tokenise::TokenisedSequence;

/// Most logits held at once.
const CHUNK_LOGITS: usize = 1 << 25;

#[cfg(test)]
thread_local! {
    /// Rows of a chunk in tests, whose vocabularies are small.
    pub(super) static SMALL_CHUNKS: std::cell::Cell<Option<usize>> =
        const { std::cell::Cell::new(None) };
}

/// Rows of logits over `vocab` that are held at once.
pub fn chunk_rows(vocab: usize) -> usize {
    #[cfg(test)]
    if let Some(rows) = SMALL_CHUNKS.get() {
        return rows;
    }
    (CHUNK_LOGITS / vocab).max(1)
}

/// The response tokens of a batch: where they are predicted, and what they are.
pub(super) struct Targets<B: Backend> {
    /// Packed positions that predict a response token `[rows]`.
    pub rows: Tensor<B, 1, Int>,
    /// The tokens themselves.
    pub token_ids: Vec<usize>,
    /// The same on the device `[rows]`.
    tokens: Tensor<B, 1, Int>,
    /// Response tokens of each sequence.
    counts: Vec<usize>,
}

impl<B: Backend> Targets<B> {
    /// Of sequences whose tokens lie at `places`.
    pub fn new(sequences: &[&TokenisedSequence], places: &[Places], device: &B::Device) -> Self {
        let mut rows = Vec::new();
        let mut tokens = Vec::new();
        for (sequence, places) in sequences.iter().zip(places) {
            for i in sequence.response_start..sequence.ids.len() {
                rows.push(places.at(i - 1) as i64);
                tokens.push(sequence.ids[i] as i64);
            }
        }
        Self {
            rows: ints(rows, device),
            token_ids: tokens.iter().map(|&token| token as usize).collect(),
            tokens: ints(tokens, device),
            counts: sequences.iter().map(|s| s.response().len()).collect(),
        }
    }

    /// Ranges of rows whose logits over `vocab` fit into memory together.
    pub fn chunks(&self, vocab: usize) -> Vec<Range<usize>> {
        let rows = self.tokens.dims()[0];
        let size = chunk_rows(vocab);
        (0..rows)
            .step_by(size)
            .map(|start| start..(start + size).min(rows))
            .collect()
    }

    /// Log-probabilities `[rows of range]` from the last block's output there `[rows, hidden]`.
    pub fn logps(
        &self,
        model: &Llama<B>,
        picked: Tensor<B, 2>,
        range: &Range<usize>,
    ) -> Tensor<B, 1> {
        let logits = model.project(model.norm.forward(picked));
        let tokens = self.tokens.clone().slice([range.clone()]);
        log_softmax(logits, 1)
            .gather(1, tokens.unsqueeze_dim(1))
            .squeeze_dim(1)
    }

    /// Sums `[rows]` by sequence, in f64 on the host.
    pub fn sum_by_sequence<I: Backend>(
        &self,
        token_logps: Tensor<I, 1>,
    ) -> Result<Vec<f64>, LearnerError> {
        let values: Vec<f32> = token_logps
            .try_into_data()
            .map_err(|e| LearnerError::Device(e.to_string()))?
            .into_vec()
            .map_err(|e| LearnerError::Device(format!("{e:?}")))?;
        Ok(self.sum(&values))
    }

    /// The same of values on the host.
    pub fn sum(&self, values: &[f32]) -> Vec<f64> {
        let mut rest = values;
        let sum = |&count: &usize| {
            let (own, others) = rest.split_at(count);
            rest = others;
            own.iter().map(|&x| x as f64).sum()
        };
        self.counts.iter().map(sum).collect()
    }

    /// Each sequence's weight at each of its rows, f32 `[rows]`.
    pub fn spread(&self, weights: &[f64], device: &B::Device) -> Tensor<B, 1> {
        let values = self.spread_values(weights);
        let rows = values.len();
        Tensor::from_data(TensorData::new(values, [rows]), (device, DType::F32))
    }

    /// The same on the host.
    pub fn spread_values(&self, weights: &[f64]) -> Vec<f32> {
        let each = weights.iter().zip(&self.counts);
        each.flat_map(|(&w, &count)| std::iter::repeat_n(w as f32, count))
            .collect()
    }
}

/// Log-probabilities `[rows]`, chunk by chunk.
pub(super) fn chunked_logps<B: Backend>(
    model: &Llama<B>,
    picked: Tensor<B, 2>,
    targets: &Targets<B>,
    chunks: &[Range<usize>],
) -> Tensor<B, 1> {
    let parts = chunks
        .iter()
        .map(|range| targets.logps(model, picked.clone().slice([range.clone()]), range))
        .collect();
    Tensor::cat(parts, 0)
}

/// Summed response log-probabilities of `sequences` under `model`.
pub fn sequence_logps<B: Backend>(
    model: &Llama<B>,
    sequences: &[&TokenisedSequence],
) -> Result<Vec<f64>, LearnerError> {
    if sequences.is_empty() {
        return Ok(Vec::new());
    }
    if fits(model) {
        return Ok(HostPass::forward(model, Recompute::Layer, sequences).logps);
    }
    let device = model.device();
    let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
    let batch = PackedBatch::new(&ids, &device);
    let targets = Targets::new(sequences, &batch.places, &device);
    let picked = model.forward_blocks(&batch).select(0, targets.rows.clone());
    let chunks = targets.chunks(model.embed_tokens.dims()[0]);
    let token_logps = chunked_logps(model, picked, &targets, &chunks);
    targets.sum_by_sequence(token_logps)
}
