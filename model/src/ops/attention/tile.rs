//! One tile of queries of a group of heads against all keys that it sees, block by block.
//!
//! Up to six rows (twelve with AVX-512) are computed together up to the last key that one of them
//! sees, by weights of 0 where a row does not see it: NaN or ∞ in a token can reach up to five (eleven)
//! tokens before it. Whoever asks for
//! results refuses a sequence that has such anyway.

use super::super::math::exp;
use super::super::vectors::{LANES, Work};
use super::product::{Left, Seen, product};

/// Queries of a tile, and keys of a block.
pub const TILE: usize = crate::packed_batch::HOST_TILE;

/// The size of a tile.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Heads that share the keys.
    pub group: usize,
    /// Queries of each.
    pub queries: usize,
    /// Keys of the last block that the first query sees beside its own.
    pub before: usize,
    /// Width of a head.
    pub dim: usize,
    /// As it lies in memory: a multiple of [`LANES`].
    pub width: usize,
}

impl Extent {
    /// Numbers of a head's rows.
    pub fn of_rows(&self) -> usize {
        TILE * self.width
    }

    /// Numbers of a block with its columns end to end.
    pub fn of_columns(&self) -> usize {
        TILE * self.dim
    }

    /// How many columns of block `block` of `blocks` query `query` sees.
    #[inline(always)]
    fn seen(&self, query: usize, on_diagonal: bool) -> usize {
        match on_diagonal {
            true => self.before + query + 1,
            false => TILE,
        }
    }
}

/// Rows of a head, or a tile of scores, as a product's left matrix.
#[inline(always)]
fn left(values: &[f32], rows: usize, columns: usize, stride: usize) -> Left<'_> {
    Left {
        values,
        strides: [stride, 1],
        rows,
        columns,
    }
}

/// The transpose of a tile of scores as the same.
#[inline(always)]
fn turned(scores: &[f32], queries: usize) -> Left<'_> {
    Left {
        values: scores,
        strides: [1, TILE],
        rows: TILE,
        columns: queries,
    }
}

/// The forward step of a tile.
pub struct Forward<'a> {
    pub extent: Extent,
    /// Rotated and scaled, head by head `[TILE, width]`.
    pub queries: &'a [f32],
    /// Rotated, block by block `[dim, TILE]`.
    pub keys: &'a [f32],
    /// Block by block `[TILE, width]`.
    pub values: &'a [f32],
    /// One tile's.
    pub scores: &'a mut [f32],
    /// As the queries; zeros before.
    pub mixed: &'a mut [f32],
    /// Head by head `[TILE]`.
    pub log_sums: &'a mut [f32],
}

impl Work for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        let Self { extent, scores, .. } = self;
        let (width, queries) = (extent.width, extent.queries);
        let keys = self.keys.chunks_exact(extent.of_columns());
        let blocks = keys.len();
        // Of each row the largest score so far; `log_sums` has its sum of exponentials meanwhile.
        let mut largest = vec![f32::NEG_INFINITY; extent.group * TILE];
        for (block, (keys, values)) in keys
            .zip(self.values.chunks_exact(extent.of_rows()))
            .enumerate()
        {
            let diagonal = block + 1 == blocks;
            let before = extent.before;
            let [of_result, of_left] = match diagonal {
                true => [Seen::Result { before }, Seen::Left { before }],
                false => [Seen::All; 2],
            };
            for head in 0..extent.group {
                let of_head = head * extent.of_rows()..(head + 1) * extent.of_rows();
                let mixed = &mut self.mixed[of_head.clone()];
                let sums = &mut self.log_sums[head * TILE..][..queries];
                let largest = &mut largest[head * TILE..][..queries];
                let rows = left(&self.queries[of_head], queries, extent.dim, width);
                product::<FMA, WIDE, false>(scores, rows, keys, TILE, of_result);
                for query in 0..queries {
                    let row = row(scores, query);
                    let seen = extent.seen(query, diagonal);
                    row[seen..].fill(f32::NEG_INFINITY);
                    let highest = highest(row, largest[query]);
                    if highest > largest[query] {
                        let change = exp(largest[query] - highest);
                        sums[query] *= change;
                        let mixed = &mut mixed[query * width..][..width];
                        mixed.iter_mut().for_each(|x| *x *= change);
                        largest[query] = highest;
                    }
                    // Where all so far is −∞, later keys may not be.
                    let base = highest.max(f32::MIN);
                    for x in row.iter_mut() {
                        *x = exp(*x - base);
                    }
                    row[seen..].fill(0.0);
                    sums[query] += sum(row);
                }
                let weights = left(scores, queries, TILE, TILE);
                product::<FMA, WIDE, true>(mixed, weights, values, width, of_left);
            }
        }
        for head in 0..extent.group {
            for query in 0..queries {
                let at = head * TILE + query;
                if largest[at] == f32::NEG_INFINITY {
                    self.log_sums[at] = f32::NAN;
                }
                let scale = 1.0 / self.log_sums[at];
                let mixed = &mut self.mixed[at * width..][..width];
                mixed.iter_mut().for_each(|x| *x *= scale);
                self.log_sums[at] = largest[at] + self.log_sums[at].ln();
            }
        }
    }
}

