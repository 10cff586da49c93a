//! The learner: a Llama, its optimizer, and gradients of summed response log-probabilities.
//!
//! A loss only has to say what one unit of each sequence's log-probability is worth; preference
//! losses and the cross-entropy of supervised fine-tuning share everything else.

mod gradients;
mod logps;

use std::collections::HashMap;

use burn::module::{AutodiffModule, Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Tensor, backend::AutodiffBackend, backend::Backend};
use sppo_model::llama::{Llama, PackedBatch};
use sppo_model::nn::{from_f32, to_f32};

use crate::config::Recompute;
use crate::optimizer::Optimizer;
use crate::tokenise::TokenisedSequence;
use gradients::GradientStore;
pub use logps::sequence_logps;
use logps::{Targets, chunked_logps};

/// What can go wrong in a step.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    #[error("reading from the device failed: {0}")]
    Device(String),
}

/// What one optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// False where the gradient was not finite and the weights were left alone.
    pub updated: bool,
}

/// One parameter's optimizer state.
#[derive(Clone, Debug)]
pub struct ParamState<B: Backend> {
    /// f32 master weights `[n]`, where the parameter itself has another dtype.
    pub master: Option<Tensor<B, 1>>,
    /// The optimizer's own tensors `[n]`, f32.
    pub slots: Vec<Tensor<B, 1>>,
}

/// A model in training.
pub struct Learner<B: AutodiffBackend> {
    model: Llama<B>,
    optimizer: Optimizer,
    recompute: Recompute,
    max_grad_norm: Option<f64>,
    state: HashMap<ParamId, ParamState<B::InnerBackend>>,
    gradients: GradientStore<B::InnerBackend>,
    steps: usize,
}

impl<B: AutodiffBackend> Learner<B> {
    /// A learner before its first step.
    pub fn new(
        model: Llama<B>,
        optimizer: Optimizer,
        recompute: Recompute,
        max_grad_norm: Option<f64>,
    ) -> Self {
        Self {
            model,
            optimizer,
            recompute,
            max_grad_norm,
            state: HashMap::new(),
            gradients: GradientStore::default(),
            steps: 0,
        }
    }

    /// The model as it is now.
    pub fn model(&self) -> &Llama<B> {
        &self.model
    }

    /// The model on the inner backend, for evaluation.
    pub fn valid(&self) -> Llama<B::InnerBackend> {
        self.model.valid()
    }

    /// The model without gradients, on the training backend: the inner backend may fuse operations
    /// that autodiff composes, and would differ in the last digit.
    fn frozen(&self) -> Llama<B> {
        self.model.clone().no_grad()
    }

    /// Optimizer steps taken.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The optimizer and its settings.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Forgets the gradients gathered since the last step.
    pub fn discard_gradients(&mut self) {
        self.gradients = GradientStore::default();
    }

    /// Optimizer state by parameter.
    pub fn state(&self) -> &HashMap<ParamId, ParamState<B::InnerBackend>> {
        &self.state
    }

    /// Goes on from a saved state; `model` given to `new` must be the one saved with it.
    pub fn restore(&mut self, steps: usize, state: HashMap<ParamId, ParamState<B::InnerBackend>>) {
        self.steps = steps;
        self.state = state;
    }

    /// Summed response log-probabilities of `sequences`, without gradients.
    pub fn logps(&self, sequences: &[&TokenisedSequence]) -> Result<Vec<f64>, LearnerError> {
        sequence_logps(&self.frozen(), sequences)
    }

