//! Gradients gathered over parts of a batch, by place in the table of parameters.

use std::sync::Arc;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::AutodiffBackend, backend::Backend};
use sppo_model::llama::parameters::{Group, ParameterTable, ParameterVisitor, visit_parameters};
use sppo_model::ops::{DeviceError, GRAIN, ModelOps, to_f32};

use super::exchange::{Exchange, Received, Traffic, World, from_slice};
use super::shards::Shards;
use crate::cluster::{doing, gather_f64};

/// Takes the gradients of a backward pass as they come.
pub trait GradientReceiver<B: Backend> {
    /// Adds a gradient, f32 `[n]`, to that of the parameter at `index` of the table.
    fn take(&mut self, index: usize, grad: Tensor<B, 1>);

    /// Nothing more comes for the parameters of `group` in this pass: the head's come first, the
    /// embeddings' last.
    fn done(&mut self, group: Group);
}

/// Sums of gradients over the parts of a step, f32 `[n]` each; of what this rank owns.
///
/// One part's gradients are added up by themselves (a projection's come in chunks, tied embeddings'
/// twice) and then to the sum, in the order of the parts, whichever rank computed them: so the sum
/// has the same bits for any number of ranks.
pub struct Gradients<B: Backend> {
    table: Arc<ParameterTable>,
    shards: Shards,
    /// Of the part under way, by place in the table.
    part: Vec<Option<Tensor<B, 1>>>,
    /// By place in the table.
    sums: Vec<Option<Tensor<B, 1>>>,
    exchange: Exchange<B>,
    device: B::Device,
}

impl<B: ModelOps> Gradients<B> {
    /// None yet.
    pub fn new(table: Arc<ParameterTable>, world: World, device: &B::Device) -> Self {
        let none = || (0..table.all().len()).map(|_| None).collect();
        Self {
            shards: Shards::new(&table, world.rank(), world.size()),
            part: none(),
            sums: none(),
            exchange: Exchange::new(world),
            device: device.clone(),
            table,
        }
    }

    /// What each rank owns.
    pub fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Whether a parameter is trained, by its place in the table.
    pub fn is_trained(&self, index: usize) -> bool {
        self.table.all()[index].trained
    }

    /// Brings tensors from rank to rank.
    pub(super) fn exchange(&mut self) -> &mut Exchange<B> {
        &mut self.exchange
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.finish();
        self.part.iter_mut().for_each(|part| *part = None);
        self.sums.iter_mut().for_each(|sum| *sum = None);
    }

    /// Takes out the summed gradient of what this rank owns of a parameter, where there is one.
    pub fn remove(&mut self, index: usize) -> Option<Tensor<B, 1>> {
        self.sums.get_mut(index)?.take()
    }

    /// Of the passes that come next, one a rank, the first `parts` ranks have one.
    pub fn begin_round(&mut self, parts: usize) {
        self.exchange.parts = parts;
    }

    /// Takes part in a round without a pass of its own.
    pub fn idle(&mut self) {
        let groups: Vec<Group> = self.shards.groups().iter().map(|g| g.group).collect();
        groups.into_iter().rev().for_each(|group| self.done(group));
    }

    /// Waits for what is under way between ranks.
    pub fn finish(&mut self) {
        while self.receive() {}
    }

    /// Time and bytes of exchanges since this was last asked.
    pub fn take_traffic(&mut self) -> Traffic {
        std::mem::take(&mut self.exchange.traffic)
    }

    /// Adds the exchange that was begun first; false where none is under way.
    fn receive(&mut self) -> bool {
        let Some((group, received)) = self.exchange.receive() else {
            return false;
        };
        let Some(group) = self.shards.group(group).cloned() else {
            return true;
        };
        let rank = self.exchange.world.rank();
        let (own, values) = match received {
            Received::Slices { own, values } => (own, values),
            Received::Sum(sum) => {
                let mut next = 0;
                for (index, part) in group.parts(rank) {
                    let behind = next + part.len();
                    self.add(index, sum.clone().slice(next..behind));
                    next = behind;
                }
                return true;
            }
        };
        for mut rest in values.chunks_exact(own.max(1)) {
            for (index, part) in group.parts(rank) {
                let (values, behind) = rest.split_at(part.len());
                rest = behind;
                self.add(index, from_slice(values, DType::F32, &self.device));
            }
        }
        true
    }

