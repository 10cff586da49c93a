//! One optimizer step over all parameters, and whether numbers are finite.

use std::sync::Arc;

use burn::module::{AutodiffModule, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use sppo_model::llama::parameters::{
    Group, ParameterMapper, ParameterTable, ParameterVisitor, map_parameters, visit_parameters,
};
use sppo_model::ops::{
    DeviceError, ModelOps, Optimizer, TrainingOps, UpdateStep, cast, to_f32, to_host,
};

use super::{Gradients, Learner, ParamState, StepReport};

impl<B: TrainingOps> Learner<B> {
    /// One optimizer step at rate `rate` with the gradients gathered since the last one.
    ///
    /// A gradient that is not finite leaves the weights alone and is reported.
    pub fn step(&mut self, rate: f64) -> Result<StepReport, DeviceError> {
        let count = self.parameters().all().len();
        let gradients = std::mem::replace(&mut self.gradients, Gradients::new(count));
        let grad_norm = gradients.norm()?;
        if !grad_norm.is_finite() {
            return Ok(StepReport {
                grad_norm,
                updated: false,
            });
        }
        // torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
        let clip = self.max_grad_norm.map(|max| max / (grad_norm + 1e-6));
        self.steps += 1;
        let mut update = Update {
            gradients,
            optimizer: self.optimizer,
            state: &mut self.state,
            step: UpdateStep {
                rate,
                number: self.steps,
                gradient_scale: clip.map_or(1.0, |scale| scale.min(1.0)),
            },
        };
        // Parameter by parameter: old and new weights are never held together as a whole.
        let model = &mut self.model;
        let table: Arc<ParameterTable> = model.parameters.clone();
        let first = |group| table.group(group).start;
        let embeddings = model.embed_tokens.clone();
        model.embed_tokens = update.map(first(Group::Embeddings), embeddings);
        let layers = std::mem::take(&mut model.layers).into_iter().enumerate();
        let layers =
            layers.map(|(i, block)| map_parameters(block, first(Group::Block(i)), &mut update));
        model.layers = layers.collect();
        let head = first(Group::Head);
        model.norm = map_parameters(model.norm.clone(), head, &mut update);
        let lm_head = model.lm_head.take();
        model.lm_head = lm_head.map(|linear| map_parameters(linear, head + 1, &mut update));
        Ok(StepReport {
            grad_norm,
            updated: true,
        })
    }

    /// Whether every trained weight is finite, and the optimizer's state.
    pub fn is_finite(&self) -> Result<bool, DeviceError> {
        let mut sums = Magnitudes {
            table: self.parameters(),
            found: Vec::new(),
        };
        visit_parameters(&self.model.valid(), 0, &mut sums);
        for state in self.state().iter().flatten() {
            let tensors = state.master.iter().chain(&state.slots);
            sums.found.extend(tensors.map(|t| magnitude(t.clone())));
        }
        let values = to_host(Tensor::cat(sums.found, 0))?;
        Ok(values.iter().all(|sum| sum.is_finite()))
    }
}

/// Maps every parameter to its updated self.
struct Update<'a, I: Backend> {
    gradients: Gradients<I>,
    optimizer: Optimizer,
    state: &'a mut [Option<ParamState<I>>],
    step: UpdateStep,
}

impl<B: AutodiffBackend<InnerBackend: ModelOps>> ParameterMapper<B>
    for Update<'_, B::InnerBackend>
{
    fn map<const D: usize>(
        &mut self,
        index: usize,
        parameter: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = parameter.consume();
        let Some(grad) = self.gradients.remove(index) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let (shape, dtype) = (tensor.shape(), tensor.dtype());
        let (master, slots) = match self.state[index].take() {
            Some(state) => (state.master, state.slots),
            None => (None, Vec::new()),
        };
        let master = match master {
            Some(master) => master,
            None => to_f32(tensor.inner().reshape([-1])),
        };
        let (updated, slots) =
            B::InnerBackend::update(&self.optimizer, self.step, master, grad, slots);
        self.state[index] = Some(ParamState {
            master: (dtype != DType::F32).then(|| updated.clone()),
            slots,
        });
        let value = cast(updated, dtype).reshape::<D, _>(shape);
        let value = Tensor::from_inner(value).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

/// A sum of magnitudes that is finite if all values are: scaled, so that it does not overflow.
fn magnitude<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, 1> {
    (to_f32(x) * 1e-20).abs().sum()
}

/// The magnitude of each trained parameter.
struct Magnitudes<'a, B: Backend> {
    table: &'a ParameterTable,
    found: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ParameterVisitor<B> for Magnitudes<'_, B> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>) {
        if self.table.all()[index].trained {
            self.found.push(magnitude(parameter.val()));
        }
    }
}
