//! The kernels between attention's products.

use cubecl::prelude::*;

use super::super::launch::{largest_of_lanes, largest_of_vector, sum_of_lanes, sum_of_vector};
use crate::ops::device::MASKED;

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
pub(super) fn lay_out_kernel<T: Float, I: Int, N: Size>(
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
pub(super) fn join_kernel<T: Float, I: Int, N: Size>(
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
pub(super) fn join_backward_kernel<O: Float, I: Int, N: Size>(
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
fn hide<N: Size>(
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
pub(super) fn softmax_kernel<T: Float, I: Int, N: Size>(
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
pub(super) fn softmax_backward_kernel<T: Float, I: Int, N: Size>(
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
pub(super) fn add_first_kernel<N: Size>(
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
