//! What a batch comes to, in numbers.

use sppo_model::packed_batch::{PackedBatch, PackedSize};

use crate::tokenise::TokenisedSequence;

/// Size of a batch as the model computes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Tokens that are computed, and attention's padded batches.
    pub packed: PackedSize,
    /// Tokens of responses, whose logits are computed.
    pub response_tokens: usize,
    /// Pairs of a token and one that it attends to.
    pub attended: usize,
}

impl Batch {
    /// Of sequences that go through the model together.
    pub fn of(sequences: &[&TokenisedSequence]) -> Self {
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let length = |s: &&TokenisedSequence| s.ids.len();
        Self {
            packed: PackedBatch::new(&ids).size(),
            response_tokens: sequences.iter().map(|s| s.response().len()).sum(),
            attended: sequences.iter().map(length).map(|l| l * (l + 1) / 2).sum(),
        }
    }

    /// The most that `rows` sequences of up to `longest` tokens come to: nothing shared, and all of
    /// it response.
    pub fn largest(rows: usize, longest: usize) -> Self {
        Self {
            packed: PackedSize {
                tokens: rows * longest,
                cells: rows * longest,
                scores: rows * longest * longest,
            },
            response_tokens: rows * longest,
            attended: rows * longest * (longest + 1) / 2,
        }
    }

    /// Pairs whose prompts have `prompt` tokens and whose responses have `response` each.
    pub fn alike(pairs: usize, prompt: usize, response: usize) -> Self {
        let (rows, longest) = (2 * pairs, prompt + response);
        let shared = if prompt * 8 >= longest { prompt } else { 0 };
        Self {
            packed: PackedSize {
                tokens: rows * longest - pairs * shared,
                cells: rows * longest,
                scores: rows * longest * longest,
            },
            response_tokens: rows * response,
            attended: rows * longest * (longest + 1) / 2,
        }
    }
}
