//! RMSNorm: each row by some units, the gradient by the weight in two steps.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{RowWork, addresses, cubes, flat, room, sum_of_lanes, sum_of_vector, vector};

#[cube]
fn write_if<T: Float, N: Size>(
    live: bool,
    to: &mut Array<Vector<T, N>>,
    at: usize,
    value: Vector<T, N>,
) {
    if live {
        to[at] = value;
    }
}

/// The norm of `x`, or of `x + residual`, which is kept in `sum` then.
#[cube(launch, address_type = "dynamic")]
fn rms_norm_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    residual: &ComptimeOption<Array<Vector<T, N>>>,
    weight: &Array<Vector<T, N>>,
    sum: &mut ComptimeOption<Array<Vector<T, N>>>,
    out: &mut Array<Vector<T, N>>,
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] lanes: usize,
    #[comptime] rows_of_cube: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(lanes * rows_of_cube));
    let row = CUBE_POS * rows_of_cube + UNIT_POS_Y as usize;
    let live = row < rows;
    let start = select(live, row, 0) * width;
    let mut squares = 0.0f32;
    let mut i = UNIT_POS_X as usize;
    while i < width {
        let own = x[start + i];
        #[comptime]
        let added = match residual {
            ComptimeOption::Some(residual) => {
                let other = Vector::<f32, N>::cast_from(residual[start + i]);
                Vector::cast_from(Vector::<f32, N>::cast_from(own) + other)
            }
            ComptimeOption::None => own,
        };
        #[comptime]
        if let ComptimeOption::Some(sum) = sum {
            write_if(live, sum, start + i, added);
        }
        let x = Vector::<f32, N>::cast_from(added);
        squares += sum_of_vector::<N>(x * x);
        i += lanes;
    }
    let squares = sum_of_lanes(squares, &mut shared, lanes);
    let mean = squares / f32::cast_from(width * N::value());
    let scale = 1.0f32 / (mean + eps).sqrt();
    if live {
        let mut i = UNIT_POS_X as usize;
        while i < width {
            // A unit reads what it has written itself.
            #[comptime]
            let x = match sum {
                ComptimeOption::Some(sum) => sum[start + i],
                ComptimeOption::None => x[start + i],
            };
            let normed = Vector::<f32, N>::cast_from(x) * Vector::new(scale);
            // Rounded before it is scaled: the order of transformers.
            let normed = Vector::<f32, N>::cast_from(Vector::<T, N>::cast_from(normed));
            let scaled = normed * Vector::<f32, N>::cast_from(weight[i]);
            out[start + i] = Vector::cast_from(scaled);
            i += lanes;
        }
    }
}

/// `[rows, width]`, `[width]` → `[rows, width]`.
pub(super) fn rms_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f64,
) -> CubeTensor<R> {
    launch(flat(x), None, weight, eps)
}

/// `x + residual` and its norm, both `[rows, width]`.
pub(super) fn residual_rms_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    residual: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f64,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let x = flat(x);
    let sum = room(&x, x.meta.shape().clone(), x.dtype);
    let out = launch(x, Some((flat(residual), sum.clone())), weight, eps);
    (sum, out)
}

/// `added` is a residual and room for the sum.
fn launch<R: CubeRuntime>(
    x: CubeTensor<R>,
    added: Option<(CubeTensor<R>, CubeTensor<R>)>,
    weight: CubeTensor<R>,
    eps: f64,
) -> CubeTensor<R> {
    let weight = flat(weight);
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    let dtype = x.dtype;
    let out = room(&x, [rows, width], dtype);
    let vector = vector(&x, width, &[dtype]);
    let work = RowWork::new(width / vector);
    let (residual, sum) = added.unzip();
    rms_norm_kernel::launch(
        &out.client,
        work.cubes(rows),
        work.dim(),
        addresses(&[&x, &weight]),
        vector,
        x.into_array_arg(),
        residual.map(CubeTensor::into_array_arg).into(),
        weight.into_array_arg(),
        sum.map(CubeTensor::into_array_arg).into(),
        out.clone().into_array_arg(),
        rows,
        width / vector,
        eps as f32,
        work.lanes,
        work.rows,
        dtype.into(),
    );
    out
}

