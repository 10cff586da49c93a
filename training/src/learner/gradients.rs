//! Gradients gathered over micro-batches, by parameter.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, backend::AutodiffBackend, backend::Backend};
use sppo_model::host::is_host;
use sppo_model::llama::host_pass::Sink;
use sppo_model::nn::to_f32;

use super::{LearnerError, ParamState};
use crate::optimizer::sum_of_squares;

/// Flat f32 gradients `[n]` by parameter.
#[derive(Debug)]
pub(super) struct GradientStore<B: Backend>(HashMap<ParamId, Tensor<B, 1>>);

impl<B: Backend> Default for GradientStore<B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

/// Moves the gradients of `module`'s parameters out of `grads` to `sink`, flat and in f32.
pub(super) fn hand_on<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    grads: &mut B::Gradients,
    sink: &mut dyn Sink<B::InnerBackend>,
) {
    module.visit(&mut HandOn::<B> { sink, grads });
}

/// Gathers the gradients of the parameters that are trained.
pub(super) struct Gather<'a, B: Backend> {
    pub trained: &'a HashSet<ParamId>,
    pub store: &'a mut GradientStore<B>,
}

impl<B: Backend> Sink<B> for Gather<'_, B> {
    fn wants(&self, id: ParamId) -> bool {
        self.trained.contains(&id)
    }

    fn take(&mut self, id: ParamId, grad: Tensor<B, 1>) {
        let sum = match self.store.0.remove(&id) {
            Some(old) => old + grad,
            None => grad,
        };
        self.store.0.insert(id, sum);
    }
}

impl<I: Backend> GradientStore<I> {
    /// Takes one parameter's gradient.
    pub fn remove(&mut self, id: ParamId) -> Option<Tensor<I, 1>> {
        self.0.remove(&id)
    }

    /// Global L2 norm over all parameters, summed in f64.
    pub fn norm(&self) -> Result<f64, LearnerError> {
        if self.0.is_empty() {
            return Ok(0.0);
        }
        let on_host = self.0.values().all(|grad| is_host::<I>(&grad.device()));
        let mut squares = match on_host {
            true => {
                let squares = self.0.values().map(|grad| sum_of_squares(grad.clone()));
                squares.collect()
            }
            false => self.squares_on_device()?,
        };
        // A hash map's order changes from run to run; sorted, the sum does not.
        squares.sort_by(f64::total_cmp);
        Ok(squares.iter().sum::<f64>().sqrt())
    }

    /// Each parameter's sum of squares.
    fn squares_on_device(&self) -> Result<Vec<f64>, LearnerError> {
        // Squares could overflow f32 where gradients are large, so each tensor is scaled by its
        // largest entry first. One transfer for all.
        let mut parts = Vec::with_capacity(2 * self.0.len());
        for grad in self.0.values() {
            let largest = grad.clone().abs().max().clamp_min(f32::MIN_POSITIVE);
            let scaled = grad.clone() / largest.clone();
            parts.push(largest);
            parts.push((scaled.clone() * scaled).sum());
        }
        let values: Vec<f32> = Tensor::cat(parts, 0)
            .try_into_data()
            .map_err(|e| LearnerError::Device(e.to_string()))?
            .into_vec()
            .map_err(|e| LearnerError::Device(format!("{e:?}")))?;
        let squares = values.chunks_exact(2).map(|p| {
            let (largest, sum) = (p[0] as f64, p[1] as f64);
            largest * largest * sum
        });
        Ok(squares.collect())
    }
}

struct HandOn<'a, B: AutodiffBackend> {
    sink: &'a mut dyn Sink<B::InnerBackend>,
    grads: &'a mut B::Gradients,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for HandOn<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = param.val().grad_remove(self.grads) {
            self.sink.take(param.id, to_f32(grad.reshape([-1])));
        }
    }
}

/// Whether every parameter of `module` among `trained`, and all of `states`, is finite.
pub(super) fn all_finite<'a, B: Backend, M: Module<B>>(
    module: &M,
    trained: &HashSet<ParamId>,
    states: impl Iterator<Item = &'a ParamState<B>>,
) -> Result<bool, LearnerError> {
    let mut sums = Sums {
        trained,
        found: Vec::new(),
    };
    module.visit(&mut sums);
    for state in states {
        let tensors = state.master.iter().chain(&state.slots);
        sums.found.extend(tensors.map(|t| magnitude(t.clone())));
    }
    let values: Vec<f32> = Tensor::cat(sums.found, 0)
        .try_into_data()
        .map_err(|e| LearnerError::Device(e.to_string()))?
        .into_vec()
        .map_err(|e| LearnerError::Device(format!("{e:?}")))?;
    Ok(values.iter().all(|sum| sum.is_finite()))
}

/// A sum of magnitudes that is finite if all values are: scaled, so that it does not overflow.
fn magnitude<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    (to_f32(x) * 1e-20).abs().sum()
}

/// The magnitude of each parameter.
struct Sums<'a, B: Backend> {
    trained: &'a HashSet<ParamId>,
    found: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<B> for Sums<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if self.trained.contains(&param.id) {
            self.found.push(magnitude(param.val()));
        }
    }
}
