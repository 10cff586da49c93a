//! Causal attention within the sequences of a packed batch.
//!
//! On a host it is a pass over tiles of scores (`host`), on a GPU kernels. What has neither gathers
//! tokens into padded batches `[rows, longest]` of sequences of similar length. Padding stands on the
//! right, so that the causal mask alone hides it. The queries of a group of heads lie below each
//! other as rows of one matrix, so that keys and values are never copied per head.

pub mod host;
mod places;
mod product;
mod tile;

use std::sync::Arc;

use burn::tensor::activation::softmax;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

#[cfg(feature = "cubecl")]
use super::cube::Part;
use super::device::{Placement, ints, mask};
use super::memory::{cast, to_f32};
use super::rotary::Rotation;
use crate::packed_batch::PackedBatch;

pub(super) use places::Places;
pub use places::{Heads, QUERY_TILE};

/// Where attention finds the tokens of a packed batch, and how far it rotates them.
#[derive(Clone, Debug)]
pub struct PackedAttention<B: Backend> {
    heads: Heads,
    rotation: Rotation<B>,
    places: Arc<Places>,
    /// Where attention is neither a pass over the host's memory nor a kernel.
    indices: Option<Indices<B>>,
    /// Where it is a kernel.
    table: Option<Table<B>>,
}

/// What kernels read of the places.
#[derive(Clone, Debug)]
struct Table<B: Backend> {
    values: Tensor<B, 1, Int>,
    #[cfg(feature = "cubecl")]
    parts: Arc<Vec<Part>>,
}

/// The same on the device.
#[derive(Clone, Debug)]
struct Indices<B: Backend> {
    padded: Vec<PaddedIndices<B>>,
    /// For each token its first cell, counted through all padded batches; none where the cells are
    /// the tokens.
    scatter: Option<Tensor<B, 1, Int>>,
}

#[derive(Clone, Debug)]
struct PaddedIndices<B: Backend> {
    rows: usize,
    longest: usize,
    /// For each cell the token it holds (any token where it is padding); none where the cells are
    /// the tokens.
    gather: Option<Tensor<B, 1, Int>>,
    /// Additive causal mask, f32 `[longest, longest]`.
    mask: Tensor<B, 2>,
}

/// What attention's backward step needs of its forward step.
#[derive(Clone, Debug)]
pub struct Attended<B: Backend>(pub(super) Kept<B>);

#[derive(Clone, Debug)]
pub(super) enum Kept<B: Backend> {
    Weights(Vec<AttendedBatch<B>>),
    /// Queries, keys and values as they came, the mixed values, and the logarithms of scores' sums
    /// of exponentials `[tokens · heads]`.
    Host([Tensor<B, 2>; 4], Tensor<B, 1>),
    /// Queries, keys and values as they came; the logarithms of scores' sums of exponentials, of
    /// each padded batch.
    #[cfg(feature = "cubecl")]
    LogSums([Tensor<B, 2>; 3], Vec<Tensor<B, 1>>),
}

impl<B: Backend> Attended<B> {
    fn weights(self) -> Vec<AttendedBatch<B>> {
        match self.0 {
            Kept::Weights(weights) => weights,
            _ => unreachable!("another backend's forward step"),
        }
    }
}

/// The same of one padded batch.
#[derive(Clone, Debug)]
pub(super) struct AttendedBatch<B: Backend> {
    /// `[rows, kv_heads, group · longest, head_dim]`.
    queries: Tensor<B, 4>,
    /// `[rows, kv_heads, longest, head_dim]`.
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    /// `[rows, kv_heads, group · longest, longest]`.
    weights: Tensor<B, 4>,
}

impl<B: Placement> PackedAttention<B> {
    /// Over the tokens of `batch`, by heads in `dtype`.
    pub fn new(
        batch: &PackedBatch,
        frequencies: &[f32],
        heads: Heads,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let places = Places::new(batch);
        let indices = !B::HAS_KERNELS && !B::in_passes(dtype);
        Self {
            heads,
            rotation: Rotation::new(frequencies, &batch.positions, dtype, device),
            indices: indices.then(|| Indices::new(&places, device)),
            table: Table::new(&places, B::HAS_KERNELS, device),
            places: Arc::new(places),
        }
    }
}

