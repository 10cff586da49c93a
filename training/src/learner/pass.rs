//! One part of a batch on its way through the model and back.
//!
//! Every block is a graph of its own, from a leaf that holds its input: its gradients are handed on
//! before the block below it is gone through, and recomputing a block is running its graph again.

use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{IndexingUpdateOp, Tensor};
use sppo_model::llama::Llama;
use sppo_model::llama::block::Block;
use sppo_model::llama::parameters::Group;
use sppo_model::ops::{
    DeviceError, ModelOps, PackedAttention, TokenIds, TrainingOps, to_f32, to_host,
};
use sppo_model::packed_batch::PackedBatch;

use super::gradients::{GradientReceiver, hand_on};
use super::logps::{Targets, TokenSums, chunked_logps, head_logps};
use crate::config::Recompute;
use crate::tokenise::TokenisedSequence;

type Inner<B> = <B as AutodiffBackend>::InnerBackend;

/// A forward pass with what its backward pass needs.
pub(super) struct Pass<B: TrainingOps> {
    /// Summed response log-probabilities.
    pub logps: Vec<f64>,
    /// What else the logits tell of the responses, where it was asked for.
    pub token_sums: Option<Vec<TokenSums>>,
    ids: TokenIds<Inner<B>>,
    attention: PackedAttention<B>,
    targets: Targets<Inner<B>>,
    blocks: Vec<BlockPass<B>>,
    /// The last block's output.
    last: Tensor<Inner<B>, 2>,
    /// Its graph, where all logits were made at once.
    head: Option<HeadPass<B>>,
}

/// What is kept of a block.
enum BlockPass<B: TrainingOps> {
    Graph(BlockGraph<B>),
    Input(Tensor<Inner<B>, 2>),
}

/// A block's graph: its leaf and its output.
struct BlockGraph<B: TrainingOps> {
    input: Tensor<B, 2>,
    output: Tensor<B, 2>,
}

/// The graph of some rows' log-probabilities.
struct HeadPass<B: TrainingOps> {
    input: Tensor<B, 2>,
    logps: Tensor<B, 1>,
}

impl<B: TrainingOps> BlockGraph<B> {
    fn forward(
        block: &Block<B>,
        layer: usize,
        input: Tensor<Inner<B>, 2>,
        attention: &PackedAttention<B>,
    ) -> Self {
        let input = Tensor::from_inner(input).require_grad();
        let output = block.forward(input.clone(), layer, &mut attention.clone());
        Self { input, output }
    }
}

impl<B: TrainingOps> HeadPass<B> {
    /// With the measures of the rows' distributions `[rows, 3]` where they are wanted.
    fn forward(
        model: &Llama<B>,
        picked: Tensor<Inner<B>, 2>,
        targets: TokenIds<Inner<B>>,
        measure: bool,
    ) -> (Self, Option<Tensor<Inner<B>, 2>>) {
        let input = Tensor::from_inner(picked).require_grad();
        let targets = TokenIds::from_inner(targets);
        let (logps, measures) = head_logps(model, input.clone(), &targets, measure);
        (Self { input, logps }, measures.map(Tensor::inner))
    }
}

impl<B: TrainingOps> Pass<B> {
    /// Runs `sequences` through the model; `measure` asks for their [`TokenSums`].
    pub fn forward(
        model: &Llama<B>,
        recompute: Recompute,
        sequences: &[&TokenisedSequence],
        measure: bool,
    ) -> Result<Self, DeviceError> {
        let device = model.device();
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let batch = PackedBatch::new(&tokens);
        let targets = Targets::new(sequences, &batch.places, &device);
        let inner = model.valid();
        let ids = TokenIds::new(&batch.ids, &device);
        let mut inner_attention = inner.attention_over(&batch);
        let attention = PackedAttention::from_inner(inner_attention.clone());
        let mut hidden = inner.embed(&ids);
        let mut blocks = Vec::with_capacity(model.layers.len());
        for (layer, block) in model.layers.iter().enumerate() {
            match recompute {
                Recompute::None => {
                    let graph = BlockGraph::forward(block, layer, hidden, &attention);
                    hidden = graph.output.clone().inner();
                    blocks.push(BlockPass::Graph(graph));
                }
                Recompute::Layer => {
                    blocks.push(BlockPass::Input(hidden.clone()));
                    hidden = inner.layers[layer].forward(hidden, layer, &mut inner_attention);
                }
            }
        }
        let picked = hidden.clone().select(0, targets.rows.clone());
        let chunks = targets.chunks(model.vocab_size(), model.dtype());
        let (head, token_logps, measures) = match chunks.as_slice() {
            [_] => {
                let tokens = targets.tokens.clone();
                let (head, measures) = HeadPass::forward(model, picked, tokens, measure);
                let logps = head.logps.clone().inner();
                (Some(head), logps, measures)
            }
            _ => {
                let (logps, measures) = chunked_logps(&inner, picked, &targets, &chunks, measure);
                (None, logps, measures)
            }
        };
        Ok(Self {
            logps: targets.sum(&to_host(token_logps)?),
            token_sums: match measures {
                Some(measures) => Some(targets.token_sums(&to_host(measures)?)),
                None => None,
            },
            ids,
            attention,
            targets,
            blocks,
            last: hidden,
            head,
        })
    }

