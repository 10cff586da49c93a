//! Where a backend's tensors lie; indices and masks on a device.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

/// What went wrong on a device.
#[derive(Debug, thiserror::Error)]
#[error("reading from the device failed: {0}")]
pub struct DeviceError(pub String);

/// A backend that says where its tensors lie.
pub trait Placement: Backend {
    /// Whether that is the host's memory.
    const ON_HOST: bool = false;

    /// Whether it has kernels of its own for the operations.
    const HAS_KERNELS: bool = false;

    /// Whether operations on `dtype` are passes over the host's memory.
    fn in_passes(dtype: DType) -> bool {
        Self::ON_HOST && dtype == DType::F32
    }
}

/// What a hidden attention score is set to: its exponential is exactly zero in f32.
pub(super) const MASKED: f32 = -1e30;

/// A tensor of indices, in the backend's own integer type.
pub(crate) fn ints<B: Backend>(values: Vec<i64>, device: &B::Device) -> Tensor<B, 1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// An additive mask f32 `[rows, columns]`: row `i` sees the first `seen(i)` columns.
pub(super) fn mask<B: Backend>(
    rows: usize,
    columns: usize,
    seen: impl Fn(usize) -> usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let mut cells = vec![0f32; rows * columns];
    for (i, row) in cells.chunks_exact_mut(columns).enumerate() {
        row[seen(i)..].fill(MASKED);
    }
    let data = TensorData::new(cells, [rows, columns]);
    Tensor::from_data(data, (device, DType::F32))
}