/// The backward step of a tile.
pub struct Backward<'a, Add: FnMut(usize, &[f32], &[f32])> {
    pub extent: Extent,
    /// Rotated and scaled, head by head `[TILE, width]`.
    pub queries: &'a [f32],
    /// The gradient by the mixed values, the same way.
    pub grad: &'a [f32],
    /// Of each row the sum of the gradient's products with the mixed values, and what the forward
    /// step kept: head by head `[TILE]`.
    pub along: &'a [f32],
    pub log_sums: &'a [f32],
    /// Rotated, block by block: `[TILE, width]`.
    pub keys: &'a [f32],
    /// The same and the values `[dim, TILE]`.
    pub columns_of_keys: &'a [f32],
    pub columns_of_values: &'a [f32],
    /// One tile's scores and the gradient by them.
    pub scores: &'a mut [f32],
    pub of_scores: &'a mut [f32],
    /// The gradient by the queries; zeros before.
    pub of_queries: &'a mut [f32],
    /// Gradients by one block's keys and values.
    pub of_keys: &'a mut [f32],
    pub of_values: &'a mut [f32],
    /// Takes these, with the block's number.
    pub add: Add,
}

impl<Add: FnMut(usize, &[f32], &[f32])> Work for Backward<'_, Add> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(mut self) {
        let Self { extent, .. } = self;
        let (width, queries, before) = (extent.width, extent.queries, extent.before);
        let keys = self.keys.chunks_exact(extent.of_rows());
        let blocks = keys.len();
        for (block, keys) in keys.enumerate() {
            let of_block = block * extent.of_columns()..(block + 1) * extent.of_columns();
            let columns_of_keys = &self.columns_of_keys[of_block.clone()];
            let columns_of_values = &self.columns_of_values[of_block];
            let diagonal = block + 1 == blocks;
            let [of_result, of_left, of_turned] = match diagonal {
                true => [
                    Seen::Result { before },
                    Seen::Left { before },
                    Seen::Turned { before },
                ],
                false => [Seen::All; 3],
            };
            self.of_keys.fill(0.0);
            self.of_values.fill(0.0);
            for head in 0..extent.group {
                let of_head = head * extent.of_rows()..(head + 1) * extent.of_rows();
                let rows = &self.queries[of_head.clone()];
                let grad = &self.grad[of_head.clone()];
                let along = &self.along[head * TILE..][..queries];
                let log_sums = &self.log_sums[head * TILE..][..queries];
                let (scores, of_scores) = (&mut *self.scores, &mut *self.of_scores);
                product::<FMA, WIDE, false>(
                    scores,
                    left(rows, queries, extent.dim, width),
                    columns_of_keys,
                    TILE,
                    of_result,
                );
                product::<FMA, WIDE, false>(
                    of_scores,
                    left(grad, queries, extent.dim, width),
                    columns_of_values,
                    TILE,
                    of_result,
                );
                for query in 0..queries {
                    let (weights, of_scores) = (row(scores, query), row(of_scores, query));
                    let seen = extent.seen(query, diagonal);
                    weights[seen..].fill(f32::NEG_INFINITY);
                    for (weight, grad) in weights.iter_mut().zip(of_scores.iter_mut()) {
                        *weight = exp(*weight - log_sums[query]);
                        *grad = *weight * (*grad - along[query]);
                    }
                    weights[seen..].fill(0.0);
                    of_scores[seen..].fill(0.0);
                    if blocks == 1 && seen == 1 {
                        // Whatever the score, the weight is 1; rounding would leave something.
                        of_scores[0] = 0.0;
                    }
                }
                let turned_weights = turned(scores, queries);
                product::<FMA, WIDE, true>(self.of_values, turned_weights, grad, width, of_turned);
                let turned_grad = turned(of_scores, queries);
                product::<FMA, WIDE, true>(self.of_keys, turned_grad, rows, width, of_turned);
                let of_scores = left(of_scores, queries, TILE, TILE);
                let of_queries = &mut self.of_queries[of_head];
                product::<FMA, WIDE, true>(of_queries, of_scores, keys, width, of_left);
            }
            (self.add)(block, self.of_keys, self.of_values);
        }
    }
}

#[inline(always)]
fn row(scores: &mut [f32], query: usize) -> &mut [f32; TILE] {
    let row = scores[query * TILE..].first_chunk_mut();
    row.expect("a tile has all its rows")
}

/// The largest of `row` and `least`, NaN left out.
#[inline(always)]
fn highest(row: &[f32; TILE], least: f32) -> f32 {
    let mut lanes = [least; LANES];
    for part in row.chunks_exact(LANES) {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    lanes.into_iter().fold(least, f32::max)
}

#[inline(always)]
fn sum(row: &[f32; TILE]) -> f32 {
    let mut lanes = [0f32; LANES];
    for part in row.chunks_exact(LANES) {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane += x;
        }
    }
    lanes.iter().sum()
}
