//! One optimizer step over all parameters, and whether numbers are finite.

use burn::module::{AutodiffModule, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use sppo_model::llama::Llama;
use sppo_model::llama::parameters::{
    Group, ParameterMapper, ParameterTable, ParameterVisitor, map_parameters, visit_parameters,
};
use sppo_model::ops::{
    DeviceError, ModelOps, Optimizer, TrainingOps, UpdateStep, Updated, Updating, to_f32, to_host,
};

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

    /// Group by group: no more is held twice.
    fn update_whole(&mut self, step: UpdateStep) {
        for group in self.model.parameters.groups() {
            let mut taken = Taken::new(&mut self.gradients, &mut self.state);
            map_group(&mut self.model, group, &mut taken);
            let updated = taken.update(&self.optimizer, step, &mut self.non_finite).1;
            let mut put_in = PutIn { updated };
            map_group(&mut self.model, group, &mut put_in);
        }
    }

    /// Group by group; the weights of one are on their way while the next is updated.
    fn update_shards(&mut self, step: UpdateStep) -> Result<(), DeviceError> {
        let device = self.model.device();
        let mut before: Option<(ShardedGroup, Gathering<B::InnerBackend>)> = None;
        for group in self.gradients.shards().groups().to_vec() {
            let mut taken = Taken::new(&mut self.gradients, &mut self.state);
            visit_group(&self.model.valid(), group.group, &mut taken);
            let (dtype, updated) = taken.update(&self.optimizer, step, &mut self.non_finite);
            let updated = updated.into_iter().map(|(_, weights)| weights).collect();
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
    ///
    /// Updates that look at what they write have the answer; otherwise it takes a pass over all.
    pub fn is_finite(&self) -> Result<bool, DeviceError> {
        let finite = match &self.non_finite {
            // What is not finite never becomes finite again.
            Some(found) => to_host(found.clone())? == [0.0],
            None => self.all_finite()?,
        };
        Ok(!any(self.world, !finite))
    }

    fn all_finite(&self) -> Result<bool, DeviceError> {
        let mut weights = TrainedWeights {
            table: self.parameters(),
            have_masters: self.steps > 0,
            found: Vec::new(),
            finite: Ok(true),
        };
        visit_parameters(&self.model.valid(), 0, &mut weights);
        let state = self.state().iter().flatten();
        let state = state.flat_map(|state| state.master.iter().chain(&state.slots));
        weights.found.extend(state.cloned());
        Ok(weights.finite? && all_finite(weights.found)?)
    }
}

/// Whether all elements of f32 tensors are finite: their squares, scaled, are then.
fn all_finite<B: ModelOps>(tensors: Vec<Tensor<B, 1>>) -> Result<bool, DeviceError> {
    let sums = B::sums_of_squares(tensors)?;
    Ok(sums.iter().flatten().all(|sum| sum.is_finite()))
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

/// What is to be updated of a group's parameters, taken out of where it was.
struct Taken<'a, I: Backend> {
    gradients: &'a mut Gradients<I>,
    state: &'a mut [Option<ParamState<I>>],
    /// By place in the table.
    found: Vec<(usize, Updating<I>)>,
    /// Of one group, all that is trained has one dtype.
    dtype: DType,
}

impl<'a, I: ModelOps> Taken<'a, I> {
    fn new(gradients: &'a mut Gradients<I>, state: &'a mut [Option<ParamState<I>>]) -> Self {
        Self {
            gradients,
            state,
            found: Vec::new(),
            dtype: DType::F32,
        }
    }

    /// Takes the state of a parameter; its weights, flat, are read where no master stands for them.
    fn add(&mut self, index: usize, grad: Tensor<I, 1>, weights: impl FnOnce() -> Tensor<I, 1>) {
        let (master, slots) = match self.state[index].take() {
            Some(state) => (state.master, state.slots),
            None => (None, Vec::new()),
        };
        let updating = Updating {
            weights: master.unwrap_or_else(|| to_f32(weights())),
            grad,
            slots,
        };
        self.found.push((index, updating));
    }

    /// One update of all: the states are put back, the weights given, flat and in their dtype, by
    /// place in the table.
    fn update(
        self,
        optimizer: &Optimizer,
        step: UpdateStep,
        non_finite: &mut Option<Tensor<I, 1>>,
    ) -> (DType, Vec<(usize, Tensor<I, 1>)>) {
        let (places, found): (Vec<usize>, Vec<_>) = self.found.into_iter().unzip();
        let updated = I::update(optimizer, step, found, self.dtype, non_finite);
        let put_back = |(index, updated): (usize, Updated<I>)| {
            let (master, weights) = match updated.rounded {
                Some(rounded) => (Some(updated.weights), rounded),
                None => (None, updated.weights),
            };
            let slots = updated.slots;
            self.state[index] = Some(ParamState { master, slots });
            (index, weights)
        };
        let weights = places.into_iter().zip(updated).map(put_back);
        (self.dtype, weights.collect())
    }
}

/// Whole parameters; the shape of each stays with what stands in for it.
impl<B: AutodiffBackend<InnerBackend: ModelOps>> ParameterMapper<B> for Taken<'_, B::InnerBackend> {
    fn map<const D: usize>(
        &mut self,
        index: usize,
        parameter: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = parameter.consume();
        let Some(grad) = self.gradients.remove(index) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let (shape, device) = (tensor.shape(), tensor.device());
        let dtype = tensor.dtype();
        self.dtype = dtype;
        self.add(index, grad, || tensor.inner().reshape([-1]));
        // The old weights are nobody's any more: they are changed in place.
        let stand_in = Tensor::<B, D>::empty([1; D], (&device, dtype)).expand::<D, _>(shape);
        Param::from_mapped_value(id, stand_in, mapper)
    }
}

/// What this rank owns of each parameter; the model stays as it is.
impl<I: ModelOps> ParameterVisitor<I> for Taken<'_, I> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<I, D>>) {
        let (tensor, own) = (parameter.val(), self.gradients.shards().own(index));
        // Also where this rank owns nothing: it gets all weights.
        if self.gradients.is_trained(index) {
            self.dtype = tensor.dtype();
        }
        if let Some(grad) = self.gradients.remove(index) {
            self.add(index, grad, || tensor.reshape([-1]).slice(own));
        }
    }
}

