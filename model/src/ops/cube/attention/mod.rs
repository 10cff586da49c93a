//! Causal attention within the sequences of a packed batch.
//!
//! Queries go in tiles, each against the keys up to its own end: nothing above the diagonal but a
//! tile's own corner is computed. Products are the library's; the softmax between them is one kernel
//! over the scores where they lie. The backward step computes the scores anew, from the logarithms
//! of their sums that the forward step kept.

mod kernels;

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{RowWork, addresses, elementwise, flat, room, vector};
use super::product::product;
use crate::ops::attention::{Heads, Places, QUERY_TILE};
use kernels::{
    add_first_kernel, join_backward_kernel, join_kernel, lay_out_kernel, softmax_backward_kernel,
    softmax_kernel,
};

/// Tokens of a padded batch's rows are a multiple of it, so that loads of vectors stay aligned.
const ALIGNED: usize = 16;

/// One padded batch `[rows, longest]`: where its part of the table of integers lies.
///
/// In the table: how many tokens each row has; for each cell one more than its token, 0 where it is
/// padding; the same, 0 also where another cell is the token's first; for each token the first of its
/// cells in the list that follows, and that behind the last.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops) struct Part {
    rows: usize,
    longest: usize,
    lengths: usize,
    cells: usize,
    owners: usize,
    offsets: usize,
}

impl Part {
    /// Tokens of a tile.
    fn tile(&self) -> usize {
        let tiles = ((self.longest + QUERY_TILE / 2) / QUERY_TILE).max(1);
        self.longest.div_ceil(tiles).next_multiple_of(64)
    }

    /// First query and queries of each tile.
    fn tiles(&self) -> Vec<(usize, usize)> {
        let (tile, longest) = (self.tile(), self.longest);
        let firsts = (0..longest).step_by(tile);
        firsts
            .map(|first| (first, tile.min(longest - first)))
            .collect()
    }

    fn cell_count(&self) -> usize {
        self.rows * self.longest
    }
}

/// The table of integers of all padded batches, and their parts of it.
pub(in crate::ops) fn table(places: &Places) -> (Vec<i64>, Vec<Part>) {
    let (mut table, mut parts) = (Vec::new(), Vec::new());
    for (number, padded) in places.padded.iter().enumerate() {
        let (rows, longest) = (padded.lengths.len(), padded.longest);
        let aligned = longest.next_multiple_of(ALIGNED);
        let place = |cell: usize| cell / longest * aligned + cell % longest;
        let lengths = table.len();
        table.extend(padded.lengths.iter().map(|&length| length as i64));
        let cells = table.len();
        table.resize(cells + 2 * rows * aligned, 0);
        let owners = cells + rows * aligned;
        for (cell, token) in padded.tokens.iter().enumerate() {
            let Some(token) = *token else { continue };
            table[cells + place(cell)] = token as i64 + 1;
            if places.cells_of[token].first() == Some(&(number, cell)) {
                table[owners + place(cell)] = token as i64 + 1;
            }
        }
        let offsets = table.len();
        let mut list = Vec::new();
        for of_token in &places.cells_of {
            table.push(list.len() as i64);
            let here = of_token.iter().filter(|(other, _)| *other == number);
            list.extend(here.map(|&(_, cell)| place(cell) as i64));
        }
        table.push(list.len() as i64);
        table.extend(list);
        parts.push(Part {
            rows,
            longest: aligned,
            lengths,
            cells,
            owners,
            offsets,
        });
    }
    (table, parts)
}

/// What both steps need to know.
pub(super) struct Attention<'a, R: CubeRuntime> {
    pub heads: Heads,
    /// Of [`table`].
    pub parts: &'a [Part],
    pub table: CubeTensor<R>,
    /// Cosines, then sines, f32 `[tokens, head_dim]`.
    pub angles: CubeTensor<R>,
}

/// Heads laid out for the products of one padded batch.
struct LaidOut<R: CubeRuntime> {
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    grad: Option<CubeTensor<R>>,
}

