//! Autodiff: each operation one node of the graph, with a backward step of its own.

use burn::tensor::Tensor;
use burn::tensor::ops::FloatTensor;
use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::ops::{Backward, OpsKind};

use super::ModelOps;
use super::attention::{AttentionStep, PackedAttention};
use super::embedding::{EmbedStep, TokenIds};
use super::feed_forward::SwigluStep;
use super::linear::{BiasStep, LinearStep};
use super::memory::{primitive, tensor};
use super::norm::RmsNormStep;
use super::target_logps::{TargetLogpsState, TargetLogpsStep};

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

impl<B: ModelOps, C: CheckpointStrategy> ModelOps for Autodiff<B, C> {
    const ON_HOST: bool = B::ON_HOST;

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
            (out, (value(&x), value(&weight), eps))
        })
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
            let (out, probabilities) = B::target_logps_saving(value(&x), value(&weight), &targets);
            let state = TargetLogpsState {
                x: value_for(&x, &weight),
                weight: value_for(&weight, &x),
                probabilities,
                targets,
            };
            (out, state)
        })
    }
}
