//! One new token behind each of some cached sequences.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::attention::Heads;
use super::super::device::MASKED;
use super::launch::{addresses, cubes, elementwise, flat, room, sum_of_vector, vector};

/// Units of a cube, and columns that it reads at a time.
const UNITS: usize = 128;

/// Queries turned and scaled; keys, turned, and values put behind what is cached. A unit takes a
/// vector of the first half of a head and its like of the second.
#[cube(launch, address_type = "dynamic")]
fn append_kernel<T: Float, I: Int, N: Size>(
    q: &Array<Vector<T, N>>,
    k: &Array<Vector<T, N>>,
    v: &Array<Vector<T, N>>,
    angles: &Array<Vector<f32, N>>,
    lengths: &Array<I>,
    to_q: &mut Array<Vector<T, N>>,
    keys: &mut Array<Vector<T, N>>,
    values: &mut Array<Vector<T, N>>,
    rows: usize,
    capacity: usize,
    heads: usize,
    kv: usize,
    half: usize,
    scale: f32,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let all = heads + 2 * kv;
    let i = ABSOLUTE_POS % half;
    let head = ABSOLUTE_POS / half % all;
    let row = ABSOLUTE_POS / half / all;
    if row < rows {
        let width = 2 * half;
        let length = usize::cast_from(lengths[row]);
        let cos = angles[row * width + i];
        let sin = angles[row * width + half + i];
        if head < heads {
            let at = (row * heads + head) * width + i;
            let a = Vector::<f32, N>::cast_from(q[at]);
            let b = Vector::<f32, N>::cast_from(q[at + half]);
            let scale = Vector::new(scale);
            to_q[at] = Vector::cast_from((a * cos - b * sin) * scale);
            to_q[at + half] = Vector::cast_from((b * cos + a * sin) * scale);
        } else if head < heads + kv {
            let head = head - heads;
            let at = (row * kv + head) * width + i;
            let to = ((row * kv + head) * capacity + length) * width + i;
            let a = Vector::<f32, N>::cast_from(k[at]);
            let b = Vector::<f32, N>::cast_from(k[at + half]);
            keys[to] = Vector::cast_from(a * cos - b * sin);
            keys[to + half] = Vector::cast_from(b * cos + a * sin);
        } else {
            let head = head - heads - kv;
            let at = (row * kv + head) * width + i;
            let to = ((row * kv + head) * capacity + length) * width + i;
            values[to] = v[at];
            values[to + half] = v[at + half];
        }
    }
}

