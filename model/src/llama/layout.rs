//! How the sequences of one batch lie in memory: packed end to end, padded only inside attention.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// What a masked attention score is set to: its exponential is exactly zero in f32.
pub(crate) const MASKED: f32 = -1e30;

/// Sequences of token ids laid end to end, `tokens` in all.
///
/// Linear layers see real tokens only; attention gathers sequences of similar length into
/// rectangles `[rows, longest]`. Padding stands on the right, so that the causal mask alone hides
/// it. A prefix that a sequence shares with an earlier one is laid down, and computed, once:
/// attention gathers it for both.
#[derive(Clone, Debug)]
pub struct PackedBatch<B: Backend> {
    /// Token ids `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// Position of each token within its sequence `[tokens]`.
    pub positions: Tensor<B, 1, Int>,
    /// Where each sequence lies in `ids`.
    pub places: Vec<Places>,
    pub(crate) grids: Vec<Grid<B>>,
    /// For each token its cell, counted through all grids; `None` where the cells are the tokens.
    scatter: Option<Tensor<B, 1, Int>>,
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

    fn all(&self) -> impl Iterator<Item = usize> + '_ {
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
fn common_prefix(a: &[u32], b: &[u32]) -> usize {
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
    /// Cells of attention's rectangles.
    pub cells: usize,
    /// Attention scores of one head, rows · longest² of each rectangle.
    pub scores: usize,
}

/// The size of the batch that [`PackedBatch::new`] makes of `sequences`.
pub fn packed_size(sequences: &[&[u32]]) -> PackedSize {
    let new = |(i, s): (usize, &&[u32])| s.len() - relative(sequences, i).map_or(0, |(_, n)| n);
    let lengths: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
    let mut size = PackedSize {
        tokens: sequences.iter().enumerate().map(new).sum(),
        ..Default::default()
    };
    for rows in grids(&lengths) {
        let longest = rows.iter().map(|&i| lengths[i]).max().unwrap_or(0);
        size.cells += rows.len() * longest;
        size.scores += rows.len() * longest * longest;
    }
    size
}

/// A padded rectangle that attention works on.
#[derive(Clone, Debug)]
pub(crate) struct Grid<B: Backend> {
    /// The sequences that are its rows.
    pub rows: Vec<usize>,
    pub longest: usize,
    /// For each cell the token it holds (any token where it is padding); `None` where the cells
    /// are the tokens.
    gather: Option<Tensor<B, 1, Int>>,
    /// Additive causal mask, f32 `[longest, longest]`.
    pub mask: Tensor<B, 2>,
}

/// What one more rectangle costs, in cells: about a launch of its kernels.
const GRID_COST: usize = 256 * 256;

/// Sequences of similar length together, so that the rectangles' cells and their number are few:
/// the least sum of rows · longest² and [`GRID_COST`]. Longest first.
pub(crate) fn grids(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    // The least cost of the first `end` sequences, and where their last grid begins.
    let mut best = vec![(0usize, 0usize)];
    for end in 1..=order.len() {
        let cost = |start: usize| {
            let longest = lengths[order[start]];
            best[start].0 + (end - start) * longest * longest + GRID_COST
        };
        let least = (0..end).map(|start| (cost(start), start)).min();
        best.push(least.unwrap_or_default());
    }
    let mut grids = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let start = best[end].1;
        let mut rows = order[start..end].to_vec();
        rows.sort_unstable();
        grids.push(rows);
        end = start;
    }
    grids.reverse();
    grids
}

