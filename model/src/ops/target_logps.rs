//! Log-probabilities of given tokens: projection on the vocabulary, log-softmax, gather.

use burn::tensor::IndexingUpdateOp;
use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops};
use rayon::prelude::*;

use super::ModelOps;
use super::embedding::TokenIds;
use super::host::softmax_row;
use super::memory::{HostMemory, HostTensor, cast, from_host, map, primitive, tensor, to_f32};

pub(super) fn forward<B: ModelOps>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let logits = to_f32(B::linear_layer(x, weight, None));
    let all = log_softmax(logits, 1);
    let logps = all.clone().gather(1, targets.on_device().unsqueeze_dim(1));
    (logps.squeeze_dim(1), all.exp())
}

/// (onehot − p) · grad.
pub(super) fn backward<B: Backend>(
    grad: Tensor<B, 1>,
    probabilities: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> Tensor<B, 2> {
    let grad: Tensor<B, 2> = grad.unsqueeze_dim(1);
    let places = targets.on_device().unsqueeze_dim(1);
    let of_logits = probabilities * grad.clone().neg();
    of_logits.scatter(1, places, grad, IndexingUpdateOp::Add)
}

pub(super) fn forward_on_host<B: ModelOps + HostMemory>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> (Tensor<B, 1>, Tensor<B, 2>) {
    let (vocab, device) = (weight.dims()[0], x.device());
    let mut logps = Vec::new();
    let probabilities = map(B::linear_layer(x, weight, None), |logits| {
        logps = log_softmax_at(logits, vocab, targets.on_host());
    });
    let rows = logps.len();
    (from_host(logps, [rows], &device), probabilities)
}

/// Turns logits into probabilities, rows of `vocab`; gives the log-probability of each row's token.
pub(super) fn log_softmax_at(logits: &mut [f32], vocab: usize, tokens: &[u32]) -> Vec<f32> {
    logits
        .par_chunks_mut(vocab)
        .zip(tokens)
        .map(|(row, &token)| {
            let highest = row.iter().copied().fold(f32::MIN, f32::max);
            let own = row[token as usize] - highest;
            let sum = softmax_row(row);
            own - sum.ln()
        })
        .collect()
}

pub(super) fn backward_on_host<B: HostMemory>(
    grad: Tensor<B, 1>,
    probabilities: Tensor<B, 2>,
    targets: &TokenIds<B>,
) -> Tensor<B, 2> {
    let vocab = probabilities.dims()[1];
    let grad = HostTensor::new(grad);
    map(probabilities, |probabilities| {
        probabilities
            .par_chunks_mut(vocab)
            .zip(targets.on_host().par_iter().zip(&*grad.values()))
            .for_each(|(row, (&token, &grad))| {
                row.iter_mut().for_each(|p| *p *= -grad);
                row[token as usize] += grad;
            });
    })
}

/// The backward step of target log-probabilities.
#[derive(Debug)]
pub(super) struct TargetLogpsStep;

/// What it needs of the forward step; input and weight only where the other one has a gradient.
#[derive(Clone, Debug)]
pub(super) struct TargetLogpsState<B: Backend> {
    pub x: Option<Tensor<B, 2>>,
    pub weight: Option<Tensor<B, 2>>,
    pub probabilities: Tensor<B, 2>,
    pub targets: TokenIds<B>,
}

impl<B: ModelOps> Backward<B, 2> for TargetLogpsStep {
    type State = TargetLogpsState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let state = ops.state;
        let of_logits = B::target_logps_backward(grad, state.probabilities, &state.targets);
        let [of_x, of_weight] = ops.parents;
        if let (Some(node), Some(x)) = (of_weight, state.x) {
            let of_logits = cast(of_logits.clone(), x.dtype());
            let of_weight = B::linear_layer_weight_gradient(of_logits, x);
            grads.register::<B>(node.id, primitive(of_weight));
        }
        if let (Some(node), Some(weight)) = (of_x, state.weight) {
            let of_x = cast(of_logits, weight.dtype()).matmul(weight);
            grads.register::<B>(node.id, primitive(of_x));
        }
    }
}
