//! Autodiff: each operation one node of the graph, with a backward step of its own, whose gradients
//! are the operation's `…_backward`.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor};
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_autodiff::{Autodiff, NodeId};

use super::attention::{Attended, PackedAttention};
use super::device::Placement;
use super::embedding::TokenIds;
use super::memory::{cast, primitive, tensor};
use super::{ModelOps, TrainingOps};

/// A tensor and its node in the graph.
type Tracked<B> = FloatTensor<Autodiff<B>>;

/// Runs `forward`, which gives the output and the state of the backward step; the state is dropped
/// where no gradient is wanted.
fn node<B, C, S, const N: usize, const D: usize>(
    step: S,
    parents: [&Tracked<B>; N],
    forward: impl FnOnce() -> (Tensor<B, D>, S::State),
) -> Tensor<Autodiff<B, C>, D>
where
    B: ModelOps,
    C: CheckpointStrategy,
    S: Backward<B, N>,
{
    let nodes = parents.map(|parent| parent.node.clone());
    let (out, state) = forward();
    let out = primitive(out);
    tensor(match step.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(state, out),
        OpsKind::UnTracked(prepared) => prepared.finish(out),
    })
}

/// A parent's value.
fn value<B: ModelOps, const D: usize>(x: &Tracked<B>) -> Tensor<B, D> {
    tensor(x.primitive.clone())
}

/// The same where `other` has a gradient, whose backward step reads it.
fn value_for<B: ModelOps, const D: usize>(
    x: &Tracked<B>,
    other: &Tracked<B>,
) -> Option<Tensor<B, D>> {
    (!other.node.requirement.is_none()).then(|| value(x))
}

/// A parent that does not keep its graph alive.
fn untied<B: ModelOps>(x: &Tracked<B>) -> Tracked<B> {
    let mut x = x.clone();
    x.rc = Arc::new(*x.rc);
    x
}

impl<B: Placement, C: CheckpointStrategy> Placement for Autodiff<B, C> {
    const ON_HOST: bool = B::ON_HOST;
    const HAS_KERNELS: bool = B::HAS_KERNELS;
}

impl<B: ModelOps, C: CheckpointStrategy> ModelOps for Autodiff<B, C> {
    fn linear_layer(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let (x, weight) = (primitive(x), primitive(weight));
        let y = node(LinearStep, [&x, &weight], || {
            let state = (value_for(&x, &weight), value_for(&weight, &x));
            (B::linear_layer(value(&x), value(&weight), None), state)
        });
        let Some(bias) = bias else {
            return y;
        };
        let (y, bias) = (primitive(y), primitive(bias));
        node(BiasStep, [&y, &bias], || {
            (value::<B, 2>(&y) + value::<B, 1>(&bias).unsqueeze(), ())
        })
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        let (x, weight) = (primitive(x), primitive(weight));
        node(RmsNormStep, [&x, &weight], || {
            let out = B::rms_norm(value(&x), value(&weight), eps);
            (out, (untied(&x), value(&weight), eps))
        })
    }

    fn residual_rms_norm(
        x: Tensor<Self, 2>,
        residual: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (x, residual, weight) = (primitive(x), primitive(residual), primitive(weight));
        let (sum, normed) = B::residual_rms_norm(value(&x), value(&residual), value(&weight), eps);
        let sum: Tensor<Self, 2> = node(SumStep, [&x, &residual], || (sum, ()));
        let of_sum = primitive(sum.clone());
        let normed = node(RmsNormStep, [&of_sum, &weight], || {
            (normed, (untied(&of_sum), value(&weight), eps))
        });
        (sum, normed)
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (gate, up) = (primitive(gate), primitive(up));
        node(SwigluStep, [&gate, &up], || {
            let out = B::swiglu(value(&gate), value(&up));
            (out, (value(&gate), value(&up)))
        })
    }

    fn embed(weight: Tensor<Self, 2>, ids: &TokenIds<Self>) -> Tensor<Self, 2> {
        let (vocab, weight) = (weight.dims()[0], primitive(weight));
        node(EmbedStep, [&weight], || {
            let ids = ids.inner();
            (B::embed(value(&weight), &ids), (ids, vocab))
        })
    }

