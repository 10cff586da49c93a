//! Causal attention within the sequences of a packed batch.
//!
//! Queries go in tiles, each against the keys up to its own end: nothing above the diagonal but a
//! tile's own corner is computed. Products are the library's; the softmax between them is one kernel
//! over the scores where they lie. The backward step computes the scores anew, from the logarithms
//! of their sums that the forward step kept.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::attention::{Heads, Places};
use super::super::device::MASKED;
use super::launch::{
    RowWork, addresses, elementwise, flat, largest_of_lanes, largest_of_vector, room, sum_of_lanes,
    sum_of_vector, vector,
};
use super::product::product;

/// Queries of a tile, about.
const TILE: usize = 512;

/// Tokens of a padded batch's rows are a multiple of it, so that loads of vectors stay aligned.
const ALIGNED: usize = 16;

/// One padded batch `[rows, longest]`: where its part of the table of integers lies.
///
/// In the table: how many tokens each row has; for each cell one more than its token, 0 where it is
/// padding; the same, 0 also where another cell is the token's first; for each token the first of its
/// cells in the list that follows, and that behind the last.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Part {
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
        let tiles = ((self.longest + TILE / 2) / TILE).max(1);
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
pub(in super::super) fn table(places: &Places) -> (Vec<i64>, Vec<Part>) {
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

/// Where a query lies: tile after tile, in each `[rows, heads, queries of the tile, head_dim]`;
/// `width` vectors a head.
#[cube]
fn query_place(
    row: usize,
    head: usize,
    at: usize,
    rows: usize,
    heads: usize,
    longest: usize,
    tile: usize,
    width: usize,
) -> usize {
    let first = at / tile * tile;
    let queries = min(tile, longest - first);
    (rows * heads * first + (row * heads + head) * queries + at - first) * width
}

/// Lays out the heads of tokens for the products, queries and keys rotated; zeros for padding. A
/// unit takes a vector of the first half of a head and its like of the second.
#[cube(launch, address_type = "dynamic")]
fn lay_out_kernel<T: Float, I: Int, N: Size>(
    q: &Array<Vector<T, N>>,
    k: &Array<Vector<T, N>>,
    v: &Array<Vector<T, N>>,
    grad: &Array<Vector<T, N>>,
    angles: &Array<Vector<f32, N>>,
    table: &Array<I>,
    to_q: &mut Array<Vector<T, N>>,
    to_k: &mut Array<Vector<T, N>>,
    to_v: &mut Array<Vector<T, N>>,
    to_grad: &mut Array<Vector<T, N>>,
    rows: usize,
    longest: usize,
    tile: usize,
    cells: usize,
    owners: usize,
    heads: usize,
    kv: usize,
    half: usize,
    #[comptime] with_grad: bool,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let mut all = heads + 2 * kv;
    if with_grad {
        all += heads;
    }
    let i = ABSOLUTE_POS % half;
    let head = ABSOLUTE_POS / half % all;
    let cell = ABSOLUTE_POS / half / all;
    if cell < rows * longest {
        let row = cell / longest;
        let at = cell % longest;
        let width = 2 * half;
        let token = usize::cast_from(table[cells + cell]);
        let mut a = Vector::<f32, N>::new(0.0f32);
        let mut b = Vector::<f32, N>::new(0.0f32);
        if head < heads + kv {
            let mut other = head;
            if head >= heads {
                other = head - heads;
            }
            if token > 0 {
                let token = token - 1;
                if head < heads {
                    let from = (token * heads + head) * width + i;
                    a = Vector::cast_from(q[from]);
                    b = Vector::cast_from(q[from + half]);
                } else {
                    let from = (token * kv + other) * width + i;
                    a = Vector::cast_from(k[from]);
                    b = Vector::cast_from(k[from + half]);
                }
                let cos = angles[token * width + i];
                let sin = angles[token * width + half + i];
                let turned = a * cos - b * sin;
                b = b * cos + a * sin;
                a = turned;
            }
            if head < heads {
                let to = query_place(row, head, at, rows, heads, longest, tile, width) + i;
                to_q[to] = Vector::cast_from(a);
                to_q[to + half] = Vector::cast_from(b);
            } else {
                let to = ((row * kv + other) * longest + at) * width + i;
                to_k[to] = Vector::cast_from(a);
                to_k[to + half] = Vector::cast_from(b);
            }
        } else if head < heads + 2 * kv {
            let head = head - heads - kv;
            let to = ((row * kv + head) * longest + at) * width + i;
            if token > 0 {
                let from = ((token - 1) * kv + head) * width + i;
                to_v[to] = v[from];
                to_v[to + half] = v[from + half];
            } else {
                to_v[to] = Vector::cast_from(a);
                to_v[to + half] = Vector::cast_from(b);
            }
        } else if with_grad {
            let head = head - heads - 2 * kv;
            let owner = usize::cast_from(table[owners + cell]);
            let to = query_place(row, head, at, rows, heads, longest, tile, width) + i;
            if owner > 0 {
                let from = ((owner - 1) * heads + head) * width + i;
                to_grad[to] = grad[from];
                to_grad[to + half] = grad[from + half];
            } else {
                to_grad[to] = Vector::cast_from(a);
                to_grad[to + half] = Vector::cast_from(b);
            }
        }
    }
}

/// Mixed values of each token's first cell → `[tokens, heads · head_dim]`.
#[cube(launch, address_type = "dynamic")]
fn join_kernel<T: Float, I: Int, N: Size>(
    mixed: &Array<Vector<T, N>>,
    table: &Array<I>,
    out: &mut Array<Vector<T, N>>,
    rows: usize,
    longest: usize,
    tile: usize,
    owners: usize,
    heads: usize,
    width: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS % width;
    let head = ABSOLUTE_POS / width % heads;
    let cell = ABSOLUTE_POS / width / heads;
    if cell < rows * longest {
        let owner = usize::cast_from(table[owners + cell]);
        if owner > 0 {
            let (row, at) = (cell / longest, cell % longest);
            let from = query_place(row, head, at, rows, heads, longest, tile, width) + i;
            out[((owner - 1) * heads + head) * width + i] = mixed[from];
        }
    }
}

/// The gradients of each token's cells summed up and turned back.
#[cube(launch, address_type = "dynamic")]
fn join_backward_kernel<O: Float, I: Int, N: Size>(
    of_q: &Array<Vector<f32, N>>,
    of_k: &Array<Vector<f32, N>>,
    of_v: &Array<Vector<f32, N>>,
    angles: &Array<Vector<f32, N>>,
    table: &Array<I>,
    to_q: &mut Array<Vector<O, N>>,
    to_k: &mut Array<Vector<O, N>>,
    to_v: &mut Array<Vector<O, N>>,
    tokens: usize,
    rows: usize,
    longest: usize,
    tile: usize,
    offsets: usize,
    heads: usize,
    kv: usize,
    half: usize,
    #[comptime] adds: bool,
    #[define(O, I)] _dtypes: [StorageType; 2],
) {
    let all = heads + 2 * kv;
    let i = ABSOLUTE_POS % half;
    let head = ABSOLUTE_POS / half % all;
    let token = ABSOLUTE_POS / half / all;
    if token < tokens {
        let width = 2 * half;
        let first = usize::cast_from(table[offsets + token]);
        let behind = usize::cast_from(table[offsets + token + 1]);
        let list = offsets + tokens + 1;
        let mut a = Vector::<f32, N>::new(0.0f32);
        let mut b = Vector::<f32, N>::new(0.0f32);
        for entry in first..behind {
            let cell = usize::cast_from(table[list + entry]);
            let (row, at) = (cell / longest, cell % longest);
            if head < heads {
                let from = query_place(row, head, at, rows, heads, longest, tile, width) + i;
                a += of_q[from];
                b += of_q[from + half];
            } else if head < heads + kv {
                let from = ((row * kv + head - heads) * longest + at) * width + i;
                a += of_k[from];
                b += of_k[from + half];
            } else {
                let from = ((row * kv + head - heads - kv) * longest + at) * width + i;
                a += of_v[from];
                b += of_v[from + half];
            }
        }
        if head < heads + kv {
            let cos = angles[token * width + i];
            let sin = angles[token * width + half + i];
            let turned = a * cos + b * sin;
            b = b * cos - a * sin;
            a = turned;
        }
        if head < heads {
            let to = (token * heads + head) * width + i;
            if adds {
                a += Vector::cast_from(to_q[to]);
                b += Vector::cast_from(to_q[to + half]);
            }
            to_q[to] = Vector::cast_from(a);
            to_q[to + half] = Vector::cast_from(b);
        } else if head < heads + kv {
            let to = (token * kv + head - heads) * width + i;
            if adds {
                a += Vector::cast_from(to_k[to]);
                b += Vector::cast_from(to_k[to + half]);
            }
            to_k[to] = Vector::cast_from(a);
            to_k[to + half] = Vector::cast_from(b);
        } else {
            let to = (token * kv + head - heads - kv) * width + i;
            if adds {
                a += Vector::cast_from(to_v[to]);
                b += Vector::cast_from(to_v[to + half]);
            }
            to_v[to] = Vector::cast_from(a);
            to_v[to + half] = Vector::cast_from(b);
        }
    }
}

/// Columns `first..` of a vector that are not `visible` hidden.
#[cube]
pub(super) fn hide<N: Size>(
    scores: Vector<f32, N>,
    first: usize,
    visible: usize,
    hidden: f32,
) -> Vector<f32, N> {
    let mut scores = scores;
    #[unroll]
    for j in 0..N::value() {
        if first + j >= visible {
            scores[j] = hidden;
        }
    }
    scores
}

/// Columns that a row of a tile's scores sees: its own position and what stands before it.
#[cube]
fn columns_seen<I: Int>(
    table: &Array<I>,
    lengths: usize,
    row: usize,
    heads: usize,
    queries: usize,
    first: usize,
) -> usize {
    let length = usize::cast_from(table[lengths + row / (heads * queries)]);
    let at = first + row % queries;
    select(at < length, at + 1, 0)
}

/// Softmax of a tile's scores `[rows, heads, queries, columns]` in place; the logarithm of each
/// row's sum of exponentials goes to `log_sums`.
#[cube(launch, address_type = "dynamic")]
fn softmax_kernel<T: Float, I: Int, N: Size>(
    scores: &mut Array<Vector<T, N>>,
    table: &Array<I>,
    log_sums: &mut Array<f32>,
    count: usize,
    width: usize,
    lengths: usize,
    heads: usize,
    queries: usize,
    first: usize,
    log_sums_at: usize,
    scale: f32,
    #[comptime] lanes: usize,
    #[comptime] rows_of_cube: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(lanes * rows_of_cube));
    let row = CUBE_POS * rows_of_cube + UNIT_POS_Y as usize;
    let live = row < count;
    let row = select(live, row, 0);
    let visible = columns_seen::<I>(table, lengths, row, heads, queries, first);
    let start = row * width;
    let used = visible.div_ceil(N::value());
    let mut largest = f32::new(MASKED);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS_X as usize;
    while i < used {
        let scores = Vector::<f32, N>::cast_from(scores[start + i]) * Vector::new(scale);
        let scores = hide::<N>(scores, i * N::value(), visible, f32::new(MASKED));
        let here = largest_of_vector::<N>(scores);
        if here > largest {
            sum *= (largest - here).exp();
            largest = here;
        }
        sum += sum_of_vector::<N>((scores - Vector::new(largest)).exp());
        i += lanes;
    }
    let of_all = largest_of_lanes(largest, &mut shared, lanes);
    let sum = sum_of_lanes(sum * (largest - of_all).exp(), &mut shared, lanes);
    if live {
        if UNIT_POS_X == 0 {
            log_sums[log_sums_at + row] = select(visible > 0, of_all + sum.ln(), 0.0f32);
        }
        let one_over = 1.0f32 / sum;
        let mut i = UNIT_POS_X as usize;
        while i < width {
            let mut weights = Vector::<f32, N>::new(0.0f32);
            if i < used {
                let scores = Vector::<f32, N>::cast_from(scores[start + i]) * Vector::new(scale);
                weights = (scores - Vector::new(of_all)).exp() * Vector::new(one_over);
                weights = hide::<N>(weights, i * N::value(), visible, 0.0f32);
            }
            scores[start + i] = Vector::cast_from(weights);
            i += lanes;
        }
    }
}

/// Scores become weights and the gradients by the weights those by the scores, each in its place.
#[cube(launch, address_type = "dynamic")]
fn softmax_backward_kernel<T: Float, I: Int, N: Size>(
    scores: &mut Array<Vector<T, N>>,
    grad: &mut Array<Vector<T, N>>,
    table: &Array<I>,
    log_sums: &Array<f32>,
    count: usize,
    width: usize,
    lengths: usize,
    heads: usize,
    queries: usize,
    first: usize,
    log_sums_at: usize,
    scale: f32,
    #[comptime] lanes: usize,
    #[comptime] rows_of_cube: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(lanes * rows_of_cube));
    let row = CUBE_POS * rows_of_cube + UNIT_POS_Y as usize;
    let live = row < count;
    let row = select(live, row, 0);
    let visible = columns_seen::<I>(table, lengths, row, heads, queries, first);
    let start = row * width;
    let used = visible.div_ceil(N::value());
    let log_sum = Vector::<f32, N>::new(log_sums[log_sums_at + row]);
    let mut along = 0.0f32;
    let mut i = UNIT_POS_X as usize;
    while i < used {
        let scores = Vector::<f32, N>::cast_from(scores[start + i]) * Vector::new(scale);
        let weights = (scores - log_sum).exp();
        let weights = hide::<N>(weights, i * N::value(), visible, 0.0f32);
        let grad = Vector::<f32, N>::cast_from(grad[start + i]);
        let grad = hide::<N>(grad, i * N::value(), visible, 0.0f32);
        along += sum_of_vector::<N>(weights * grad);
        i += lanes;
    }
    let along = sum_of_lanes(along, &mut shared, lanes);
    if live {
        let mut i = UNIT_POS_X as usize;
        while i < width {
            let mut weights = Vector::<f32, N>::new(0.0f32);
            let mut of_scores = Vector::<f32, N>::new(0.0f32);
            if i < used {
                let scores = Vector::<f32, N>::cast_from(scores[start + i]) * Vector::new(scale);
                weights = hide::<N>((scores - log_sum).exp(), i * N::value(), visible, 0.0f32);
                let grad = Vector::<f32, N>::cast_from(grad[start + i]);
                of_scores = weights * (grad - Vector::new(along)) * Vector::new(scale);
                of_scores = hide::<N>(of_scores, i * N::value(), visible, 0.0f32);
            }
            scores[start + i] = Vector::cast_from(weights);
            grad[start + i] = Vector::cast_from(of_scores);
            i += lanes;
        }
    }
}

/// Adds gradients of the first `part` tokens of each row and head to those of all `longest`.
#[cube(launch, address_type = "dynamic")]
fn add_first_kernel<N: Size>(
    to_k: &mut Array<Vector<f32, N>>,
    to_v: &mut Array<Vector<f32, N>>,
    of_k: &Array<Vector<f32, N>>,
    of_v: &Array<Vector<f32, N>>,
    count: usize,
    part: usize,
    longest: usize,
) {
    if ABSOLUTE_POS < count {
        let to = ABSOLUTE_POS / part * longest + ABSOLUTE_POS % part;
        let (k, v) = (to_k[to], to_v[to]);
        to_k[to] = k + of_k[ABSOLUTE_POS];
        to_v[to] = v + of_v[ABSOLUTE_POS];
    }
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

    fn vector(&self, dtypes: &[DType]) -> usize {
        vector(&self.angles, self.heads.dim / 2, dtypes)
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
        let vector = self.vector(&[DType::F32]);
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
        let [of_keys, of_values] = sums.unwrap_or_else(|| [laid.k, laid.v]);
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
        let vector = self.vector(&[DType::F32]);
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