/// `x` from its element `first` on, as a tensor of another shape.
fn view<R: CubeRuntime>(x: &CubeTensor<R>, first: usize, shape: [usize; 4]) -> CubeTensor<R> {
    let handle = x
        .handle
        .clone()
        .offset_start((first * x.dtype.size()) as u64);
    CubeTensor::new_contiguous(
        x.client.clone(),
        x.device.clone(),
        Shape::from(shape),
        handle,
        x.dtype,
    )
}

/// The first `count` of the third dimension.
fn first_of<R: CubeRuntime>(x: &CubeTensor<R>, count: usize) -> CubeTensor<R> {
    let mut x = x.clone();
    x.meta.shape_mut()[2] = count;
    x
}

/// The last two dimensions turned.
fn turned<R: CubeRuntime>(mut x: CubeTensor<R>) -> CubeTensor<R> {
    x.meta.swap(2, 3);
    x
}

impl<R: CubeRuntime> Attention<'_, R> {
    /// `[rows, kv_heads, group · queries, …]` of a tile.
    fn tile_shape(&self, part: &Part, queries: usize, last: usize) -> [usize; 4] {
        let heads = self.heads;
        [part.rows, heads.kv, heads.group() * queries, last]
    }

    /// The first element of a tile's queries, and its first log-sum.
    fn tile_at(&self, part: &Part, first: usize) -> usize {
        part.rows * self.heads.queries * first
    }

    /// Elements of a vector of half a head, f32.
    fn vector(&self) -> usize {
        vector(&self.angles, self.heads.dim / 2, &[DType::F32])
    }

    fn lay_out(
        &self,
        part: &Part,
        q: &CubeTensor<R>,
        k: &CubeTensor<R>,
        v: &CubeTensor<R>,
        grad: Option<&CubeTensor<R>>,
    ) -> LaidOut<R> {
        let (heads, dtype) = (self.heads, q.dtype);
        let queries = [part.rows, heads.queries, part.longest, heads.dim];
        let keys = [part.rows, heads.kv, part.longest, heads.dim];
        let to = LaidOut {
            q: room(q, queries, dtype),
            k: room(q, keys, dtype),
            v: room(q, keys, dtype),
            grad: grad.map(|grad| room(grad, queries, dtype)),
        };
        let all = heads.queries * (1 + grad.iter().len()) + 2 * heads.kv;
        let vector = self.vector();
        let half = heads.dim / 2 / vector;
        let (cubes, units) = elementwise(part.cell_count() * all * half);
        lay_out_kernel::launch(
            &q.client,
            cubes,
            units,
            addresses(&[&to.q, q, &self.table]),
            vector,
            q.clone().into_array_arg(),
            k.clone().into_array_arg(),
            v.clone().into_array_arg(),
            grad.unwrap_or(q).clone().into_array_arg(),
            self.angles.clone().into_array_arg(),
            self.table.clone().into_array_arg(),
            to.q.clone().into_array_arg(),
            to.k.clone().into_array_arg(),
            to.v.clone().into_array_arg(),
            to.grad.as_ref().unwrap_or(&to.v).clone().into_array_arg(),
            part.rows,
            part.longest,
            part.tile(),
            part.cells,
            part.owners,
            heads.queries,
            heads.kv,
            half,
            grad.is_some(),
            [dtype.into(), self.table.dtype.into()],
        );
        to
    }

    /// Scores of a tile's queries by the keys up to its end.
    fn scores(
        &self,
        part: &Part,
        queries: &CubeTensor<R>,
        keys: &CubeTensor<R>,
        (first, count): (usize, usize),
    ) -> CubeTensor<R> {
        let dtype = queries.dtype;
        let shape = self.tile_shape(part, count, self.heads.dim);
        let tile = view(queries, self.tile_at(part, first) * self.heads.dim, shape);
        let keys = turned(first_of(keys, first + count));
        let out = room(queries, self.tile_shape(part, count, first + count), dtype);
        product(tile, keys, Some(out), dtype)
    }

    /// Mixed values `[tokens, heads · head_dim]`, and the logarithms of each padded batch.
    pub fn forward(
        &self,
        q: CubeTensor<R>,
        k: CubeTensor<R>,
        v: CubeTensor<R>,
    ) -> (CubeTensor<R>, Vec<CubeTensor<R>>) {
        let (q, k, v) = (flat(q), flat(k), flat(v));
        let (heads, dtype) = (self.heads, q.dtype);
        let dtypes = [dtype.into(), self.table.dtype.into()];
        let out = room(&q, q.meta.shape().clone(), dtype);
        let mut all_log_sums = Vec::new();
        for part in self.parts {
            let laid = self.lay_out(part, &q, &k, &v, None);
            let cells = heads.queries * part.cell_count();
            let log_sums = room(&q, [cells], DType::F32);
            let mixed = room(&q, [cells * heads.dim], dtype);
            for (first, count) in part.tiles() {
                let columns = first + count;
                let scores = self.scores(part, &laid.q, &laid.k, (first, count));
                let rows = part.rows * heads.queries * count;
                let vector = vector(&scores, columns, &[dtype]);
                let work = RowWork::new(columns / vector);
                softmax_kernel::launch(
                    &q.client,
                    work.cubes(rows),
                    work.dim(),
                    addresses(&[&scores, &self.table, &log_sums]),
                    vector,
                    scores.clone().into_array_arg(),
                    self.table.clone().into_array_arg(),
                    log_sums.clone().into_array_arg(),
                    rows,
                    columns / vector,
                    part.lengths,
                    heads.queries,
                    count,
                    first,
                    self.tile_at(part, first),
                    heads.scale() as f32,
                    work.lanes,
                    work.rows,
                    dtypes,
                );
                let at = self.tile_at(part, first) * heads.dim;
                let to = view(&mixed, at, self.tile_shape(part, count, heads.dim));
                product(scores, first_of(&laid.v, columns), Some(to), dtype);
            }
            let vector = vector(&mixed, heads.dim, &[dtype]);
            let width = heads.dim / vector;
            let (cubes, units) = elementwise(cells * width);
            join_kernel::launch(
                &q.client,
                cubes,
                units,
                addresses(&[&mixed, &self.table, &out]),
                vector,
                mixed.into_array_arg(),
                self.table.clone().into_array_arg(),
                out.clone().into_array_arg(),
                part.rows,
                part.longest,
                part.tile(),
                part.owners,
                heads.queries,
                width,
                dtypes,
            );
            all_log_sums.push(log_sums);
        }
        (out, all_log_sums)
    }

    /// The gradients by queries, keys and values, given that by the mixed values.
    pub fn backward(
        &self,
        grad: CubeTensor<R>,
        [q, k, v]: [CubeTensor<R>; 3],
        log_sums: Vec<CubeTensor<R>>,
    ) -> [CubeTensor<R>; 3] {
        let (grad, q, k, v) = (flat(grad), flat(q), flat(k), flat(v));
        // Sums over several padded batches are taken in f32.
        let dtype = match self.parts {
            [_] => q.dtype,
            _ => DType::F32,
        };
        let found = [&q, &k, &v].map(|x| room(x, x.meta.shape().clone(), dtype));
        for (number, (part, log_sums)) in self.parts.iter().zip(log_sums).enumerate() {
            let laid = self.lay_out(part, &q, &k, &v, Some(&grad));
            let of_heads = self.backward_part(part, laid, log_sums);
            self.join_backward(part, of_heads, &found, number > 0);
        }
        found.map(|found| burn_cubecl::kernel::cast(found, q.dtype))
    }

    /// The same of one padded batch's heads, f32.
    fn backward_part(
        &self,
        part: &Part,
        laid: LaidOut<R>,
        log_sums: CubeTensor<R>,
    ) -> [CubeTensor<R>; 3] {
        let (heads, dtype) = (self.heads, laid.q.dtype);
        let dim = heads.dim;
        let grad = laid.grad.as_ref().unwrap_or(&laid.q);
        let of_queries = room(&laid.q, laid.q.meta.shape().clone(), DType::F32);
        let mut sums: Option<[CubeTensor<R>; 2]> = None;
        // The last tile sees all keys.
        for (first, count) in part.tiles().into_iter().rev() {
            let columns = first + count;
            let scores = self.scores(part, &laid.q, &laid.k, (first, count));
            let of_weights = self.scores(part, grad, &laid.v, (first, count));
            let rows = part.rows * heads.queries * count;
            let vector = vector(&scores, columns, &[dtype]);
            let work = RowWork::new(columns / vector);
            softmax_backward_kernel::launch(
                &scores.client,
                work.cubes(rows),
                work.dim(),
                addresses(&[&scores, &self.table, &log_sums]),
                vector,
                scores.clone().into_array_arg(),
                of_weights.clone().into_array_arg(),
                self.table.clone().into_array_arg(),
                log_sums.clone().into_array_arg(),
                rows,
                columns / vector,
                part.lengths,
                heads.queries,
                count,
                first,
                self.tile_at(part, first),
                heads.scale() as f32,
                work.lanes,
                work.rows,
                [dtype.into(), self.table.dtype.into()],
            );
            let (weights, of_scores) = (scores, of_weights);
            let at = self.tile_at(part, first) * dim;
            let shape = self.tile_shape(part, count, dim);
            let keys = first_of(&laid.k, columns);
            let to = view(&of_queries, at, shape);
            product(of_scores.clone(), keys, Some(to), DType::F32);
            let queries = view(&laid.q, at, shape);
            let of_keys = product(turned(of_scores), queries, None, DType::F32);
            let of_values = product(turned(weights), view(grad, at, shape), None, DType::F32);
            match &sums {
                None => sums = Some([flat(of_keys), flat(of_values)]),
                Some(sums) => self.add_first(part, columns, sums, [of_keys, of_values]),
            }
        }
        let [of_keys, of_values] = sums.unwrap_or([laid.k, laid.v]);
        [of_queries, of_keys, of_values]
    }

    fn add_first(
        &self,
        part: &Part,
        columns: usize,
        [to_k, to_v]: &[CubeTensor<R>; 2],
        found: [CubeTensor<R>; 2],
    ) {
        let [of_k, of_v] = found.map(flat);
        let vector = vector(to_k, self.heads.dim, &[DType::F32]);
        let width = self.heads.dim / vector;
        let count = part.rows * self.heads.kv * columns * width;
        let (cubes, units) = elementwise(count);
        add_first_kernel::launch(
            &to_k.client,
            cubes,
            units,
            addresses(&[to_k]),
            vector,
            to_k.clone().into_array_arg(),
            to_v.clone().into_array_arg(),
            of_k.into_array_arg(),
            of_v.into_array_arg(),
            count,
            columns * width,
            part.longest * width,
        );
    }

    fn join_backward(
        &self,
        part: &Part,
        of_heads: [CubeTensor<R>; 3],
        to: &[CubeTensor<R>; 3],
        adds: bool,
    ) {
        let heads = self.heads;
        let [of_q, of_k, of_v] = of_heads;
        let [to_q, to_k, to_v] = to;
        let tokens = to_q.meta.shape()[0];
        let vector = self.vector();
        let half = heads.dim / 2 / vector;
        let (cubes, units) = elementwise(tokens * (heads.queries + 2 * heads.kv) * half);
        join_backward_kernel::launch(
            &to_q.client,
            cubes,
            units,
            addresses(&[&of_q, to_q, &self.table]),
            vector,
            of_q.into_array_arg(),
            of_k.into_array_arg(),
            of_v.into_array_arg(),
            self.angles.clone().into_array_arg(),
            self.table.clone().into_array_arg(),
            to_q.clone().into_array_arg(),
            to_k.clone().into_array_arg(),
            to_v.clone().into_array_arg(),
            tokens,
            part.rows,
            part.longest,
            part.tile(),
            part.offsets,
            heads.queries,
            heads.kv,
            half,
            adds,
            [to_q.dtype.into(), self.table.dtype.into()],
        );
    }
}