impl<B: Backend> PackedBatch<B> {
    /// Packs sequences of token ids; empty ones are not allowed.
    pub fn new(sequences: &[&[u32]], device: &B::Device) -> Self {
        debug_assert!(sequences.iter().all(|s| !s.is_empty()));
        let lengths: Vec<usize> = sequences.iter().map(|s| s.len()).collect();
        let mut places: Vec<Places> = Vec::with_capacity(sequences.len());
        let (mut ids, mut positions, mut owners) = (Vec::new(), Vec::new(), Vec::new());
        for (i, sequence) in sequences.iter().enumerate() {
            let (mut pieces, shared) = match relative(sequences, i) {
                Some((j, shared)) => (places[j].first(shared), shared),
                None => (Vec::new(), 0),
            };
            if shared < sequence.len() {
                pieces.push((ids.len(), sequence.len() - shared));
            }
            places.push(Places(pieces));
            ids.extend(sequence[shared..].iter().map(|&t| t as i64));
            positions.extend(shared as i64..sequence.len() as i64);
            owners.extend((shared..sequence.len()).map(|at| (i, at)));
        }
        let shapes: Vec<(Vec<usize>, usize)> = grids(&lengths)
            .into_iter()
            .map(|rows| {
                let longest = rows.iter().map(|&i| lengths[i]).max().unwrap_or(0);
                (rows, longest)
            })
            .collect();
        let cells: usize = shapes.iter().map(|(rows, width)| rows.len() * width).sum();
        let padded = shapes.len() > 1 || cells != ids.len();
        let scatter = padded.then(|| {
            let starts = row_starts(&shapes, sequences.len());
            let cells = owners.iter().map(|&(i, at)| (starts[i] + at) as i64);
            ints(cells.collect(), device)
        });
        let grid = |(rows, longest): (Vec<usize>, usize)| {
            let gather = padded.then(|| {
                let cells = rows.iter().flat_map(|&i| {
                    let last = places[i].at(lengths[i] - 1);
                    let padding = std::iter::repeat_n(last, longest - lengths[i]);
                    places[i].all().chain(padding).map(|place| place as i64)
                });
                ints(cells.collect(), device)
            });
            Grid {
                rows,
                longest,
                gather,
                mask: causal_mask(longest, device),
            }
        };
        let grids = shapes.into_iter().map(grid).collect();
        Self {
            ids: ints(ids, device),
            positions: ints(positions, device),
            places,
            grids,
            scatter,
        }
    }

    /// Number of tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.ids.dims()[0]
    }

    /// The cells of all grids, one after the other, `[cells, width]` → `[tokens, width]`.
    pub(crate) fn unpad(&self, mut cells: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let all = match cells.len() {
            1 => cells.remove(0),
            _ => Tensor::cat(cells, 0),
        };
        match &self.scatter {
            Some(scatter) => all.select(0, scatter.clone()),
            None => all,
        }
    }
}

/// The first cell of each sequence, counted through all grids.
fn row_starts(shapes: &[(Vec<usize>, usize)], sequences: usize) -> Vec<usize> {
    let mut starts = vec![0; sequences];
    let mut next = 0;
    for (rows, longest) in shapes {
        for &row in rows {
            starts[row] = next;
            next += longest;
        }
    }
    starts
}

impl<B: Backend> Grid<B> {
    /// `[tokens, heads, width]` → `[rows, longest, heads, width]`.
    pub fn pad(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [_, heads, width] = x.dims();
        let x = match &self.gather {
            Some(gather) => x.select(0, gather.clone()),
            None => x,
        };
        x.reshape([self.rows.len(), self.longest, heads, width])
    }
}

/// A tensor of indices on the device, in the backend's own integer type.
pub fn ints<B: Backend>(values: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

fn causal_mask<B: Backend>(longest: usize, device: &B::Device) -> Tensor<B, 2> {
    let cells = (0..longest)
        .flat_map(|i| (0..longest).map(move |j| if j <= i { 0.0 } else { MASKED }))
        .collect::<Vec<f32>>();
    Tensor::from_data(
        TensorData::new(cells, [longest, longest]),
        (device, DType::F32),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_lengths_share_a_grid() {
        assert_eq!(grids(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(grids(&[7]), [[0]]);
        // Short ones are not worth a grid of their own.
        assert_eq!(grids(&[30, 100, 60]), [[0, 1, 2]]);
        assert_eq!(
            grids(&[1000, 90, 1000, 100, 990]),
            [vec![0, 2, 4], vec![1, 3]]
        );
    }

    #[test]
    fn the_size_is_that_of_the_batch() {
        type Flex = burn_flex::Flex<f32, i32>;
        let prompt: Vec<u32> = (0..40).collect();
        let with = |more: u32, count: usize| {
            let answer = (0..count as u32).map(|i| 100 + more + i);
            prompt.iter().copied().chain(answer).collect::<Vec<u32>>()
        };
        let sequences = [with(0, 20), with(50, 200), with(60, 180), vec![5; 10]];
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let batch = PackedBatch::<Flex>::new(&sequences, &Default::default());
        let size = packed_size(&sequences);
        assert_eq!(size.tokens, batch.tokens());
        let cells = batch.grids.iter().map(|g| g.rows.len() * g.longest);
        assert_eq!(size.cells, cells.sum::<usize>());
        assert_eq!((size.tokens, size.cells), (450, 600));
        assert_eq!(size.scores, 2 * 240 * 240 + 2 * 60 * 60);
    }

    #[test]
    fn grids_hold_every_sequence_once() {
        let lengths: Vec<usize> = (0..50).map(|i| 1 + i * i % 977).collect();
        let grids = grids(&lengths);
        assert!(grids.len() > 1);
        let mut all: Vec<usize> = grids.concat();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