    fn add(&mut self, index: usize, grad: Tensor<B, 1>) {
        add_to(&mut self.sums, index, grad);
    }

    /// Global L2 norm over all parameters: sums of squares by chunk, added in f64 in the order of
    /// the table. Collective.
    pub fn norm(&mut self) -> Result<f64, DeviceError> {
        self.finish();
        if let Some(error) = self.exchange.failed.take() {
            return Err(error);
        }
        let all = self.sums.iter().flatten().cloned().collect();
        let own = B::sums_of_squares(all)?.concat();
        let world = self.exchange.world;
        let mut of_ranks: Vec<_> = gather_f64(world, &own)
            .into_iter()
            .map(Vec::into_iter)
            .collect();
        let mut squares = 0.0;
        for group in self.shards.groups() {
            for (_, range) in &group.parameters {
                let mut of_parameter = 0.0;
                for (rank, chunks) in of_ranks.iter_mut().enumerate() {
                    let own = group.part_of(range, rank).len().div_ceil(GRAIN);
                    of_parameter = chunks.by_ref().take(own).fold(of_parameter, |a, b| a + b);
                }
                squares += of_parameter;
            }
        }
        Ok(f64::sqrt(squares))
    }
}

fn add_to<B: Backend>(sums: &mut [Option<Tensor<B, 1>>], index: usize, grad: Tensor<B, 1>) {
    if let Some(sum) = sums.get_mut(index) {
        *sum = Some(match sum.take() {
            Some(sum) => sum + grad,
            None => grad,
        });
    }
}

impl<B: ModelOps> GradientReceiver<B> for Gradients<B> {
    fn take(&mut self, index: usize, grad: Tensor<B, 1>) {
        let in_block = matches!(self.table.all()[index].group, Group::Block(_));
        // Nothing more comes for it in this part, and nobody else has any.
        match in_block && self.exchange.world.size() == 1 {
            true => self.add(index, grad),
            false => add_to(&mut self.part, index, grad),
        }
    }

    fn done(&mut self, group: Group) {
        doing(format!("{group} backward"));
        let Some(sharded) = self.shards.group(group).cloned() else {
            return;
        };
        let part: Vec<_> = sharded
            .parameters
            .iter()
            .map(|(index, _)| self.part[*index].take())
            .collect();
        if self.exchange.world.size() == 1 {
            for ((index, _), grad) in sharded.parameters.iter().zip(part) {
                if let Some(grad) = grad {
                    self.add(*index, grad);
                }
            }
            return;
        }
        self.exchange.start(&sharded, part, &self.device);
        while self.exchange.is_full() {
            self.receive();
        }
    }
}

/// Moves the gradients of a module's parameters, the first of which is number `first` of the table,
/// out of `grads` to `receiver`, flat and in f32.
pub(super) fn hand_on<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    first: usize,
    grads: &mut B::Gradients,
    receiver: &mut dyn GradientReceiver<B::InnerBackend>,
) {
    visit_parameters(module, first, &mut HandOn::<B> { grads, receiver });
}

struct HandOn<'a, B: AutodiffBackend> {
    grads: &'a mut B::Gradients,
    receiver: &'a mut dyn GradientReceiver<B::InnerBackend>,
}

impl<B: AutodiffBackend> ParameterVisitor<B> for HandOn<'_, B> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>) {
        if let Some(grad) = parameter.val().grad_remove(self.grads) {
            self.receiver.take(index, to_f32(grad.reshape([-1])));
        }
    }
}
