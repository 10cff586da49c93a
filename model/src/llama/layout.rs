//! How the sequences of one batch lie in memory: packed end to end, padded only inside attention.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

/// What a masked attention score is set to: its exponential is exactly zero in f32.
pub(crate) const MASKED: f32 = -1e30;

/// Sequences of token ids laid end to end, `tokens` in all.
///
/// Linear layers see real tokens only; attention gathers them into `[batch, longest]`. Padding
/// stands on the right, so that the causal mask alone hides it.
#[derive(Clone, Debug)]
pub struct PackedBatch<B: Backend> {
    /// Token ids `[tokens]`.
    pub ids: Tensor<B, 1, Int>,
    /// Position of each token within its sequence `[tokens]`.
    pub positions: Tensor<B, 1, Int>,
    /// First token of each sequence in `ids`.
    pub starts: Vec<usize>,
    pub(crate) grid: Grid<B>,
}

/// The padded rectangle that attention works on.
#[derive(Clone, Debug)]
pub(crate) struct Grid<B: Backend> {
    pub batch: usize,
    pub longest: usize,
    /// `None` where all sequences are equally long.
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
        let mut starts = Vec::with_capacity(sequences.len());
        let mut total = 0;
        for sequence in sequences {
            starts.push(total);
            total += sequence.len();
        }
        let ids = sequences.iter().flat_map(|s| s.iter().map(|&t| t as i64));
        let positions = sequences.iter().flat_map(|s| 0..s.len() as i64);
        let padding = (total != sequences.len() * longest).then(|| {
            let gather = sequences.iter().zip(&starts).flat_map(|(s, &start)| {
                (0..longest).map(move |i| (start + i.min(s.len() - 1)) as i64)
            });
            let scatter = sequences
                .iter()
                .enumerate()
                .flat_map(|(row, s)| (0..s.len()).map(move |i| (row * longest + i) as i64));
            Padding {
                gather: ints(gather.collect(), device),
                scatter: ints(scatter.collect(), device),
            }
        });
        Self {
            ids: ints(ids.collect(), device),
            positions: ints(positions.collect(), device),
            starts,
            grid: Grid {
                batch: sequences.len(),
                longest,
                padding,
                mask: causal_mask(longest, device),
            },
        }
    }

    /// Number of real tokens.
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
