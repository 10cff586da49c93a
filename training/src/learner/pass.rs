//! One part of a batch on its way through the model and back.

use burn::module::Module;
use burn::tensor::{IndexingUpdateOp, Tensor, backend::AutodiffBackend};
use sppo_model::llama::host_pass::Sink;
use sppo_model::llama::rope::RopeRows;
use sppo_model::llama::{Llama, PackedBatch};

use super::LearnerError;
use super::gradients::hand_on;
use super::logps::{Targets, chunked_logps};
use crate::config::Recompute;
use crate::tokenise::TokenisedSequence;

/// A forward pass with what its backward pass needs.
pub(super) struct Pass<B: AutodiffBackend> {
    /// Summed response log-probabilities.
    pub logps: Vec<f64>,
    targets: Targets<B>,
    body: Body<B>,
    head: Head<B>,
}

/// What is kept of the blocks.
enum Body<B: AutodiffBackend> {
    /// The whole graph, through the last block's output at the response positions.
    Graph(Tensor<B, 2>),
    /// Each block's input, and the last one's output.
    Boundaries {
        boundaries: Vec<Tensor<B::InnerBackend, 2>>,
        last: Tensor<B::InnerBackend, 2>,
        rope: RopeRows<B>,
        batch: PackedBatch<B>,
    },
}

/// What is kept of the vocabulary projection.
enum Head<B: AutodiffBackend> {
    /// Its graph, where all logits were made at once: the leaf and the log-probabilities.
    Graph(Tensor<B, 2>, Tensor<B, 1>),
    /// Its input; the chunks are projected again once the weights are known.
    Again(Tensor<B::InnerBackend, 2>),
}

impl<B: AutodiffBackend> Pass<B> {
    /// Runs `sequences` through the model.
    pub fn forward(
        model: &Llama<B>,
        recompute: Recompute,
        sequences: &[&TokenisedSequence],
    ) -> Result<Self, LearnerError> {
        let device = model.device();
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let batch = PackedBatch::<B>::new(&ids, &device);
        let targets = Targets::<B>::new(sequences, &batch.places, &device);
        let (body, picked) = match recompute {
            Recompute::None => {
                let hidden = model.forward_blocks(&batch);
                let picked = hidden.select(0, targets.rows.clone());
                (Body::Graph(picked.clone()), picked.inner())
            }
            Recompute::Layer => {
                let (boundaries, last, rope) = boundaries(model, &batch);
                let rows = targets.rows.clone().inner();
                let picked = last.clone().select(0, rows);
                let body = Body::Boundaries {
                    boundaries,
                    last,
                    rope,
                    batch,
                };
                (body, picked)
            }
        };
        let chunks = targets.chunks(model.embed_tokens.dims()[0]);
        let (head, token_logps) = match chunks.as_slice() {
            [only] => {
                let leaf = Tensor::from_inner(picked).require_grad();
                let logps = targets.logps(model, leaf.clone(), only);
                (Head::Graph(leaf, logps.clone()), logps.inner())
            }
            _ => {
                let all = Tensor::from_inner(picked.clone());
                let logps = chunked_logps(&frozen(model), all, &targets, &chunks);
                (Head::Again(picked), logps.inner())
            }
        };
        let logps = targets.sum_by_sequence(token_logps)?;
        Ok(Self {
            logps,
            targets,
            body,
            head,
        })
    }

    /// Hands the gradient of Σ wᵢ · logpᵢ to `sink`; where layers are recomputed, block by block
    /// from the last to the first.
    pub fn backward(self, model: &Llama<B>, weights: &[f64], sink: &mut dyn Sink<B::InnerBackend>) {
        let targets = &self.targets;
        let grad = head_backward(self.head, model, targets, weights, sink);
        match self.body {
            Body::Graph(picked) => {
                let mut grads = (picked * Tensor::from_inner(grad)).sum().backward();
                hand_on::<B, _>(model, &mut grads, sink);
            }
            Body::Boundaries {
                boundaries,
                last,
                rope,
                batch,
            } => {
                let rows = targets.rows.clone().inner();
                let empty = Tensor::zeros_like(&last);
                drop(last);
                let mut grad = empty.select_assign(0, rows, grad, IndexingUpdateOp::Add);
                let blocks = model.layers.iter().zip(boundaries);
                for (block, boundary) in blocks.rev() {
                    let leaf = Tensor::<B, 2>::from_inner(boundary).require_grad();
                    let out = block.forward(leaf.clone(), &rope, &batch);
                    let mut grads = (out * Tensor::from_inner(grad.clone())).sum().backward();
                    if let Some(g) = leaf.grad_remove(&mut grads) {
                        grad = g;
                    }
                    hand_on::<B, _>(block, &mut grads, sink);
                }
                if model.embed_tokens.is_require_grad() {
                    let embedded = model.embed(batch.ids);
                    let mut grads = (embedded * Tensor::from_inner(grad)).sum().backward();
                    hand_on::<B, _>(model, &mut grads, sink);
                }
            }
        }
    }
}

/// The model without gradients, on the training backend: the inner backend may fuse operations
/// that autodiff composes, and would differ in the last digit.
pub(super) fn frozen<B: AutodiffBackend>(model: &Llama<B>) -> Llama<B> {
    model.clone().no_grad()
}

type Boundaries<B> = (
    Vec<Tensor<<B as AutodiffBackend>::InnerBackend, 2>>,
    Tensor<<B as AutodiffBackend>::InnerBackend, 2>,
    RopeRows<B>,
);

/// The input of every block, the output of the last one, and the rotary factors.
fn boundaries<B: AutodiffBackend>(model: &Llama<B>, batch: &PackedBatch<B>) -> Boundaries<B> {
    let frozen = frozen(model);
    let rope = frozen.rope_rows(batch);
    let mut hidden = frozen.embed(batch.ids.clone());
    let mut boundaries = Vec::with_capacity(frozen.layers.len());
    for block in &frozen.layers {
        boundaries.push(hidden.clone().inner());
        hidden = block.forward(hidden, &rope, batch);
    }
    (boundaries, hidden.inner(), rope)
}

/// Gradient of the weighted sum by the head's input `[rows, hidden]`; the head's own goes to
/// `sink`.
fn head_backward<B: AutodiffBackend>(
    head: Head<B>,
    model: &Llama<B>,
    targets: &Targets<B>,
    weights: &[f64],
    sink: &mut dyn Sink<B::InnerBackend>,
) -> Tensor<B::InnerBackend, 2> {
    let weights = targets.spread(weights, &model.device());
    let mut finish = |leaf: Tensor<B, 2>, logps: Tensor<B, 1>, weights: Tensor<B, 1>| {
        let mut grads = (logps * weights).sum().backward();
        let grad = leaf.grad_remove(&mut grads);
        hand_on::<B, _>(model, &mut grads, sink);
        grad.unwrap_or_else(|| Tensor::zeros_like(&leaf.inner()))
    };
    match head {
        Head::Graph(leaf, logps) => finish(leaf, logps, weights),
        Head::Again(picked) => {
            let chunks = targets.chunks(model.embed_tokens.dims()[0]);
            let parts = chunks.iter().map(|range| {
                let rows = picked.clone().slice([range.clone()]);
                let leaf = Tensor::<B, 2>::from_inner(rows).require_grad();
                let logps = targets.logps(model, leaf.clone(), range);
                finish(leaf, logps, weights.clone().slice([range.clone()]))
            });
            Tensor::cat(parts.collect(), 0)
        }
    }
}