/// A cube takes the `group` queries of a row that share keys and values: `width` vectors each, over
/// `length + 1` columns of the cache. Softmax goes along: what was summed up before is scaled down
/// when a larger score comes.
#[cube(launch, address_type = "dynamic")]
fn attend_kernel<T: Float, I: Int, N: Size>(
    q: &Array<Vector<T, N>>,
    keys: &Array<Vector<T, N>>,
    values: &Array<Vector<T, N>>,
    lengths: &Array<I>,
    out: &mut Array<Vector<T, N>>,
    count: usize,
    capacity: usize,
    kv: usize,
    #[comptime] group: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let unit = UNIT_POS as usize;
    let mut queries = SharedMemory::<Vector<f32, N>>::new(comptime!(group * width));
    let mut scores = SharedMemory::<f32>::new(comptime!(group * units));
    let mut partial = SharedMemory::<f32>::new(units);
    let mut mixed = SharedMemory::<Vector<f32, N>>::new(comptime!(units * group));
    // Units that share the columns of a query's scores.
    let sharers = comptime!(units / group);
    // Units that share the columns of a vector of values.
    let readers = comptime!(units / width);
    if CUBE_POS < count {
        let row = CUBE_POS / kv;
        let columns = usize::cast_from(lengths[row]) + 1;
        let cache = CUBE_POS * capacity * width;
        let first = CUBE_POS * group * width;
        let mut i = unit;
        while i < group * width {
            queries[i] = Vector::cast_from(q[first + i]);
            i += units;
        }
        let mut sums = Array::<Vector<f32, N>>::new(group);
        let mut totals = Array::<f32>::new(group);
        let mut largest = Array::<f32>::new(group);
        #[unroll]
        for g in 0..group {
            sums[g] = Vector::new(0.0f32);
            totals[g] = 0.0f32;
            largest[g] = f32::new(MASKED);
        }
        sync_cube();
        let mut start = 0usize.runtime();
        while start < columns {
            let column = start + unit;
            let live = column < columns;
            let place = cache + select(live, column, 0) * width;
            let mut products = Array::<f32>::new(group);
            #[unroll]
            for g in 0..group {
                products[g] = 0.0f32;
            }
            for i in 0..width {
                let key = Vector::<f32, N>::cast_from(keys[place + i]);
                #[unroll]
                for g in 0..group {
                    products[g] += sum_of_vector::<N>(queries[g * width + i] * key);
                }
            }
            #[unroll]
            for g in 0..group {
                scores[g * units + unit] = select(live, products[g], f32::new(MASKED));
            }
            sync_cube();
            // The largest score of each query, by shares.
            let query = unit / sharers;
            let share = unit % sharers;
            if query < group {
                let mut here = f32::new(MASKED);
                let mut i = share;
                while i < units {
                    let score = scores[query * units + i];
                    if score > here {
                        here = score;
                    }
                    i += sharers;
                }
                partial[unit] = here;
            }
            sync_cube();
            #[unroll]
            for g in 0..group {
                let mut here = largest[g];
                for i in 0..sharers {
                    let other = partial[g * sharers + i];
                    if other > here {
                        here = other;
                    }
                }
                let kept = (largest[g] - here).exp();
                sums[g] = sums[g] * Vector::new(kept);
                totals[g] = totals[g] * kept;
                largest[g] = here;
                let weight = (scores[g * units + unit] - here).exp();
                let weight = select(live, weight, 0.0f32);
                totals[g] += weight;
                // Each unit reads and writes its own column only.
                scores[g * units + unit] = weight;
            }
            sync_cube();
            let reader = unit / width;
            let i = unit % width;
            if reader < readers {
                let behind = min(columns - start, units);
                let mut c = reader;
                while c < behind {
                    let value = values[cache + (start + c) * width + i];
                    let value = Vector::<f32, N>::cast_from(value);
                    #[unroll]
                    for g in 0..group {
                        sums[g] = sums[g] + value * Vector::new(scores[g * units + c]);
                    }
                    c += readers;
                }
            }
            sync_cube();
            start += units;
        }
        #[unroll]
        for g in 0..group {
            mixed[g * units + unit] = sums[g];
            scores[g * units + unit] = totals[g];
        }
        sync_cube();
        let mut i = unit;
        while i < group * width {
            let g = i / width;
            let mut total = 0.0f32;
            for u in 0..units {
                total += scores[g * units + u];
            }
            let mut sum = Vector::<f32, N>::new(0.0f32);
            for reader in 0..readers {
                sum += mixed[g * units + reader * width + i % width];
            }
            out[first + i] = Vector::cast_from(sum * Vector::new(1.0f32 / total));
            i += units;
        }
    }
}

/// Whether the kernel takes such heads.
pub(super) fn takes(heads: Heads) -> bool {
    // What a cube's units share fits into the 32 KiB that all devices have.
    heads.dim.is_multiple_of(2) && heads.group() <= 8 && heads.dim <= 256
}

/// Queries `[rows, heads · head_dim]`, keys and values `[rows, kv_heads · head_dim]` of one new token
/// a row, not turned yet; row `i` has `lengths[i]` tokens in the caches
/// `[slots, kv_heads, capacity, head_dim]`, which get one more → mixed values as the queries.
///
/// Writes into the caches where they lie: nobody else may have them.
pub(super) fn append_and_attend<R: CubeRuntime>(
    [q, k, v]: [CubeTensor<R>; 3],
    angles: CubeTensor<R>,
    lengths: CubeTensor<R>,
    [keys, values]: [&CubeTensor<R>; 2],
    heads: Heads,
) -> CubeTensor<R> {
    let (q, k, v) = (flat(q), flat(k), flat(v));
    let (rows, dtype) = (q.meta.shape()[0], q.dtype);
    let capacity = keys.meta.shape()[2];
    let dtypes = [dtype.into(), lengths.dtype.into()];
    let to_q = room(&q, q.meta.shape().clone(), dtype);
    let out = room(&q, q.meta.shape().clone(), dtype);
    let (client, half) = (q.client.clone(), heads.dim / 2);
    let size = vector(&q, half, &[DType::F32]);
    let work = rows * (heads.queries + 2 * heads.kv) * half / size;
    let (count, units) = elementwise(work);
    append_kernel::launch(
        &client,
        count,
        units,
        addresses(&[&q, keys]),
        size,
        q.into_array_arg(),
        k.into_array_arg(),
        v.into_array_arg(),
        angles.into_array_arg(),
        lengths.clone().into_array_arg(),
        to_q.clone().into_array_arg(),
        keys.clone().into_array_arg(),
        values.clone().into_array_arg(),
        rows,
        capacity,
        heads.queries,
        heads.kv,
        half / size,
        heads.scale() as f32,
        dtypes,
    );
    // Vectors of f32 lie in the memory that a cube's units share.
    let size = vector(&to_q, heads.dim, &[DType::F32]);
    attend_kernel::launch(
        &client,
        cubes(rows * heads.kv),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&to_q, keys]),
        size,
        to_q.into_array_arg(),
        keys.clone().into_array_arg(),
        values.clone().into_array_arg(),
        lengths.into_array_arg(),
        out.clone().into_array_arg(),
        rows * heads.kv,
        capacity,
        heads.kv,
        heads.group(),
        heads.dim / size,
        UNITS,
        dtypes,
    );
    out
}

