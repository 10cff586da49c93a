//! How the sequences of one batch lie in memory: packed end to end, padded only inside attention.

/// Queries of a tile of attention on a host, and keys of a block.
pub const HOST_TILE: usize = 64;

/// Sequences of token ids laid end to end.
///
/// Linear layers see real tokens only; attention gathers sequences of similar length into padded
/// batches `[rows, longest]`. A prefix that a sequence shares with an earlier one is laid down, and
/// computed, once: attention gathers it for both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBatch {
    /// Token ids, in the order of computing.
    pub ids: Vec<u32>,
    /// Position of each token within its sequence.
    pub positions: Vec<u32>,
    /// Where each sequence lies in `ids`.
    pub places: Vec<Places>,
    /// Which sequences attend together.
    pub padded: Vec<PaddedBatch>,
}

/// Sequences of similar length that attention works on as `[rows, longest]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaddedBatch {
    /// The sequences that are its rows.
    pub rows: Vec<usize>,
    /// Tokens of the longest of them.
    pub longest: usize,
}

/// Where the tokens of one sequence lie: piece after piece, first token and number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places(Vec<(usize, usize)>);

impl Places {
    /// Where token `i` of the sequence lies.
    pub fn at(&self, i: usize) -> usize {
        let mut before = 0;
        for &(start, count) in &self.0 {
            if i < before + count {
                return start + i - before;
            }
            before += count;
        }
        debug_assert!(false, "token {i} of {before}");
        0
    }

    /// Tokens of the sequence.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.0.iter().map(|&(_, count)| count).sum()
    }

    /// The tokens in order.
    pub fn tokens(&self) -> impl Iterator<Item = usize> + '_ {
        self.0
            .iter()
            .flat_map(|&(start, count)| start..start + count)
    }

    /// The pieces that hold the first `tokens`.
    fn first(&self, tokens: usize) -> Vec<(usize, usize)> {
        let mut left = tokens;
        let pieces = self.0.iter().map(|&(start, count)| {
            let used = count.min(left);
            left -= used;
            (start, used)
        });
        pieces.filter(|&(_, count)| count > 0).collect()
    }
}

/// How many tokens `a` and `b` begin with alike.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The earlier sequence that shares most with sequence `i`, and how much; a share below an eighth
/// is not worth gathering.
fn relative(sequences: &[&[u32]], i: usize) -> Option<(usize, usize)> {
    let shares = (0..i).map(|j| (j, common_prefix(sequences[j], sequences[i])));
    let most = shares.max_by_key(|&(j, share)| (share, std::cmp::Reverse(j)));
    most.filter(|&(_, share)| share * 8 >= sequences[i].len())
}

/// What a packed batch of some sequences comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedSize {
    /// Tokens that are computed: shared prefixes once.
    pub tokens: usize,
    /// Cells of attention's padded batches.
    pub cells: usize,
    /// Tokens of the sequences in whole blocks of [`HOST_TILE`].
    pub blocked: usize,
    /// Attention scores of one head, rows · longest² of each padded batch.
    pub scores: usize,
}

/// What one more padded batch costs, in cells: about a launch of its kernels.
const BATCH_COST: usize = 256 * 256;

/// Sequences of similar length together, so that cells and batches are few:
/// the least sum of rows · longest² and [`BATCH_COST`]. Longest first.
fn padded_batches(lengths: &[usize]) -> Vec<PaddedBatch> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    // The least cost of the first `end` sequences, and where their last batch begins.
    let mut best = vec![(0usize, 0usize)];
    for end in 1..=order.len() {
        let cost = |start: usize| {
            let longest = lengths[order[start]];
            best[start].0 + (end - start) * longest * longest + BATCH_COST
        };
        let least = (0..end).map(|start| (cost(start), start)).min();
        best.push(least.unwrap_or_default());
    }
    let mut batches = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let start = best[end].1;
        let longest = lengths[order[start]];
        let mut rows = order[start..end].to_vec();
        rows.sort_unstable();
        batches.push(PaddedBatch { rows, longest });
        end = start;
    }
    batches.reverse();
    batches
}

