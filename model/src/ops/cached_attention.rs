//! Attention of new tokens over cached keys and values: prefill and decoding.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::attention::Heads;
use super::device::mask;
use super::embedding::TokenIds;
use super::math::{softmax_row, softmax_used};
use super::memory::{HostMemory, HostTensor, cast, from_host, map, to_f32};
use super::rotary::Rotation;
use super::vectors::{LANES, Work, add_product, by_vectors, multiply_add};

/// How many of the columns each query sees, from the first.
#[derive(Clone, Debug)]
pub enum Visible {
    /// A prompt's next tokens behind `before` others: query `i` of each head's `new` sees
    /// `before + i + 1`.
    Causal {
        /// Tokens that are cached already.
        before: usize,
        /// Queries of a head.
        new: usize,
    },
    /// One new token for each sequence of a batch, behind so many others.
    Behind(Vec<usize>),
}

/// One new token behind each of some cached sequences.
#[derive(Clone, Debug)]
pub struct CachedStep<B: Backend> {
    /// Of a layer.
    pub heads: Heads,
    /// To the places of the new tokens.
    pub rotation: Rotation<B>,
    /// Cached tokens of each row.
    pub lengths: TokenIds<B>,
}

impl Visible {
    /// The most that any query sees.
    fn most(&self) -> usize {
        match self {
            Self::Causal { before, new } => before + new,
            Self::Behind(lengths) => lengths.iter().max().map_or(0, |longest| longest + 1),
        }
    }

    /// Of the query in row `row`, counted through a batch entry's heads, `each` rows a batch entry.
    fn columns(&self, row: usize, each: usize) -> usize {
        match self {
            Self::Causal { before, new } => before + row % new + 1,
            Self::Behind(lengths) => lengths[row / each] + 1,
        }
    }
}

pub(super) fn forward<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: &Visible,
) -> Tensor<B, 4> {
    forward_by(q, k, v, visible, Tensor::matmul)
}

/// The same with products of another's.
pub(super) fn forward_by<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: &Visible,
    product: impl Fn(Tensor<B, 4>, Tensor<B, 4>) -> Tensor<B, 4>,
) -> Tensor<B, 4> {
    let (dtype, device) = (q.dtype(), q.device());
    let scores = to_f32(product(q, k));
    let [batch, _, rows, columns] = scores.dims();
    // One mask for all heads of a batch entry, or for all of everything.
    let mask: Tensor<B, 4> = match visible {
        Visible::Causal { .. } => {
            let mask = mask(rows, columns, |row| visible.columns(row, rows), &device);
            mask.reshape([1, 1, rows, columns])
        }
        Visible::Behind(_) => {
            let mask = mask(batch, columns, |entry| visible.columns(entry, 1), &device);
            mask.reshape([batch, 1, 1, columns])
        }
    };
    product(cast(softmax(scores + mask, 3), dtype), v)
}

pub(super) fn forward_on_host<B: HostMemory>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    visible: &Visible,
) -> Tensor<B, 4> {
    let scores = q.matmul(k);
    let [_, heads, rows, columns] = scores.dims();
    let weights = map(scores, |scores| {
        softmax_used(scores, columns, |row| visible.columns(row, heads * rows));
    });
    match visible {
        Visible::Causal { .. } => in_blocks(weights, v),
        Visible::Behind(_) => weights.matmul(v),
    }
}

/// Of the first slots of caches, keys `[slots, kv_heads, head_dim, capacity]` and values
/// `[slots, kv_heads, capacity, head_dim]`, the first columns.
pub(super) fn first_columns<B: Backend>(
    [keys, values]: [Tensor<B, 4>; 2],
    slots: usize,
    columns: usize,
) -> [Tensor<B, 4>; 2] {
    [(keys, 3), (values, 2)].map(|(cache, dim)| cache.narrow(0, 0, slots).narrow(dim, 0, columns))
}

/// One new token in each of the first slots of caches, by what each has and no more: of each query
/// the same bits whatever the other slots hold.
pub(super) fn slots_on_host<B: HostMemory>(
    q: Tensor<B, 4>,
    [keys, values]: [Tensor<B, 4>; 2],
    visible: &Visible,
) -> Tensor<B, 4> {
    let (shape, device) = (q.dims(), q.device());
    let [_, kv, group, dim] = shape;
    let capacity = values.dims()[2];
    let [q, keys, values] = [q, keys, values].map(HostTensor::new);
    let (q, keys, values) = (q.values(), keys.values(), values.values());
    let mut mixed = vec![0.0; q.len()];
    let of_head = group * dim;
    // Multiply-adds that are worth a task of their own.
    let least = (1 << 15) / (2 * of_head * visible.most()).max(1);
    mixed
        .par_chunks_exact_mut(of_head)
        .zip(q.par_chunks_exact(of_head))
        .enumerate()
        .with_min_len(least.max(1))
        .for_each(|(head, (mixed, queries))| {
            let of_cache = head * dim * capacity..(head + 1) * dim * capacity;
            by_vectors(OneToken {
                queries,
                keys: &keys[of_cache.clone()],
                values: &values[of_cache],
                capacity,
                dim,
                seen: visible.columns(head / kv, 1),
                mixed,
            });
        });
    from_host(mixed, shape, &device)
}

