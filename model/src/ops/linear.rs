//! Linear layers: the products are the backend's.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

pub(super) fn forward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    let y = x.matmul(weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// The weight with its columns end to end: products of few rows spend most of their time on turning
/// weights around on a CPU.
pub(super) fn by_columns<B: Backend>(weight: Tensor<B, 2>) -> Tensor<B, 2> {
    let (dtype, device) = (weight.dtype(), weight.device());
    let columns = weight.transpose().into_data();
    Tensor::<B, 2>::from_data(columns, (&device, dtype)).transpose()
}
