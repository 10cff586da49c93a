//! How the sequences of one batch lie in memory: packed end to end, padded only inside attention.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// What a masked attention score is set to: its exponential is exactly zero in f32.
pub(crate) const MASKED: f32 = -1e30;

/// Sequences of token ids laid end to end, `tokens` in all.
///
/// Linear layers see real tokens only; attention gathers them into `[batch, longest]`. Padding
/// stands on the right, so that the causal mask alone hides it. A prefix that a sequence shares
/// with an earlier one is laid down, and computed, once: attention gathers it for both.
#[derive(Clone, Debug)]
pub struct PackedBatch<B: Backend> {
    /// Token ids `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// Position of each token within its sequence `[tokens]`.
    pub positions: Tensor<B, 1, Int>,
    /// Where each sequence lies in `ids`.
    pub places: Vec<Places>,
    pub(crate) grid: Grid<B>,
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

/// The padded rectangle that attention works on.
#[derive(Clone, Debug)]
pub(crate) struct Grid<B: Backend> {
    pub batch: usize,
    pub longest: usize,
    /// `None` where all sequences are equally long and share nothing.
    pub padding: Option<Padding<B>>,
    /// Additive causal mask, f32 `[longest, longest]`.
    pub mask: Tensor<B, 2>,
}

#[derive(Clone, Debug)]
pub(crate) struct Padding<B: Backend> {
    /// For each cell of the rectangle the token it holds (any token where it is padding).
    pub gather: Tensor<B, 1, Int>,
    /// For each token its cell.
    pub scatter: Tensor<B, 1, Int>,
}

impl<B: Backend> PackedBatch<B> {
    /// Packs sequences of token ids; empty ones are not allowed.
    pub fn new(sequences: &[&[u32]], device: &B::Device) -> Self {
        debug_assert!(sequences.iter().all(|s| !s.is_empty()));
        let longest = sequences.iter().map(|s| s.len()).max().unwrap_or(0);
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
            owners.extend((shared..sequence.len()).map(|at| (i * longest + at) as i64));
        }
        let padding = (ids.len() != sequences.len() * longest).then(|| {
            let gather = sequences.iter().zip(&places).flat_map(|(s, places)| {
                let last = places.at(s.len() - 1);
                let padding = std::iter::repeat_n(last, longest - s.len());
                places.all().chain(padding).map(|place| place as i64)
            });
            Padding {
                gather: ints(gather.collect(), device),
                scatter: ints(owners, device),
            }
        });
        Self {
            ids: ints(ids, device),
            positions: ints(positions, device),
            places,
            grid: Grid {
                batch: sequences.len(),
                longest,
                padding,
                mask: causal_mask(longest, device),
            },
        }
    }

    /// Number of tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.ids.dims()[0]
    }
}

impl<B: Backend> Grid<B> {
    /// `[tokens, heads, width]` → `[batch, longest, heads, width]`.
    pub fn pad(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [_, heads, width] = x.dims();
        let x = match &self.padding {
            Some(padding) => x.select(0, padding.gather.clone()),
            None => x,
        };
        x.reshape([self.batch, self.longest, heads, width])
    }

    /// `[batch · longest, width]` → `[tokens, width]`.
    pub fn unpad(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.padding {
            Some(padding) => x.select(0, padding.scatter.clone()),
            None => x,
        }
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
