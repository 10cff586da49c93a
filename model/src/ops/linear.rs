//! Linear layers: the products are the backend's.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};

use super::ModelOps;
use super::memory::{primitive, tensor};

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

/// The backward step of `x · weightᵀ`, and of the same plus a bias.
#[derive(Debug)]
pub(super) struct LinearStep;

impl<B: ModelOps> Backward<B, 2> for LinearStep {
    type State = (Option<Tensor<B, 2>>, Option<Tensor<B, 2>>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad: Tensor<B, 2> = tensor(grads.consume::<B>(&ops.node));
        let [of_x, of_weight] = ops.parents;
        let (x, weight) = ops.state;
        if let (Some(node), Some(x)) = (of_weight, x) {
            let of_weight = B::linear_layer_weight_gradient(grad.clone(), x);
            grads.register::<B>(node.id, primitive(of_weight));
        }
        if let (Some(node), Some(weight)) = (of_x, weight) {
            grads.register::<B>(node.id, primitive(grad.matmul(weight)));
        }
    }
}

/// The backward step of adding a bias to rows.
#[derive(Debug)]
pub(super) struct BiasStep;

impl<B: ModelOps> Backward<B, 2> for BiasStep {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad: Tensor<B, 2> = tensor(grads.consume::<B>(&ops.node));
        let [of_y, of_bias] = ops.parents;
        if let Some(node) = of_bias {
            let of_bias: Tensor<B, 1> = grad.clone().sum_dim(0).squeeze_dim(0);
            grads.register::<B>(node.id, primitive(of_bias));
        }
        if let Some(node) = of_y {
            grads.register::<B>(node.id, primitive(grad));
        }
    }
}
