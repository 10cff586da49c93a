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