impl PackedBatch {
    /// Packs sequences of token ids; empty ones are not allowed.
    pub fn new(sequences: &[&[u32]]) -> Self {
        Self::packed(sequences, |i| relative(sequences, i))
    }

    /// The same with all tokens of each sequence end to end, shared ones too.
    pub fn apart(sequences: &[&[u32]]) -> Self {
        Self::packed(sequences, |_| None)
    }

    fn packed(sequences: &[&[u32]], relative: impl Fn(usize) -> Option<(usize, usize)>) -> Self {
        debug_assert!(sequences.iter().all(|s| !s.is_empty()));
        let lengths: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut places: Vec<Places> = Vec::with_capacity(sequences.len());
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for (i, sequence) in sequences.iter().enumerate() {
            let (mut pieces, shared) = match relative(i) {
                Some((j, shared)) => (places[j].first(shared), shared),
                None => (Vec::new(), 0),
            };
            if shared < sequence.len() {
                pieces.push((ids.len(), sequence.len() - shared));
            }
            places.push(Places(pieces));
            ids.extend_from_slice(&sequence[shared..]);
            positions.extend(shared as u32..sequence.len() as u32);
        }
        Self {
            ids,
            positions,
            places,
            padded: padded_batches(&lengths),
        }
    }

    /// Number of tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// What it comes to.
    pub fn size(&self) -> PackedSize {
        let cells = |batch: &PaddedBatch| batch.rows.len() * batch.longest;
        let blocked = |places: &Places| places.len().next_multiple_of(HOST_TILE);
        PackedSize {
            tokens: self.tokens(),
            cells: self.padded.iter().map(cells).sum(),
            blocked: self.places.iter().map(blocked).sum(),
            scores: self.padded.iter().map(|b| cells(b) * b.longest).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(lengths: &[usize]) -> Vec<Vec<usize>> {
        let batches = padded_batches(lengths).into_iter();
        batches.map(|batch| batch.rows).collect()
    }

    #[test]
    fn like_lengths_attend_together() {
        assert_eq!(rows(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(rows(&[7]), [[0]]);
        // Short ones are not worth a batch of their own.
        assert_eq!(rows(&[30, 100, 60]), [[0, 1, 2]]);
        let found = rows(&[1000, 90, 1000, 100, 990]);
        assert_eq!(found, [vec![0, 2, 4], vec![1, 3]]);
    }

    #[test]
    fn shared_prefixes_are_laid_down_once() {
        let prompt: Vec<u32> = (0..40).collect();
        let with = |more: u32, count: usize| {
            let answer = (0..count as u32).map(|i| 100 + more + i);
            prompt.iter().copied().chain(answer).collect::<Vec<u32>>()
        };
        let sequences = [with(0, 20), with(50, 200), with(60, 180), vec![5; 10]];
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let batch = PackedBatch::new(&sequences);
        for (sequence, places) in sequences.iter().zip(&batch.places) {
            let found: Vec<u32> = places.tokens().map(|token| batch.ids[token]).collect();
            assert_eq!(found, *sequence);
            for (i, token) in places.tokens().enumerate() {
                assert_eq!(batch.positions[token], i as u32);
                assert_eq!(places.at(i), token);
            }
        }
        let size = batch.size();
        assert_eq!((size.tokens, size.cells), (450, 600));
        assert_eq!(size.scores, 2 * 240 * 240 + 2 * 60 * 60);
    }

    #[test]
    fn padded_batches_hold_every_sequence_once() {
        let lengths: Vec<usize> = (0..50).map(|i| 1 + i * i % 977).collect();
        let found = rows(&lengths);
        assert!(found.len() > 1);
        let mut all: Vec<usize> = found.concat();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