/// The queries of one new token that share keys and values.
struct OneToken<'a> {
    /// `[group, dim]`.
    queries: &'a [f32],
    /// `[dim, capacity]`, of which the first `seen` columns count.
    keys: &'a [f32],
    /// `[capacity, dim]`.
    values: &'a [f32],
    capacity: usize,
    dim: usize,
    seen: usize,
    /// `[group, dim]`.
    mixed: &'a mut [f32],
}

impl Work for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        let (dim, seen) = (self.dim, self.seen);
        // Whole vectors; what lies behind `seen` weighs nothing.
        let width = seen.next_multiple_of(LANES).min(self.capacity);
        let mut scores = vec![0.0; self.queries.len() / dim * width];
        let keys = Rows {
            values: self.keys,
            stride: self.capacity,
            count: dim,
        };
        products::<FMA, WIDE>(&mut scores, width, self.queries, dim, keys);
        for scores in scores.chunks_exact_mut(width) {
            scores[seen..].fill(f32::NEG_INFINITY);
            softmax_row(scores);
        }
        let values = Rows {
            values: self.values,
            stride: dim,
            count: seen,
        };
        products::<FMA, WIDE>(self.mixed, dim, &scores, width, values);
    }
}

/// Rows of a matrix, a stride apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    stride: usize,
    count: usize,
}

/// `result` `[rows, columns]`: each row of `left`, `stride` apart, by the first `columns` of `right`'s
/// rows. Sums go over these in their order, whichever rows there are.
#[inline(always)]
fn products<const FMA: bool, const WIDE: bool>(
    result: &mut [f32],
    columns: usize,
    left: &[f32],
    stride: usize,
    right: Rows,
) {
    let results = result.chunks_mut(4 * columns);
    for (result, left) in results.zip(left.chunks(4 * stride)) {
        match result.len() / columns {
            4 => product::<FMA, WIDE, 4>(result, columns, left, stride, right),
            3 => product::<FMA, WIDE, 3>(result, columns, left, stride, right),
            2 => product::<FMA, WIDE, 2>(result, columns, left, stride, right),
            _ => product::<FMA, WIDE, 1>(result, columns, left, stride, right),
        }
    }
}

#[inline(always)]
fn product<const FMA: bool, const WIDE: bool, const COUNT: usize>(
    result: &mut [f32],
    columns: usize,
    left: &[f32],
    stride: usize,
    right: Rows,
) {
    let Rows {
        values,
        stride: apart,
        count,
    } = right;
    assert!(left.len() >= COUNT * stride && count <= stride);
    assert!(columns <= apart && values.len() >= count * apart);
    let whole = columns / LANES * LANES;
    for column in (0..whole).step_by(LANES) {
        let mut sums = [[0f32; LANES]; COUNT];
        for at in 0..count {
            // SAFETY: the rows of both are there, as long as their strides.
            let row: &[f32; LANES] = unsafe { &*values.as_ptr().add(at * apart + column).cast() };
            for (number, sums) in sums.iter_mut().enumerate() {
                // SAFETY: as above; WIDE is the caller's.
                unsafe {
                    let factor = *left.get_unchecked(number * stride + at);
                    add_product::<FMA, WIDE>(sums, factor, row);
                }
            }
        }
        for (number, sums) in sums.iter().enumerate() {
            result[number * columns + column..][..LANES].copy_from_slice(sums);
        }
    }
    for column in whole..columns {
        for number in 0..COUNT {
            let factors = left[number * stride..][..count].iter();
            let column_of = values[column..].iter().step_by(apart);
            let sum = factors.zip(column_of).fold(0.0, |sum, (factor, x)| {
                multiply_add::<FMA>(*factor, *x, sum)
            });
            result[number * columns + column] = sum;
        }
    }
}

/// Columns of a prompt that are summed up in one go. The matrix products of CPUs cut longer sums
/// where the shape of the whole product says, and shapes depend on where a prompt is cut.
const BLOCK: usize = 512;

/// Sums of fewer columns are other routines' work.
const LEAST: usize = 4;

/// The columns that a prompt's attention over `used` takes, those behind them zeros, so that its
/// sums are the same wherever the prompt is cut.
pub fn columns_on_host(used: usize) -> usize {
    match used % BLOCK {
        short @ 1..LEAST => used + LEAST - short,
        _ => used,
    }
}

fn in_blocks<B: HostMemory>(weights: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
    let columns = v.dims()[2];
    let block = |start: usize| {
        let count = BLOCK.min(columns - start);
        let weights = weights.clone().narrow(3, start, count);
        weights.matmul(v.clone().narrow(2, start, count))
    };
    let first = block(0);
    let others = (BLOCK..columns).step_by(BLOCK);
    others.fold(first, |sum, start| sum + block(start))
}
