//! One optimizer step over all parameters, and whether numbers are finite.

use burn::module::{AutodiffModule, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use sppo_model::llama::Llama;
use sppo_model::llama::parameters::{
    Group, ParameterMapper, ParameterTable, ParameterVisitor, map_parameters, visit_parameters,
};
use sppo_model::ops::{DeviceError, ModelOps, Optimizer, TrainingOps, UpdateStep, to_f32, to_host};

use super::exchange::Gathering;
use super::{Gradients, Learner, ParamState, ShardedGroup, StepReport};
use crate::cluster::{any, doing};

impl<B: TrainingOps> Learner<B> {
    /// One optimizer step at rate `rate` with the gradients gathered since the last one. Collective:
    /// each rank updates what it owns, and all get all new weights.
    ///
    /// A gradient that is not finite leaves the weights alone and is reported.
    pub fn step(&mut self, rate: f64) -> Result<StepReport, DeviceError> {
        doing("update");
        let grad_norm = self.gradients.norm()?;
        if !grad_norm.is_finite() {
            self.gradients.clear();
            return Ok(StepReport {
                grad_norm,
                updated: false,
            });
        }
        // torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm.
        let clip = self.max_grad_norm.map(|max| max / (grad_norm + 1e-6));
        self.steps += 1;
        let step = UpdateStep {
            rate,
            number: self.steps,
            gradient_scale: clip.map_or(1.0, |scale| scale.min(1.0)),
        };
        match self.world.size() {
            1 => self.update_whole(step),
            _ => self.update_shards(step)?,
        }
        Ok(StepReport {
            grad_norm,
            updated: true,
        })
    }

    /// Parameter by parameter: old and new weights are never held together as a whole.
    fn update_whole(&mut self, step: UpdateStep) {
        let mut update = Update {
            gradients: &mut self.gradients,
            optimizer: self.optimizer,
            state: &mut self.state,
            step,
        };
        let groups = self.model.parameters.groups();
        for group in groups {
            map_group(&mut self.model, group, &mut update);
        }
    }

    /// Group by group; the weights of one are on their way while the next is updated.
    fn update_shards(&mut self, step: UpdateStep) -> Result<(), DeviceError> {
        let device = self.model.device();
        let mut before: Option<(ShardedGroup, Gathering<B::InnerBackend>)> = None;
        for group in self.gradients.shards().groups().to_vec() {
            let mut own = OwnUpdate {
                gradients: &mut self.gradients,
                optimizer: self.optimizer,
                state: &mut self.state,
                step,
                updated: Vec::new(),
                dtype: DType::F32,
            };
            visit_group(&self.model.valid(), group.group, &mut own);
            let OwnUpdate { updated, dtype, .. } = own;
            let exchange = self.gradients.exchange();
            let gathering = exchange.all_gather(&group, updated, dtype, &device)?;
            if let Some((group, gathering)) = before.replace((group, gathering)) {
                self.take_weights(&group, gathering, &device);
            }
        }
        if let Some((group, gathering)) = before {
            self.take_weights(&group, gathering, &device);
        }
        Ok(())
    }

    /// Waits for a group's new weights and puts them into the model.
    fn take_weights(
        &mut self,
        group: &ShardedGroup,
        gathering: Gathering<B::InnerBackend>,
        device: &B::Device,
    ) {
        let exchange = self.gradients.exchange();
        let weights = exchange.gathered(group, gathering, device);
        let mut replace = Replace { group, weights };
        map_group(&mut self.model, group.group, &mut replace);
    }

    /// Whether every trained weight is finite, and the optimizer's state. Collective.
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
        let finite = values.iter().all(|sum| sum.is_finite());
        Ok(!any(self.world, !finite))
    }
}

/// Goes through one group of a model's parameters.
fn visit_group<B: Backend>(model: &Llama<B>, group: Group, visitor: &mut impl ParameterVisitor<B>) {
    let first = model.parameters.group(group).start;
    match group {
        Group::Embeddings => visitor.visit(first, &model.embed_tokens),
        Group::Block(i) => visit_parameters(&model.layers[i], first, visitor),
        Group::Head => {
            visit_parameters(&model.norm, first, visitor);
            if let Some(linear) = &model.lm_head {
                visit_parameters(linear, first + 1, visitor);
            }
        }
    }
}