impl<B: Backend> PackedAttention<B> {
    #[cfg(feature = "cubecl")]
    pub(super) fn heads(&self) -> Heads {
        self.heads
    }

    #[cfg(feature = "cubecl")]
    pub(super) fn rotation(&self) -> &Rotation<B> {
        &self.rotation
    }

    /// The integers that kernels read, and where each padded batch's lie among them.
    #[cfg(feature = "cubecl")]
    pub(super) fn table(&self, device: &B::Device) -> (Tensor<B, 1, Int>, Arc<Vec<Part>>) {
        match &self.table {
            Some(table) => (table.values.clone(), table.parts.clone()),
            None => {
                let (values, parts) = super::cube::attention_table(&self.places);
                (ints(values, device), Arc::new(parts))
            }
        }
    }

    fn indices(&self, device: &B::Device) -> Indices<B> {
        let known = self.indices.clone();
        known.unwrap_or_else(|| Indices::new(&self.places, device))
    }
}

impl<B: AutodiffBackend> PackedAttention<B> {
    /// The same for a graph.
    pub fn from_inner(inner: PackedAttention<B::InnerBackend>) -> Self {
        PackedAttention {
            heads: inner.heads,
            rotation: Rotation::from_inner(inner.rotation),
            places: inner.places,
            indices: inner.indices.map(Indices::from_inner),
            table: inner.table.map(Table::from_inner),
        }
    }

    pub(super) fn inner(&self) -> PackedAttention<B::InnerBackend> {
        PackedAttention {
            heads: self.heads,
            rotation: self.rotation.inner(),
            places: self.places.clone(),
            indices: self.indices.clone().map(Indices::inner),
            table: self.table.clone().map(Table::inner),
        }
    }
}

impl<B: Backend> Table<B> {
    /// None where attention is no kernel.
    #[cfg(feature = "cubecl")]
    fn new(places: &Places, kernel: bool, device: &B::Device) -> Option<Self> {
        kernel.then(|| {
            let (values, parts) = super::cube::attention_table(places);
            Self {
                values: ints(values, device),
                parts: Arc::new(parts),
            }
        })
    }

    #[cfg(not(feature = "cubecl"))]
    fn new(_: &Places, _: bool, _: &B::Device) -> Option<Self> {
        None
    }
}

impl<B: AutodiffBackend> Table<B> {
    fn from_inner(inner: Table<B::InnerBackend>) -> Self {
        Self {
            values: Tensor::from_inner(inner.values),
            #[cfg(feature = "cubecl")]
            parts: inner.parts,
        }
    }

    fn inner(self) -> Table<B::InnerBackend> {
        Table {
            values: self.values.inner(),
            #[cfg(feature = "cubecl")]
            parts: self.parts,
        }
    }
}

impl<B: AutodiffBackend> Indices<B> {
    fn from_inner(inner: Indices<B::InnerBackend>) -> Self {
        let padded = inner.padded.into_iter().map(|padded| PaddedIndices {
            rows: padded.rows,
            longest: padded.longest,
            gather: padded.gather.map(Tensor::from_inner),
            mask: Tensor::from_inner(padded.mask),
        });
        Self {
            padded: padded.collect(),
            scatter: inner.scatter.map(Tensor::from_inner),
        }
    }

    fn inner(self) -> Indices<B::InnerBackend> {
        let padded = self.padded.into_iter().map(|padded| PaddedIndices {
            rows: padded.rows,
            longest: padded.longest,
            gather: padded.gather.map(Tensor::inner),
            mask: padded.mask.inner(),
        });
        Indices {
            padded: padded.collect(),
            scatter: self.scatter.map(Tensor::inner),
        }
    }
}

