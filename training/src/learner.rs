//! The learner: a Llama, its optimizer, and gradients of summed response log-probabilities.
//!
//! A loss only has to say what one unit of each sequence's log-probability is worth; preference
//! losses and the cross-entropy of supervised fine-tuning share everything else.

mod gradients;
mod host;
mod logps;
#[cfg(test)]
mod nash;
#[cfg(test)]
mod oracle;
mod pass;

use std::collections::{HashMap, HashSet};

use burn::module::{AutodiffModule, Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Tensor, backend::AutodiffBackend, backend::Backend};
use sppo_model::llama::Llama;
use sppo_model::llama::hf::trained_parameters;
use sppo_model::nn::{from_f32, to_f32};

use crate::config::Recompute;
use crate::optimizer::Optimizer;
use crate::tokenise::TokenisedSequence;
use gradients::{Gather, GradientStore};
use host::{HostPass, fits};
pub use logps::{chunk_rows, sequence_logps};
use pass::{Pass, frozen};

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
    trained: HashSet<ParamId>,
    steps: usize,
}

impl<B: AutodiffBackend> Learner<B> {
    /// A learner before its first step; it trains the parameters that require gradients.
    pub fn new(
        model: Llama<B>,
        optimizer: Optimizer,
        recompute: Recompute,
        max_grad_norm: Option<f64>,
    ) -> Self {
        let trained = trained_parameters(&model).into_iter();
        Self {
            trained: trained.map(|(id, _)| id).collect(),
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
        match fits(&self.valid()) {
            true => sequence_logps(&self.valid(), sequences),
            false => sequence_logps(&frozen(&self.model), sequences),
        }
    }

    /// Adds the gradient of Σ wᵢ · logpᵢ, where `weights` maps the summed response
    /// log-probabilities to the wᵢ; gives the log-probabilities.
    pub fn backward(
        &mut self,
        sequences: &[&TokenisedSequence],
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, LearnerError> {
        let mut gather = Gather {
            trained: &self.trained,
            store: &mut self.gradients,
        };
        let inner = self.model.valid();
        if fits(&inner) {
            let pass = HostPass::forward(&inner, self.recompute, sequences);
            let logps = pass.logps.clone();
            pass.backward(&inner, &weights(&logps), &mut gather);
            return Ok(logps);
        }
        let pass = Pass::forward(&self.model, self.recompute, sequences)?;
        let logps = pass.logps.clone();
        pass.backward(&self.model, &weights(&logps), &mut gather);
        Ok(logps)
    }

    /// Global L2 norm of the gradients gathered since the last step.
    pub fn grad_norm(&self) -> Result<f64, LearnerError> {
        self.gradients.norm()
    }

    /// Whether every trained weight is finite, and the optimizer's state.
    pub fn is_finite(&self) -> Result<bool, LearnerError> {
        gradients::all_finite(&self.model.valid(), &self.trained, self.state.values())
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
        // Parameter by parameter: old and new weights are never held together as a whole.
        let layers = std::mem::take(&mut self.model.layers);
        let layers = layers.into_iter().map(|block| block.map(&mut update));
        self.model.layers = layers.collect();
        let model = &mut self.model;
        model.embed_tokens = update.map_float(model.embed_tokens.clone());
        model.norm = model.norm.clone().map(&mut update);
        model.lm_head = model.lm_head.take().map(|head| head.map(&mut update));
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