/// The same, changing them.
fn map_group<B: Backend>(model: &mut Llama<B>, group: Group, mapper: &mut impl ParameterMapper<B>) {
    let first = model.parameters.group(group).start;
    match group {
        Group::Embeddings => {
            let embeddings = model.embed_tokens.clone();
            model.embed_tokens = mapper.map(first, embeddings);
        }
        Group::Block(i) => {
            let block = model.layers.remove(i);
            model.layers.insert(i, map_parameters(block, first, mapper));
        }
        Group::Head => {
            model.norm = map_parameters(model.norm.clone(), first, mapper);
            let lm_head = model.lm_head.take();
            model.lm_head = lm_head.map(|linear| map_parameters(linear, first + 1, mapper));
        }
    }
}

/// Maps every parameter to its updated self.
struct Update<'a, I: Backend> {
    gradients: &'a mut Gradients<I>,
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
        let state = self.state[index].take();
        let weights = || tensor.inner().reshape([-1]);
        let (state, value) = updated(&self.optimizer, self.step, state, weights, dtype, grad);
        self.state[index] = Some(state);
        let value = Tensor::from_inner(value.reshape::<D, _>(shape)).require_grad();
        Param::from_mapped_value(id, value, mapper)
    }
}

/// Updates what this rank owns of each parameter; the model stays as it is.
struct OwnUpdate<'a, I: Backend> {
    gradients: &'a mut Gradients<I>,
    optimizer: Optimizer,
    state: &'a mut [Option<ParamState<I>>],
    step: UpdateStep,
    /// New weights, flat, in their order and dtype.
    updated: Vec<Tensor<I, 1>>,
    dtype: DType,
}

impl<I: ModelOps> ParameterVisitor<I> for OwnUpdate<'_, I> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<I, D>>) {
        let tensor = parameter.val();
        let dtype = tensor.dtype();
        let own = self.gradients.shards().own(index);
        // Of one group, all that is trained has one dtype.
        if self.gradients.is_trained(index) {
            self.dtype = dtype;
        }
        let Some(grad) = self.gradients.remove(index) else {
            return;
        };
        let state = self.state[index].take();
        let weights = || tensor.reshape([-1]).slice(own);
        let (state, value) = updated(&self.optimizer, self.step, state, weights, dtype, grad);
        self.state[index] = Some(state);
        self.updated.push(value);
    }
}

/// One update of flat weights: the new state, and the weights in their dtype.
fn updated<I: ModelOps>(
    optimizer: &Optimizer,
    step: UpdateStep,
    state: Option<ParamState<I>>,
    weights: impl FnOnce() -> Tensor<I, 1>,
    dtype: DType,
    grad: Tensor<I, 1>,
) -> (ParamState<I>, Tensor<I, 1>) {
    let (master, slots) = match state {
        Some(state) => (state.master, state.slots),
        None => (None, Vec::new()),
    };
    let master = match master {
        Some(master) => master,
        None => to_f32(weights()),
    };
    let updated = I::update(optimizer, step, master, grad, slots, dtype);
    let (master, weights) = match updated.rounded {
        Some(rounded) => (Some(updated.weights), rounded),
        None => (None, updated.weights),
    };
    let slots = updated.slots;
    (ParamState { master, slots }, weights)
}

/// Puts weights, flat, into the parameters of a group.
struct Replace<'a, I: Backend> {
    group: &'a ShardedGroup,
    weights: Vec<Tensor<I, 1>>,
}

impl<B: AutodiffBackend<InnerBackend: ModelOps>> ParameterMapper<B>
    for Replace<'_, B::InnerBackend>
{
    fn map<const D: usize>(
        &mut self,
        index: usize,
        parameter: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        let mut parameters = self.group.parameters.iter();
        let Some(place) = parameters.position(|(i, _)| *i == index) else {
            return parameter;
        };
        let (id, tensor, mapper) = parameter.consume();
        let value = self.weights[place].clone();
        let value = Tensor::from_inner(value.reshape::<D, _>(tensor.shape())).require_grad();
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