impl<B: Backend> Indices<B> {
    fn new(places: &Places, device: &B::Device) -> Self {
        let cells: usize = places.padded.iter().map(|p| p.tokens.len()).sum();
        let moved = places.padded.len() > 1 || cells != places.cells_of.len();
        let mut first_cells = Vec::with_capacity(places.padded.len());
        let mut next = 0;
        for padded in &places.padded {
            first_cells.push(next);
            next += padded.tokens.len();
        }
        let scatter = moved.then(|| {
            let first = places.cells_of.iter().map(|cells| {
                let (number, cell) = cells.first().copied().unwrap_or_default();
                (first_cells[number] + cell) as i64
            });
            ints(first.collect(), device)
        });
        let padded = places.padded.iter().map(|padded| PaddedIndices {
            rows: padded.rows(),
            longest: padded.longest,
            gather: moved.then(|| {
                let tokens = padded.tokens.iter();
                ints(tokens.map(|t| t.unwrap_or(0) as i64).collect(), device)
            }),
            mask: mask(padded.longest, padded.longest, |row| row + 1, device),
        });
        Self {
            padded: padded.collect(),
            scatter,
        }
    }

    /// Cells of all padded batches `[cells, width]` → `[tokens, width]`: each token's first one.
    fn first_of_tokens(&self, mut cells: Vec<Tensor<B, 2>>) -> Tensor<B, 2> {
        let all = match cells.len() {
            1 => cells.remove(0),
            _ => Tensor::cat(cells, 0),
        };
        match &self.scatter {
            Some(scatter) => all.select(0, scatter.clone()),
            None => all,
        }
    }

    /// The transpose: `[tokens, width]` → for each padded batch `[cells, width]`, zero in all cells
    /// but the tokens' first.
    fn to_first_cells(&self, x: Tensor<B, 2>) -> Vec<Tensor<B, 2>> {
        let Some(scatter) = &self.scatter else {
            return vec![x];
        };
        let cells = self.padded.iter().map(|p| p.rows * p.longest);
        let empty = Tensor::zeros([cells.clone().sum(), x.dims()[1]], (&x.device(), x.dtype()));
        let all = empty.select_assign(0, scatter.clone(), x, IndexingUpdateOp::Add);
        let mut first = 0;
        let part = |count: usize| {
            let part = all.clone().narrow(0, first, count);
            first += count;
            part
        };
        cells.map(part).collect()
    }

    /// Tokens `[tokens, width]` → for each padded batch `[cells, width]`.
    fn to_cells(&self, x: &Tensor<B, 2>) -> Vec<Tensor<B, 2>> {
        let cells = |padded: &PaddedIndices<B>| match &padded.gather {
            Some(gather) => x.clone().select(0, gather.clone()),
            None => x.clone(),
        };
        self.padded.iter().map(cells).collect()
    }

    /// The transpose: each token's sum over its cells `[tokens, width]`, in f32. Padded cells must be
    /// zero.
    fn sum_of_cells(&self, cells: Vec<Tensor<B, 2>>, shape: [usize; 2]) -> Tensor<B, 2> {
        let device = cells.first().map(Tensor::device).unwrap_or_default();
        let mut sums = Tensor::zeros(shape, (&device, DType::F32));
        for (padded, cells) in self.padded.iter().zip(cells) {
            let cells = to_f32(cells);
            sums = match &padded.gather {
                Some(gather) => sums.select_assign(0, gather.clone(), cells, IndexingUpdateOp::Add),
                // There is one padded batch, whose cells are the tokens.
                None => cells,
            };
        }
        sums
    }
}

impl<B: Backend> PaddedIndices<B> {
    /// `[cells, heads · dim]` → `[rows, kv, heads / kv · longest, dim]`.
    fn split(&self, x: Tensor<B, 2>, kv: usize, dim: usize) -> Tensor<B, 4> {
        let group = x.dims()[1] / dim / kv;
        x.reshape([self.rows, self.longest, kv, group, dim])
            .permute([0, 2, 3, 1, 4])
            .reshape([self.rows, kv, group * self.longest, dim])
    }

    /// The way back.
    fn join(&self, x: Tensor<B, 4>) -> Tensor<B, 2> {
        let [rows, kv, below, dim] = x.dims();
        let group = below / self.longest;
        x.reshape([rows, kv, group, self.longest, dim])
            .permute([0, 3, 1, 2, 4])
            .reshape([rows * self.longest, kv * group * dim])
    }
}