    /// Adds the gradient of Σ wᵢ · logpᵢ, where `weights` maps the summed response
    /// log-probabilities to the wᵢ; gives the log-probabilities.
    pub fn backward(
        &mut self,
        sequences: &[&TokenisedSequence],
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, LearnerError> {
        let device = self.model.device();
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let batch = PackedBatch::<B>::new(&ids, &device);
        match self.recompute {
            Recompute::None => self.backward_kept(sequences, &batch, weights),
            Recompute::Layer => self.backward_recomputed(sequences, &batch, weights),
        }
    }

    /// Backward with the whole graph kept.
    fn backward_kept(
        &mut self,
        sequences: &[&TokenisedSequence],
        batch: &PackedBatch<B>,
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, LearnerError> {
        let targets = Targets::<B>::new(sequences, &batch.starts, &self.model.device());
        let picked = self
            .model
            .forward_blocks(batch)
            .select(0, targets.rows.clone());
        let (logps, grad) = self.backward_head(picked.clone().inner(), &targets, weights)?;
        let mut grads = (picked * Tensor::from_inner(grad)).sum().backward();
        self.gradients.collect::<B, _>(&self.model, &mut grads);
        Ok(logps)
    }

    /// Backward with only the boundaries of blocks kept.
    fn backward_recomputed(
        &mut self,
        sequences: &[&TokenisedSequence],
        batch: &PackedBatch<B>,
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, LearnerError> {
        let device = self.model.device();
        let frozen = self.frozen();
        let rope = frozen.rope_rows(batch);
        let mut hidden = frozen.embed(batch.ids.clone());
        let mut boundaries = vec![hidden.clone().inner()];
        for block in &frozen.layers {
            hidden = block.forward(hidden, &rope, batch);
            boundaries.push(hidden.clone().inner());
        }
        drop((frozen, hidden));
        let targets = Targets::<B>::new(sequences, &batch.starts, &device);
        let rows = targets.rows.clone().inner();
        let Some(last) = boundaries.pop() else {
            return Ok(Vec::new());
        };
        let picked = last.clone().select(0, rows.clone());
        let (logps, grad) = self.backward_head(picked, &targets, weights)?;
        let empty = Tensor::zeros_like(&last);
        drop(last);
        let mut grad = empty.select_assign(0, rows, grad, burn::tensor::IndexingUpdateOp::Add);
        for block in self.model.layers.iter().rev() {
            let Some(boundary) = boundaries.pop() else {
                break;
            };
            let leaf = Tensor::<B, 2>::from_inner(boundary).require_grad();
            let out = block.forward(leaf.clone(), &rope, batch);
            let mut grads = (out * Tensor::from_inner(grad.clone())).sum().backward();
            if let Some(g) = leaf.grad_remove(&mut grads) {
                grad = g;
            }
            self.gradients.collect::<B, _>(block, &mut grads);
        }
        let embedded = self.model.embed(batch.ids.clone());
        let mut grads = (embedded * Tensor::from_inner(grad)).sum().backward();
        self.gradients.collect::<B, _>(&self.model, &mut grads);
        Ok(logps)
    }

    /// Log-probabilities from the last block's output at the response positions `[rows, hidden]`
    /// and the weighted sum's gradient by it; the vocabulary projection runs in chunks.
    fn backward_head(
        &mut self,
        picked: Tensor<B::InnerBackend, 2>,
        targets: &Targets<B>,
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<(Vec<f64>, Tensor<B::InnerBackend, 2>), LearnerError> {
        let chunks = targets.chunks(self.model.embed_tokens.dims()[0]);
        let leaf_of = |range: &std::ops::Range<usize>| {
            let rows = picked.clone().slice([range.clone()]);
            Tensor::<B, 2>::from_inner(rows).require_grad()
        };
        // One chunk keeps its graph; several are projected again once the weights are known.
        let mut kept = None;
        let token_logps = match chunks.as_slice() {
            [only] => {
                let leaf = leaf_of(only);
                let logps = targets.logps(&self.model, leaf.clone(), only);
                let values = logps.clone().inner();
                kept = Some((leaf, logps));
                values
            }
            _ => {
                let picked = Tensor::from_inner(picked.clone());
                chunked_logps(&self.frozen(), picked, targets, &chunks).inner()
            }
        };
        let logps = targets.sum_by_sequence(token_logps)?;
        let weights = targets.spread(&weights(&logps), &self.model.device());
        let mut parts = Vec::with_capacity(chunks.len());
        for range in &chunks {
            let (leaf, logps) = kept.take().unwrap_or_else(|| {
                let leaf = leaf_of(range);
                let logps = targets.logps(&self.model, leaf.clone(), range);
                (leaf, logps)
            });
            let weighted = logps * weights.clone().slice([range.clone()]);
            let mut grads = weighted.sum().backward();
            if let Some(grad) = leaf.grad_remove(&mut grads) {
                parts.push(grad);
            }
            self.gradients.collect::<B, _>(&self.model, &mut grads);
        }
        Ok((logps, Tensor::cat(parts, 0)))
    }

    /// Whether every weight is finite.
    pub fn is_finite(&self) -> Result<bool, LearnerError> {
        gradients::all_finite(&self.model.valid())
    }

    /// One optimizer step at rate `rate` with the gradients gathered since the last one.
    ///
    /// A gradient that is not finite leaves the weights alone and is reported.
    pub fn step(&mut self, rate: f64) -> Result<StepReport, LearnerError> {
        let gradients = std::mem::take(&mut self.gradients);
        let grad_norm = gradients.norm()?;
        if !grad_norm.is_finite() {
            return Ok(StepReport {
                grad_norm,
                updated: false,
            });
        }
        // torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
        let clip = self
            .max_grad_norm
            .map(|max| max / (grad_norm + 1e-6))
            .filter(|scale| *scale < 1.0);
        self.steps += 1;
        let mut update = Update {
            gradients,
            optimizer: self.optimizer,
            state: &mut self.state,
            rate,
            clip,
            step: self.steps,
            backend: std::marker::PhantomData::<B>,
        };
        self.model = self.model.clone().map(&mut update);
        Ok(StepReport {
            grad_norm,
            updated: true,
        })
    }
}

/// Maps every parameter to its updated self.
struct Update<'a, B: AutodiffBackend> {
    gradients: GradientStore<B::InnerBackend>,
    optimizer: Optimizer,
    state: &'a mut HashMap<ParamId, ParamState<B::InnerBackend>>,
    rate: f64,
    clip: Option<f64>,
    step: usize,
    backend: std::marker::PhantomData<B>,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Update<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(grad) = self.gradients.remove(id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let grad = match self.clip {
            Some(scale) => grad * scale,
            None => grad,
        };
        let (shape, dtype) = (tensor.shape(), tensor.dtype());
        let state = self.state.entry(id).or_insert_with(|| ParamState {
            master: None,
            slots: Vec::new(),
        });
        let master = match state.master.take() {
            Some(master) => master,
            None => to_f32(tensor.inner().reshape([-1])),
        };
        let updated = self
            .optimizer
            .update(master, grad, &mut state.slots, self.rate, self.step);
        if dtype != DType::F32 {
            state.master = Some(updated.clone());
        }
        let value = from_f32(updated, dtype).reshape::<D, _>(shape);
        let value = Tensor::from_inner(value).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}
