//! The learner: a Llama, its optimizer, and gradients of summed response log-probabilities.
//!
//! A loss only has to say what one unit of each sequence's log-probability is worth; preference
//! losses and the cross-entropy of supervised fine-tuning share everything else.

mod exchange;
mod gradients;
mod logps;
#[cfg(test)]
mod oracle;
mod pass;
mod shards;
#[cfg(test)]
mod tests;
mod update;

use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::Backend};
use sppo_model::llama::Llama;
use sppo_model::llama::parameters::ParameterTable;
use sppo_model::ops::{DeviceError, Optimizer, TrainingOps};

use crate::cluster::SingleProcess;
use crate::config::Recompute;
use crate::tokenise::TokenisedSequence;
pub use exchange::{Traffic, World};
pub use gradients::{GradientReceiver, Gradients};
pub use logps::{TokenSums, chunk_rows, sequence_logps};
use pass::Pass;
pub use shards::{ShardedGroup, Shards};

/// What one optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// False where the gradient was not finite and the weights were left alone.
    pub updated: bool,
}

/// The optimizer state of what this rank owns of a parameter.
#[derive(Clone, Debug)]
pub struct ParamState<B: Backend> {
    /// f32 master weights `[n]`, where the parameter itself has another dtype.
    pub master: Option<Tensor<B, 1>>,
    /// The optimizer's own tensors `[n]`, f32.
    pub slots: Vec<Tensor<B, 1>>,
}

/// A model in training: whole on every rank; the optimizer's state and the summed gradients lie
/// with their owners ([`Shards`]).
pub struct Learner<B: TrainingOps> {
    model: Llama<B>,
    optimizer: Optimizer,
    recompute: Recompute,
    max_grad_norm: Option<f64>,
    /// By place in the model's table; none before the first step, and for what is not trained.
    state: Vec<Option<ParamState<B::InnerBackend>>>,
    /// f32 `[1]`, above 0 where an update has left what is not finite; none where none was taken
    /// here or the backend does not look.
    non_finite: Option<Tensor<B::InnerBackend, 1>>,
    gradients: Gradients<B::InnerBackend>,
    steps: usize,
    world: World,
}

impl<B: TrainingOps> Learner<B> {
    /// A learner before its first step; it trains the parameters that the model's table says.
    pub fn new(
        model: Llama<B>,
        optimizer: Optimizer,
        recompute: Recompute,
        max_grad_norm: Option<f64>,
    ) -> Self {
        let world: World = &SingleProcess;
        let count = model.parameters.all().len();
        let gradients = Gradients::new(model.parameters.clone(), world, &model.device());
        Self {
            model,
            optimizer,
            recompute,
            max_grad_norm,
            state: (0..count).map(|_| None).collect(),
            non_finite: None,
            gradients,
            steps: 0,
            world,
        }
    }

    /// The same as one rank of many, which train one model and do the same at the same time.
    pub fn across(mut self, world: World) -> Self {
        let table = self.model.parameters.clone();
        self.gradients = Gradients::new(table, world, &self.model.device());
        self.world = world;
        self
    }

    /// The processes that train together.
    pub fn world(&self) -> World {
        self.world
    }

    /// What each rank owns.
    pub fn shards(&self) -> &Shards {
        self.gradients.shards()
    }

    /// Time and bytes of exchanges since this was last asked.
    pub fn take_traffic(&mut self) -> Traffic {
        self.gradients.take_traffic()
    }

    /// The model as it is now.
    pub fn model(&self) -> &Llama<B> {
        &self.model
    }

    /// The table of the model's parameters.
    pub fn parameters(&self) -> &ParameterTable {
        &self.model.parameters
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
        self.gradients.clear();
    }

    /// Optimizer state by place in the table.
    pub fn state(&self) -> &[Option<ParamState<B::InnerBackend>>] {
        &self.state
    }

    /// Goes on from a saved state, one entry a parameter; `model` given to `new` must be the one
    /// saved with it.
    pub fn restore(&mut self, steps: usize, state: Vec<Option<ParamState<B::InnerBackend>>>) {
        debug_assert_eq!(state.len(), self.state.len());
        self.steps = steps;
        self.state = state;
        self.non_finite = None;
    }

    /// Summed response log-probabilities of `sequences`, without gradients.
    pub fn logps(&self, sequences: &[&TokenisedSequence]) -> Result<Vec<f64>, DeviceError> {
        sequence_logps(&self.valid(), sequences)
    }

    /// A round begins, in which each of the first `parts` ranks computes one part of the step
    /// ([`Self::backward`]) and the others none ([`Self::idle`]).
    pub fn begin_round(&mut self, parts: usize) {
        self.gradients.begin_round(parts);
    }

    /// Takes part in a round without a part of its own.
    pub fn idle(&mut self) {
        self.gradients.idle();
    }

    /// Adds the gradient of Σ wᵢ · logpᵢ, where `weights` maps the summed response
    /// log-probabilities to the wᵢ; gives the log-probabilities.
    pub fn backward(
        &mut self,
        sequences: &[&TokenisedSequence],
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<Vec<f64>, DeviceError> {
        Ok(self.backward_with_tokens(sequences, weights, false)?.0)
    }

    /// The same; with `measure` also what else the logits tell of each sequence.
    pub fn backward_with_tokens(
        &mut self,
        sequences: &[&TokenisedSequence],
        weights: impl FnOnce(&[f64]) -> Vec<f64>,
        measure: bool,
    ) -> Result<(Vec<f64>, Option<Vec<TokenSums>>), DeviceError> {
        let pass = Pass::forward(&self.model, self.recompute, sequences, measure)?;
        let (logps, token_sums) = (pass.logps.clone(), pass.token_sums.clone());
        pass.backward(&self.model, &weights(&logps), &mut self.gradients);
        Ok((logps, token_sums))
    }

    /// Global L2 norm of the gradients gathered since the last step. Collective.
    pub fn grad_norm(&mut self) -> Result<f64, DeviceError> {
        self.gradients.norm()
    }
}
