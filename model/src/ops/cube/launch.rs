//! What the kernels have in common: buffers, how work is divided, and sums over a cube's units.
//!
//! Kernels take flat buffers and their shapes as scalars: shapes and strides of tensors would be a
//! copy to the device for each launch.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// Cubes along the first dimension: more are a device's limit for some.
const CUBES: usize = 65_535;

/// A tensor whose elements lie end to end, in their order.
pub(super) fn flat<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(x)
}

/// Room for a tensor on the device of `like`; its values are whatever was there.
pub(super) fn room<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// Elements of a vector: as many as a load takes of the widest of `dtypes` and as divide `width`.
pub(super) fn vector<R: CubeRuntime>(on: &CubeTensor<R>, width: usize, dtypes: &[DType]) -> usize {
    let size = dtypes.iter().map(|dtype| dtype.size()).max().unwrap_or(4);
    let mut sizes = on.client.io_optimized_vector_sizes(size);
    sizes.find(|size| width.is_multiple_of(*size)).unwrap_or(1)
}

/// The integers that index buffers of all of these.
pub(super) fn addresses<R: CubeRuntime>(buffers: &[&CubeTensor<R>]) -> AddressType {
    let needed = buffers.iter().map(|buffer| buffer.required_address_type());
    needed.max().unwrap_or_default()
}

/// So many cubes, in two dimensions where they are many. Kernels leave those above alone.
pub(super) fn cubes(count: usize) -> CubeCount {
    let first = count.clamp(1, CUBES);
    let second = count.div_ceil(first).max(1);
    CubeCount::Static(first as u32, second as u32, 1)
}

/// Units for `count` pieces of work that have nothing to do with each other.
pub(super) fn elementwise(count: usize) -> (CubeCount, CubeDim) {
    (cubes(count.div_ceil(UNITS)), CubeDim::new_1d(UNITS as u32))
}

/// How rows are divided: `lanes` units share a row, a cube takes `rows` of them.
#[derive(Clone, Copy)]
pub(super) struct RowWork {
    pub lanes: usize,
    pub rows: usize,
}

impl RowWork {
    /// For rows of so many vectors.
    pub fn new(vectors: usize) -> Self {
        let lanes = vectors.next_power_of_two().clamp(1, UNITS);
        Self {
            lanes,
            rows: UNITS / lanes,
        }
    }

    /// The same, with one row a cube.
    pub fn alone(vectors: usize) -> Self {
        Self {
            rows: 1,
            ..Self::new(vectors)
        }
    }

    /// Cubes for so many rows.
    pub fn cubes(self, rows: usize) -> CubeCount {
        cubes(rows.div_ceil(self.rows))
    }

    /// The units of a cube.
    pub fn dim(self) -> CubeDim {
        CubeDim::new_2d(self.lanes as u32, self.rows as u32)
    }
}

/// Σ over the lanes of a row, the same for each of them. All units of the cube take part.
#[cube]
pub(super) fn sum_of_lanes(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] lanes: usize,
) -> f32 {
    over_lanes(value, shared, lanes, false)
}

/// The largest over the lanes of a row.
#[cube]
pub(super) fn largest_of_lanes(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] lanes: usize,
) -> f32 {
    over_lanes(value, shared, lanes, true)
}

/// Halves of the lanes joined until one is left.
#[cube]
fn over_lanes(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] lanes: usize,
    #[comptime] largest: bool,
) -> f32 {
    let first = UNIT_POS_Y as usize * lanes;
    let lane = UNIT_POS_X as usize;
    shared[first + lane] = value;
    sync_cube();
    let mut half = (lanes / 2).runtime();
    while half > 0 {
        if lane < half {
            let other = shared[first + lane + half];
            let own = shared[first + lane];
            if largest {
                shared[first + lane] = select(other > own, other, own);
            } else {
                shared[first + lane] = own + other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let found = shared[first];
    sync_cube();
    found
}

/// Σ over the elements of a vector.
#[cube]
pub(super) fn sum_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        sum += vector[i];
    }
    sum
}

/// The largest element of a vector.
#[cube]
pub(super) fn largest_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut largest = vector[0];
    #[unroll]
    for i in 1..N::value() {
        if vector[i] > largest {
            largest = vector[i];
        }
    }
    largest
}