    fn packed_attention(
        q: Tensor<Self, 2>,
        k: Tensor<Self, 2>,
        v: Tensor<Self, 2>,
        over: &PackedAttention<Self>,
    ) -> Tensor<Self, 2> {
        let (q, k, v) = (primitive(q), primitive(k), primitive(v));
        node(AttentionStep, [&q, &k, &v], || {
            let over = over.inner();
            let (out, attended) =
                B::packed_attention_saving(value(&q), value(&k), value(&v), &over);
            (out, (attended, over))
        })
    }

    fn target_logps(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> Tensor<Self, 1> {
        let (x, weight) = (primitive(x), primitive(weight));
        node(TargetLogpsStep, [&x, &weight], || {
            let targets = targets.inner();
            let (out, saved) = B::target_logps_saving(value(&x), value(&weight), &targets);
            let state = TargetLogpsState {
                x: value_for(&x, &weight),
                weight: value_for(&weight, &x),
                saved,
                targets,
            };
            (out, state)
        })
    }

    fn measured_target_logps(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let (x, weight) = (primitive(x), primitive(weight));
        let targets = targets.inner();
        let (out, saved, measures) = B::target_logps_measuring(value(&x), value(&weight), &targets);
        let state = TargetLogpsState {
            x: value_for(&x, &weight),
            weight: value_for(&weight, &x),
            saved,
            targets,
        };
        let logps = node(TargetLogpsStep, [&x, &weight], || (out, state));
        (logps, Tensor::from_inner(measures))
    }
}

impl<B: ModelOps, C: CheckpointStrategy> TrainingOps for Autodiff<B, C> {
    fn with_gradient(output: Tensor<Self, 2>, grad: Tensor<B, 2>) -> Tensor<Self, 1> {
        let output = primitive(output);
        node(SeedStep, [&output], || (nothing(&grad), grad))
    }

    fn linear_layer_with_gradient(
        residual: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        grad: Tensor<B, 2>,
    ) -> Tensor<Self, 1> {
        let (residual, x, weight) = (primitive(residual), primitive(x), primitive(weight));
        node(LinearSeedStep, [&residual, &x, &weight], || {
            let linear = (value_for(&x, &weight), value_for(&weight, &x));
            (nothing(&grad), (grad, linear))
        })
    }
}

/// A value that nobody reads.
fn nothing<B: Backend>(like: &Tensor<B, 2>) -> Tensor<B, 1> {
    Tensor::empty([1], (&like.device(), DType::F32))
}

/// Where a backward pass begins: the gradient is known.
#[derive(Debug)]
struct SeedStep;

impl<B: ModelOps> Backward<B, 1> for SeedStep {
    type State = Tensor<B, 2>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<B>(&ops.node);
        if let [Some(node)] = ops.parents {
            grads.register::<B>(node.id, primitive(ops.state));
        }
    }
}

/// The same at the sum of a residual and a linear layer.
#[derive(Debug)]
struct LinearSeedStep;

impl<B: ModelOps> Backward<B, 3> for LinearSeedStep {
    type State = (Tensor<B, 2>, LinearState<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<B>(&ops.node);
        let (grad, linear) = ops.state;
        let [of_residual, of_x, of_weight] = ops.parents;
        let nodes = [of_x, of_weight].map(|node| node.map(|node| node.id));
        linear_backward(grad.clone(), linear, nodes, grads);
        if let Some(node) = of_residual {
            grads.register::<B>(node.id, primitive(grad));
        }
    }
}

/// The backward step of a sum.
#[derive(Debug)]
struct SumStep;

impl<B: ModelOps> Backward<B, 2> for SumStep {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        for node in ops.parents.into_iter().flatten() {
            grads.register::<B>(node.id, grad.clone());
        }
    }
}

/// The backward step of `x · weightᵀ`, and of the same plus a bias.
#[derive(Debug)]
struct LinearStep;

impl<B: ModelOps> Backward<B, 2> for LinearStep {
    type State = LinearState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        linear_backward(grad, ops.state, nodes, grads);
    }
}

/// Input and weight of a linear layer, each only where the other one has a gradient.
type LinearState<B> = (Option<Tensor<B, 2>>, Option<Tensor<B, 2>>);