    /// Hands the gradient of Σ wᵢ · logpᵢ to `receiver`, group by group from the head to the
    /// embeddings.
    pub fn backward(
        self,
        model: &Llama<B>,
        weights: &[f64],
        receiver: &mut dyn GradientReceiver<Inner<B>>,
    ) {
        let table = model.parameters.clone();
        let weights = self.targets.spread(weights, &model.device());
        let mut grad = head_backward(
            model,
            self.last,
            self.head,
            &self.targets,
            weights,
            receiver,
        );
        receiver.done(Group::Head);
        let blocks = model.layers.iter().enumerate().zip(self.blocks);
        for ((layer, block), kept) in blocks.rev() {
            let (input, seed) = match kept {
                BlockPass::Graph(graph) => {
                    let seed = B::with_gradient(graph.output, grad.clone());
                    (graph.input, seed)
                }
                BlockPass::Input(input) => {
                    let input = Tensor::from_inner(input).require_grad();
                    let mut attention = self.attention.clone();
                    let (leaf, grad) = (input.clone(), grad.clone());
                    let seed = block.with_gradient(leaf, layer, &mut attention, grad);
                    (input, seed)
                }
            };
            let mut grads = seed.backward();
            if let Some(of_input) = input.grad_remove(&mut grads) {
                grad = of_input;
            }
            let group = Group::Block(layer);
            hand_on::<B, _>(block, table.group(group).start, &mut grads, receiver);
            receiver.done(group);
        }
        let embeddings = table.group(Group::Embeddings).start;
        if table.all()[embeddings].trained {
            let vocab = model.embed_tokens.dims()[0];
            let of_weight = Inner::<B>::embed_backward(grad, &self.ids, vocab);
            receiver.take(embeddings, to_f32(of_weight.reshape([-1])));
        }
        receiver.done(Group::Embeddings);
    }
}

/// The gradient by the last block's output `last`; the head's own go to `receiver`.
fn head_backward<B: TrainingOps>(
    model: &Llama<B>,
    last: Tensor<Inner<B>, 2>,
    mut known: Option<HeadPass<B>>,
    targets: &Targets<Inner<B>>,
    weights: Tensor<Inner<B>, 1>,
    receiver: &mut dyn GradientReceiver<Inner<B>>,
) -> Tensor<Inner<B>, 2> {
    let table = &model.parameters;
    let mut grad = Tensor::zeros_like(&last);
    for range in targets.chunks(model.vocab_size(), model.dtype()) {
        let rows = targets.rows.clone().slice([range.clone()]);
        let head = known.take().unwrap_or_else(|| {
            let picked = last.clone().select(0, rows.clone());
            HeadPass::forward(model, picked, targets.tokens.slice(range.clone()), false).0
        });
        let weights = Tensor::from_inner(weights.clone().slice([range]));
        let mut grads = (head.logps * weights).sum().backward();
        if let Some(of_input) = head.input.grad_remove(&mut grads) {
            grad = grad.select_assign(0, rows, of_input, IndexingUpdateOp::Add);
        }
        let norm = table.group(Group::Head).start;
        hand_on::<B, _>(&model.norm, norm, &mut grads, receiver);
        match &model.lm_head {
            Some(linear) => hand_on::<B, _>(linear, norm + 1, &mut grads, receiver),
            None => {
                let embeddings = table.group(Group::Embeddings).start;
                hand_on::<B, _>(&model.embed_tokens, embeddings, &mut grads, receiver);
            }
        }
    }
    grad
}
