//! What a batch comes to, in numbers.

use sppo_model::packed_batch::{HOST_TILE, PackedBatch, PackedSize};

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
                tokens: product(&[rows, longest]),
                cells: product(&[rows, longest]),
                blocked: product(&[rows, longest.saturating_add(HOST_TILE)]),
                scores: product(&[rows, longest, longest]),
            },
            response_tokens: product(&[rows, longest]),
            attended: product(&[rows, longest, longest + 1]) / 2,
        }
    }

    /// Of each size the larger one of two batches.
    pub fn or_larger(self, other: Self) -> Self {
        Self {
            packed: PackedSize {
                tokens: self.packed.tokens.max(other.packed.tokens),
                cells: self.packed.cells.max(other.packed.cells),
                blocked: self.packed.blocked.max(other.packed.blocked),
                scores: self.packed.scores.max(other.packed.scores),
            },
            response_tokens: self.response_tokens.max(other.response_tokens),
            attended: self.attended.max(other.attended),
        }
    }

    /// Pairs whose prompts have `prompt` tokens and whose responses have `response` each.
    pub fn alike(pairs: usize, prompt: usize, response: usize) -> Self {
        let (rows, longest) = (2 * pairs, prompt + response);
        let shared = if prompt * 8 >= longest { prompt } else { 0 };
        Self {
            packed: PackedSize {
                tokens: product(&[rows, longest]) - product(&[pairs, shared]),
                cells: product(&[rows, longest]),
                blocked: product(&[rows, longest.next_multiple_of(HOST_TILE)]),
                scores: product(&[rows, longest, longest]),
            },
            response_tokens: product(&[rows, response]),
            attended: product(&[rows, longest, longest + 1]) / 2,
        }
    }
}

/// A product of sizes, which stays the largest number where it would go beyond: such a batch fits
/// nowhere, and a product that wrapped around would look as if it did.
fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |all, size| all.saturating_mul(*size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// r025: in a release build an absurd batch wrapped around and seemed to fit.
    #[test]
    fn sizes_beyond_all_measure_do_not_wrap_around() {
        let batch = Batch::largest(1 << 34, 1 << 22);
        assert_eq!(batch.packed.scores, usize::MAX);
        assert_eq!(
            Batch::alike(1 << 33, 1 << 21, 1 << 21).packed.scores,
            usize::MAX
        );
        let usual = Batch::alike(2, 3, 4);
        assert_eq!(
            (usual.packed.tokens, usual.packed.scores, usual.attended),
            (22, 196, 112)
        );
    }
}
