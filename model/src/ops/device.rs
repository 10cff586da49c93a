//! Indices and masks on a device.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

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