/// Puts new weights, flat, by place in the table, into whole parameters.
struct PutIn<I: Backend> {
    updated: Vec<(usize, Tensor<I, 1>)>,
}

impl<B: AutodiffBackend<InnerBackend: ModelOps>> ParameterMapper<B> for PutIn<B::InnerBackend> {
    fn map<const D: usize>(
        &mut self,
        index: usize,
        parameter: Param<Tensor<B, D>>,
    ) -> Param<Tensor<B, D>> {
        let Some(at) = self.updated.iter().position(|(place, _)| *place == index) else {
            return parameter;
        };
        let (id, stand_in, mapper) = parameter.consume();
        let (_, value) = self.updated.swap_remove(at);
        let value = value.reshape::<D, _>(stand_in.shape());
        Param::from_mapped_value(id, Tensor::from_inner(value).require_grad(), mapper)
    }
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

/// Trained parameters whose numbers are to be looked at.
struct TrainedWeights<'a, B: Backend> {
    table: &'a ParameterTable,
    /// What is not f32 is a master, rounded, then: its owner looks at that.
    have_masters: bool,
    /// Those in f32, flat.
    found: Vec<Tensor<B, 1>>,
    /// Whether the others are finite.
    finite: Result<bool, DeviceError>,
}

impl<B: ModelOps> ParameterVisitor<B> for TrainedWeights<'_, B> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>) {
        if !self.table.all()[index].trained {
            return;
        }
        let weights = parameter.val().reshape([-1]);
        if weights.dtype() == DType::F32 {
            self.found.push(weights);
        } else if !self.have_masters && matches!(self.finite, Ok(true)) {
            // One by one: what is cast is as large as the weights.
            self.finite = all_finite(vec![to_f32(weights)]);
        }
    }
}
