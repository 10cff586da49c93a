//! Tensors in and out of the host's memory, and dtypes.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive, bf16};

use super::device::DeviceError;

/// A backend whose tensors lie in the host's memory.
pub trait HostMemory: Backend {
    /// The values of a f32 tensor in their order: where they lie, or copied where they lie
    /// otherwise.
    fn values(x: &FloatTensor<Self>) -> Cow<'_, [f32]>;

    /// The values of a bf16 tensor where they lie in their order.
    fn bf16_values(x: &FloatTensor<Self>) -> Option<&[bf16]>;
}

/// A tensor whose values can be read.
pub(super) struct HostTensor<B: HostMemory>(FloatTensor<B>);

impl<B: HostMemory> HostTensor<B> {
    pub fn new<const D: usize>(x: Tensor<B, D>) -> Self {
        Self(primitive(x))
    }

    pub fn values(&self) -> Cow<'_, [f32]> {
        B::values(&self.0)
    }
}

/// The backend's own tensor.
pub(super) fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

/// A tensor of the backend's own.
pub(super) fn tensor<B: Backend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// A f32 tensor of values.
pub(super) fn from_host<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// Changes the values of a f32 tensor: in place where it has no other owner.
pub(super) fn map<B: HostMemory, const D: usize>(
    x: Tensor<B, D>,
    change: impl FnOnce(&mut [f32]),
) -> Tensor<B, D> {
    let (shape, device) = (x.dims(), x.device());
    let mut values = take(x);
    change(&mut values);
    from_host(values, shape, &device)
}

/// The values of a f32 tensor; not copied where it has no other owner.
pub(super) fn take<B: HostMemory, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    // Only another dtype fails, which no caller has.
    x.into_data().into_vec::<f32>().unwrap_or_default()
}

/// The values of a f32 tensor, wherever it lies.
pub fn to_host<B: Backend, const D: usize>(x: Tensor<B, D>) -> Result<Vec<f32>, DeviceError> {
    let data = x.try_into_data().map_err(|e| DeviceError(e.to_string()))?;
    data.into_vec().map_err(|e| DeviceError(format!("{e:?}")))
}

/// `x` f32 with dimension `axes[i]` as its `i`-th, laid out so at once, by rows where these stay whole:
/// backends do that number by number.
pub(super) fn permuted<B: HostMemory, const D: usize>(
    x: Tensor<B, D>,
    axes: [usize; D],
) -> Tensor<B, D> {
    let (old, device) = (x.dims(), x.device());
    let shape = axes.map(|axis| old[axis]);
    if axes[D - 1] != D - 1 {
        // Rows become columns; for that backends have tiles.
        return from_host(take(x.permute(axes)), shape, &device);
    }
    let x = HostTensor::new(x);
    let x = x.values();
    let strides = axes.map(|axis| old[axis + 1..].iter().product::<usize>());
    let row = shape[D - 1].max(1);
    let mut values = Vec::with_capacity(x.len());
    for number in 0..x.len() / row {
        let (mut left, mut start) = (number, 0);
        for (size, stride) in shape[..D - 1].iter().zip(&strides).rev() {
            start += left % size * stride;
            left /= size;
        }
        values.extend_from_slice(&x[start..start + row]);
    }
    from_host(values, shape, &device)
}

/// Changes a tensor's bytes; the change gets the size of an element, too. In place where the
/// tensor lies in the host's memory and has no other owner.
pub fn edit_bytes<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    change: impl FnOnce(&mut [u8], usize),
) -> Tensor<B, D> {
    let device = x.device();
    let mut data = x.into_data();
    let dtype = data.dtype;
    change(&mut data.bytes, dtype.size());
    Tensor::from_data(data, (&device, dtype))
}

/// `x` in `dtype`; no operation where it has that dtype already.
pub fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// `x` in f32; no operation where it is f32 already.
pub fn to_f32<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    cast(x, DType::F32)
}
