//! Gradients gathered over micro-batches, by parameter.

use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, backend::AutodiffBackend, backend::Backend};
use sppo_model::nn::to_f32;

use super::{LearnerError, ParamState};

/// Flat f32 gradients `[n]` by parameter.
#[derive(Debug)]
pub(super) struct GradientStore<B: Backend>(HashMap<ParamId, Tensor<B, 1>>);

impl<B: Backend> Default for GradientStore<B> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<I: Backend> GradientStore<I> {
    /// Moves the gradients of `module`'s parameters out of `grads` and adds them.
    pub fn collect<B, M>(&mut self, module: &M, grads: &mut B::Gradients)
    where
        B: AutodiffBackend<InnerBackend = I>,
        M: Module<B>,
    {
        module.visit(&mut Collector::<B> { store: self, grads });
    }

    /// Adds one parameter's flat gradient.
    pub fn add(&mut self, id: ParamId, grad: Tensor<I, 1>) {
        let sum = match self.0.remove(&id) {
            Some(old) => old + grad,
            None => grad,
        };
        self.0.insert(id, sum);
    }

    /// Takes one parameter's gradient.
    pub fn remove(&mut self, id: ParamId) -> Option<Tensor<I, 1>> {
        self.0.remove(&id)
    }

    /// Global L2 norm over all parameters, summed in f64.
    pub fn norm(&self) -> Result<f64, LearnerError> {
        if self.0.is_empty() {
            return Ok(0.0);
        }
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
        // A hash map's order changes from run to run; sorted, the sum does not.
        let mut squares: Vec<f64> = squares.collect();
        squares.sort_by(f64::total_cmp);
        Ok(squares.iter().sum::<f64>().sqrt())
    }
}

struct Collector<'a, B: AutodiffBackend> {
    store: &'a mut GradientStore<B::InnerBackend>,
    grads: &'a mut B::Gradients,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collector<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = param.val().grad_remove(self.grads) {
            self.store.add(param.id, to_f32(grad.reshape([-1])));
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