pub(super) fn forward<B: Placement>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    over: &PackedAttention<B>,
) -> (Tensor<B, 2>, Attended<B>) {
    let (dtype, heads) = (q.dtype(), over.heads);
    let tokens = q.dims()[0];
    let indices = over.indices(&q.device());
    let rotated = |x: Tensor<B, 2>| {
        let across = x.dims()[1];
        let x = x.reshape([tokens, across / heads.dim, heads.dim]);
        over.rotation.apply(x, 1.0).reshape([tokens, across])
    };
    let q = indices.to_cells(&rotated(q));
    let k = indices.to_cells(&rotated(k));
    let v = indices.to_cells(&v);
    let (mut mixed, mut attended) = (Vec::new(), Vec::new());
    for (((q, k), v), padded) in q.into_iter().zip(k).zip(v).zip(&indices.padded) {
        let split = |x| padded.split(x, heads.kv, heads.dim);
        let (queries, keys, values) = (split(q), split(k), split(v));
        let scores = to_f32(queries.clone().matmul(keys.clone().transpose())) * heads.scale();
        let masked = add_mask(scores, padded.mask.clone(), heads.group());
        let weights = cast(softmax(masked, 3), dtype);
        mixed.push(padded.join(weights.clone().matmul(values.clone())));
        attended.push(AttendedBatch {
            queries,
            keys,
            values,
            weights,
        });
    }
    (
        indices.first_of_tokens(mixed),
        Attended(Kept::Weights(attended)),
    )
}

/// Adds a mask `[longest, longest]` to scores `[rows, kv, group · longest, longest]`.
fn add_mask<B: Backend>(scores: Tensor<B, 4>, mask: Tensor<B, 2>, group: usize) -> Tensor<B, 4> {
    let [rows, kv, queries, columns] = scores.dims();
    // One row of a matrix for all: the broadcast that CPU backends do fast.
    let mask = mask.repeat_dim(0, group).reshape([1, queries * columns]);
    let flat = scores.reshape([rows * kv, queries * columns]) + mask;
    flat.reshape([rows, kv, queries, columns])
}

pub(super) fn backward<B: Placement>(
    grad: Tensor<B, 2>,
    attended: Attended<B>,
    over: &PackedAttention<B>,
) -> [Tensor<B, 2>; 3] {
    let (tokens, dtype, heads) = (grad.dims()[0], grad.dtype(), over.heads);
    let indices = over.indices(&grad.device());
    let grads = indices.to_first_cells(grad);
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    for ((saved, grad), padded) in attended
        .weights()
        .into_iter()
        .zip(grads)
        .zip(&indices.padded)
    {
        let grad = padded.split(grad, heads.kv, heads.dim);
        let weights = to_f32(saved.weights.clone());
        let of_values = saved.weights.transpose().matmul(grad.clone());
        let of_weights = to_f32(grad.matmul(saved.values.transpose()));
        let along = (of_weights.clone() * weights.clone()).sum_dim(3);
        let of_scores = cast(weights * (of_weights - along) * heads.scale(), dtype);
        let of_queries = of_scores.clone().matmul(saved.keys);
        let of_keys = of_scores.transpose().matmul(saved.queries);
        for (found, part) in found.iter_mut().zip([of_queries, of_keys, of_values]) {
            found.push(padded.join(part));
        }
    }
    let [of_queries, of_keys, of_values] = found;
    let sum = |cells, heads_of: usize| indices.sum_of_cells(cells, [tokens, heads_of * heads.dim]);
    let back = |x: Tensor<B, 2>| {
        let across = x.dims()[1];
        let x = x.reshape([tokens, across / heads.dim, heads.dim]);
        cast(
            over.rotation.apply(x, -1.0).reshape([tokens, across]),
            dtype,
        )
    };
    [
        back(sum(of_queries, heads.queries)),
        back(sum(of_keys, heads.kv)),
        cast(sum(of_values, heads.kv), dtype),
    ]
}