/// Rows of prompts to the start of slots, zeros behind them; `width` vectors a head.
#[cube(launch, address_type = "dynamic")]
fn fill_slots_kernel<T: Float, I: Int, N: Size>(
    k: &Array<Vector<T, N>>,
    v: &Array<Vector<T, N>>,
    fills: &Array<I>,
    keys: &mut Array<Vector<T, N>>,
    values: &mut Array<Vector<T, N>>,
    count: usize,
    capacity: usize,
    kv: usize,
    width: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let i = ABSOLUTE_POS % width;
    let place = ABSOLUTE_POS / width % capacity;
    let head = ABSOLUTE_POS / width / capacity % kv;
    let fill = ABSOLUTE_POS / width / capacity / kv;
    if fill < count {
        let slot = usize::cast_from(fills[3 * fill]);
        let first = usize::cast_from(fills[3 * fill + 1]);
        let tokens = usize::cast_from(fills[3 * fill + 2]);
        let mut key = Vector::<T, N>::cast_from(Vector::<f32, N>::new(0.0f32));
        let mut value = key;
        if place < tokens {
            let from = ((first + place) * kv + head) * width + i;
            key = k[from];
            value = v[from];
        }
        let to = ((slot * kv + head) * capacity + place) * width + i;
        keys[to] = key;
        values[to] = value;
    }
}

/// Puts rows of keys and values `[tokens, kv_heads, head_dim]` at the start of slots of caches
/// `[slots, kv_heads, capacity, head_dim]`, where they lie: slot, first row and rows of each.
pub(super) fn fill_slots<R: CubeRuntime>(
    [keys, values]: [&CubeTensor<R>; 2],
    [k, v]: [CubeTensor<R>; 2],
    fills: CubeTensor<R>,
) {
    let (k, v) = (flat(k), flat(v));
    let shape = keys.meta.shape();
    let [kv, capacity, dim] = [shape[1], shape[2], shape[3]];
    let count = fills.meta.shape()[0] / 3;
    let size = vector(keys, dim, &[keys.dtype]);
    let (cubes, units) = elementwise(count * kv * capacity * dim / size);
    fill_slots_kernel::launch(
        &keys.client,
        cubes,
        units,
        addresses(&[keys, &k]),
        size,
        k.into_array_arg(),
        v.into_array_arg(),
        fills.clone().into_array_arg(),
        keys.clone().into_array_arg(),
        values.clone().into_array_arg(),
        count,
        capacity,
        kv,
        dim / size,
        [keys.dtype.into(), fills.dtype.into()],
    );
}

/// One slot's first tokens to another, zeros behind them.
#[cube(launch, address_type = "dynamic")]
fn copy_slot_kernel<T: Float, N: Size>(
    keys: &mut Array<Vector<T, N>>,
    values: &mut Array<Vector<T, N>>,
    from: usize,
    to: usize,
    count: usize,
    used: usize,
    row: usize,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count {
        let mut key = Vector::<T, N>::cast_from(Vector::<f32, N>::new(0.0f32));
        let mut value = key;
        if ABSOLUTE_POS % row < used {
            key = keys[from * count + ABSOLUTE_POS];
            value = values[from * count + ABSOLUTE_POS];
        }
        keys[to * count + ABSOLUTE_POS] = key;
        values[to * count + ABSOLUTE_POS] = value;
    }
}

/// Copies the first `tokens` of slot `from` to slot `to`, zeros behind them, in caches
/// `[slots, kv_heads, capacity, head_dim]`, where they lie.
pub(super) fn copy_slot<R: CubeRuntime>(
    [keys, values]: [&CubeTensor<R>; 2],
    from: usize,
    to: usize,
    tokens: usize,
) {
    let shape = keys.meta.shape();
    let [kv, capacity, dim] = [shape[1], shape[2], shape[3]];
    let size = vector(keys, dim, &[keys.dtype]);
    let count = kv * capacity * dim / size;
    let (cubes, units) = elementwise(count);
    copy_slot_kernel::launch(
        &keys.client,
        cubes,
        units,
        addresses(&[keys]),
        size,
        keys.clone().into_array_arg(),
        values.clone().into_array_arg(),
        from,
        to,
        count,
        tokens * dim / size,
        capacity * dim / size,
        keys.dtype.into(),
    );
}