/// A cube takes `block` rows, one after the other, and adds up what they give to the weight.
#[cube(launch, address_type = "dynamic")]
fn rms_norm_backward_kernel<T: Float, N: Size>(
    grad: &Array<Vector<T, N>>,
    x: &Array<Vector<T, N>>,
    weight: &Array<Vector<T, N>>,
    more: &ComptimeOption<Array<Vector<T, N>>>,
    of_x: &mut Array<Vector<T, N>>,
    of_weight: &mut Array<Vector<f32, N>>,
    rows: usize,
    width: usize,
    block: usize,
    eps: f32,
    #[comptime] lanes: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(lanes);
    let sums = CUBE_POS * width;
    let count = f32::cast_from(width * N::value());
    if CUBE_POS * block < rows {
        let behind = min(CUBE_POS * block + block, rows);
        for row in CUBE_POS * block..behind {
            let start = row * width;
            let mut squares = 0.0f32;
            let mut along = 0.0f32;
            let mut i = UNIT_POS_X as usize;
            while i < width {
                let x = Vector::<f32, N>::cast_from(x[start + i]);
                let grad = Vector::<f32, N>::cast_from(grad[start + i]);
                squares += sum_of_vector::<N>(x * x);
                let weight = Vector::<f32, N>::cast_from(weight[i]);
                along += sum_of_vector::<N>(grad * weight * x);
                i += lanes;
            }
            let squares = sum_of_lanes(squares, &mut shared, lanes);
            let along = sum_of_lanes(along, &mut shared, lanes);
            let scale = 1.0f32 / (squares / count + eps).sqrt();
            let along = along / count * scale * scale;
            let mut i = UNIT_POS_X as usize;
            while i < width {
                let x = Vector::<f32, N>::cast_from(x[start + i]);
                let grad = Vector::<f32, N>::cast_from(grad[start + i]);
                let weight = Vector::<f32, N>::cast_from(weight[i]);
                let found = (grad * weight - x * Vector::new(along)) * Vector::new(scale);
                #[comptime]
                let found = match more {
                    ComptimeOption::Some(more) => {
                        found + Vector::<f32, N>::cast_from(more[start + i])
                    }
                    ComptimeOption::None => found,
                };
                of_x[start + i] = Vector::cast_from(found);
                let next = grad * x * Vector::new(scale);
                if row == CUBE_POS * block {
                    of_weight[sums + i] = next;
                } else {
                    let sum = of_weight[sums + i];
                    of_weight[sums + i] = sum + next;
                }
                i += lanes;
            }
        }
    }
}

/// Columns of `[rows, width]` summed up: units along y share a column.
#[cube(launch, address_type = "dynamic")]
fn sum_rows_kernel<N: Size>(
    parts: &Array<Vector<f32, N>>,
    out: &mut Array<Vector<f32, N>>,
    rows: usize,
    width: usize,
    #[comptime] columns: usize,
    #[comptime] sharers: usize,
) {
    let mut shared = SharedMemory::<Vector<f32, N>>::new(comptime!(columns * sharers));
    let column = CUBE_POS * columns + UNIT_POS_X as usize;
    let at = UNIT_POS_Y as usize * columns + UNIT_POS_X as usize;
    let mut sum = Vector::<f32, N>::new(0.0f32);
    if column < width {
        let mut row = UNIT_POS_Y as usize;
        while row < rows {
            sum += parts[row * width + column];
            row += sharers;
        }
    }
    shared[at] = sum;
    sync_cube();
    if UNIT_POS_Y == 0 && column < width {
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for part in 0..sharers {
            sum += shared[part * columns + UNIT_POS_X as usize];
        }
        out[column] = sum;
    }
}

/// Rows whose gradients by the weight one cube adds up: enough cubes for any card.
fn rows_of_a_sum(rows: usize) -> usize {
    rows.div_ceil(256).max(4)
}

/// The gradients by input `[rows, width]`, to which `more` is added, and weight f32 `[width]`.
pub(super) fn rms_norm_backward<R: CubeRuntime>(
    grad: CubeTensor<R>,
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f64,
    more: Option<CubeTensor<R>>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let (grad, x, weight, more) = (flat(grad), flat(x), flat(weight), more.map(flat));
    let [rows, width] = [x.meta.shape()[0], x.meta.shape()[1]];
    let (dtype, client) = (x.dtype, x.client.clone());
    let block = rows_of_a_sum(rows);
    let blocks = rows.div_ceil(block);
    let of_x = room(&x, [rows, width], dtype);
    let parts = room(&x, [blocks, width], DType::F32);
    let of_weight = room(&x, [width], DType::F32);
    let vector = vector(&x, width, &[DType::F32]);
    let work = RowWork::alone(width / vector);
    rms_norm_backward_kernel::launch(
        &client,
        cubes(blocks),
        work.dim(),
        addresses(&[&x, &parts]),
        vector,
        grad.into_array_arg(),
        x.into_array_arg(),
        weight.into_array_arg(),
        more.map(CubeTensor::into_array_arg).into(),
        of_x.clone().into_array_arg(),
        parts.clone().into_array_arg(),
        rows,
        width / vector,
        block,
        eps as f32,
        work.lanes,
        dtype.into(),
    );
    let (columns, sharers) = (32, 8);
    sum_rows_kernel::launch(
        &client,
        cubes((width / vector).div_ceil(columns)),
        CubeDim::new_2d(columns as u32, sharers as u32),
        addresses(&[&parts]),
        vector,
        parts.into_array_arg(),
        of_weight.clone().into_array_arg(),
        blocks,
        width / vector,
        columns,
        sharers,
    );
    (of_x, of_weight)
}