fn linear_backward<B: ModelOps>(
    grad: Tensor<B, 2>,
    (x, weight): LinearState<B>,
    [of_x, of_weight]: [Option<NodeId>; 2],
    grads: &mut Gradients,
) {
    if let (Some(node), Some(x)) = (of_weight, x) {
        let of_weight = B::linear_layer_weight_gradient(grad.clone(), x);
        grads.register::<B>(node, primitive(of_weight));
    }
    if let (Some(node), Some(weight)) = (of_x, weight) {
        let of_x = B::linear_layer_input_gradient(grad, weight);
        grads.register::<B>(node, primitive(of_x));
    }
}

/// The backward step of adding a bias to rows.
#[derive(Debug)]
struct BiasStep;

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

/// The backward step of RMSNorm.
#[derive(Debug)]
struct RmsNormStep;

impl<B: ModelOps> Backward<B, 2> for RmsNormStep {
    type State = (Tracked<B>, Tensor<B, 1>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let (x, weight, eps) = ops.state;
        // What has come by the way around the norm, so that it need not be added by itself.
        let more = grads.remove(&x).map(tensor);
        let (x_gradient, weight_gradient) =
            B::rms_norm_backward(grad, value(&x), weight, eps, more);
        let [of_x, of_weight] = ops.parents;
        if let Some(node) = of_weight {
            grads.register::<B>(node.id, primitive(weight_gradient));
        }
        if let Some(node) = of_x {
            grads.register::<B>(node.id, primitive(x_gradient));
        }
    }
}

/// The backward step of SwiGLU.
#[derive(Debug)]
struct SwigluStep;

impl<B: ModelOps> Backward<B, 2> for SwigluStep {
    type State = (Tensor<B, 2>, Tensor<B, 2>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let (gate, up) = ops.state;
        let found = B::swiglu_backward(grad, gate, up);
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(node) = node {
                grads.register::<B>(node.id, primitive(gradient));
            }
        }
    }
}

/// The backward step of taking rows.
#[derive(Debug)]
struct EmbedStep;

impl<B: ModelOps> Backward<B, 1> for EmbedStep {
    type State = (TokenIds<B>, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let (ids, vocab) = ops.state;
        if let [Some(node)] = ops.parents {
            let of_weight = B::embed_backward(grad, &ids, vocab);
            grads.register::<B>(node.id, primitive(of_weight));
        }
    }
}

/// The backward step of target log-probabilities.
#[derive(Debug)]
struct TargetLogpsStep;

/// What it needs of the forward step; input and weight only where the other one has a gradient.
#[derive(Clone, Debug)]
struct TargetLogpsState<B: Backend> {
    x: Option<Tensor<B, 2>>,
    weight: Option<Tensor<B, 2>>,
    saved: Tensor<B, 2>,
    targets: TokenIds<B>,
}

impl<B: ModelOps> Backward<B, 2> for TargetLogpsStep {
    type State = TargetLogpsState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let state = ops.state;
        let of_logits = B::target_logps_backward(grad, state.saved, &state.targets);
        let [of_x, of_weight] = ops.parents;
        if let (Some(node), Some(x)) = (of_weight, state.x) {
            let of_logits = cast(of_logits.clone(), x.dtype());
            let of_weight = B::linear_layer_weight_gradient(of_logits, x);
            grads.register::<B>(node.id, primitive(of_weight));
        }
        if let (Some(node), Some(weight)) = (of_x, state.weight) {
            let of_logits = cast(of_logits, weight.dtype());
            let of_x = B::linear_layer_input_gradient(of_logits, weight);
            grads.register::<B>(node.id, primitive(of_x));
        }
    }
}

/// The backward step of attention.
#[derive(Debug)]
struct AttentionStep;

impl<B: ModelOps> Backward<B, 3> for AttentionStep {
    type State = (Attended<B>, PackedAttention<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = tensor(grads.consume::<B>(&ops.node));
        let (attended, over) = ops.state;
        let found = B::packed_attention_backward(grad, attended, &over);
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(node) = node {
                grads.register::<B>(node.id, primitive(gradient));
            }
        }
    }
}
