//! Token ids, and the embeddings' gradient.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor};

use super::device::ints;
use super::math::add;
use super::memory::{HostMemory, HostTensor, cast, from_host, to_f32};

/// Token ids, on the host and on the device.
#[derive(Clone, Debug)]
pub struct TokenIds<B: Backend> {
    ids: Arc<[u32]>,
    /// `[tokens]`.
    on_device: Tensor<B, 1, Int>,
}

impl<B: Backend> TokenIds<B> {
    /// Sends ids to a device.
    pub fn new(ids: &[u32], device: &B::Device) -> Self {
        Self {
            ids: ids.into(),
            on_device: ints(ids.iter().map(|&id| id.into()).collect(), device),
        }
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Some of them, in order.
    pub fn slice(&self, range: Range<usize>) -> Self {
        Self {
            ids: self.ids[range.clone()].into(),
            on_device: self.on_device.clone().slice([range]),
        }
    }

    pub(super) fn on_host(&self) -> &[u32] {
        &self.ids
    }

    pub(super) fn on_device(&self) -> Tensor<B, 1, Int> {
        self.on_device.clone()
    }
}

impl<B: AutodiffBackend> TokenIds<B> {
    /// The same ids for a graph.
    pub fn from_inner(ids: TokenIds<B::InnerBackend>) -> Self {
        Self {
            ids: ids.ids,
            on_device: Tensor::from_inner(ids.on_device),
        }
    }

    pub(super) fn inner(&self) -> TokenIds<B::InnerBackend> {
        TokenIds {
            ids: self.ids.clone(),
            on_device: self.on_device.clone().inner(),
        }
    }
}

/// Sums of rows by token, in f32.
pub(super) fn backward<B: Backend>(
    grad: Tensor<B, 2>,
    ids: &TokenIds<B>,
    vocab: usize,
) -> Tensor<B, 2> {
    let (dtype, device) = (grad.dtype(), grad.device());
    let empty = Tensor::zeros([vocab, grad.dims()[1]], (&device, DType::F32));
    let sums = empty.select_assign(0, ids.on_device(), to_f32(grad), IndexingUpdateOp::Add);
    cast(sums, dtype)
}

pub(super) fn backward_on_host<B: HostMemory>(
    grad: Tensor<B, 2>,
    ids: &TokenIds<B>,
    vocab: usize,
) -> Tensor<B, 2> {
    let ([_, hidden], device) = (grad.dims(), grad.device());
    let grad = HostTensor::new(grad);
    let mut sums = vec![0f32; vocab * hidden];
    for (&id, grad) in ids.on_host().iter().zip(grad.values().chunks_exact(hidden)) {
        let sums = &mut sums[id as usize * hidden..][..hidden];
        add(sums, grad);
    }
    from_host(sums, [vocab, hidden], &device)
}
