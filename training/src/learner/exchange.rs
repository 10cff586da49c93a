//! Gradients and weights on their way between ranks, a group of the table at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Element, Tensor, TensorData, backend::Backend};
use half::bf16;
use half::vec::{HalfBitsVecExt, HalfFloatVecExt};
use sppo_model::llama::parameters::Group;
use sppo_model::ops::{DeviceError, ModelOps, to_host};

use super::shards::ShardedGroup;
use crate::cluster::{Arriving, Communicator, DeviceTransport, Transfer, transport};

/// The processes of the job.
pub type World = &'static dyn Communicator;

/// What exchanges took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Sent to other ranks.
    pub bytes: u64,
    /// Spent in exchanges; waiting for slower ranks is part of it.
    pub seconds: f64,
}

/// Groups of gradients under way to their owners.
pub(super) struct Exchange<B: Backend> {
    pub world: World,
    /// Ranks that have a part in this round, which are the first ones.
    pub parts: usize,
    pub traffic: Traffic,
    /// What went wrong while a backward pass handed on its gradients.
    pub failed: Option<DeviceError>,
    /// How tensors go from device to device, where they do.
    pub transport: Option<Arc<dyn DeviceTransport<B>>>,
    under_way: VecDeque<(Group, UnderWay<B>)>,
}

enum UnderWay<B: Backend> {
    Host {
        /// What each sender's slice comes to.
        own: usize,
        transfer: Box<dyn Transfer<f32>>,
    },
    Device(Arriving<B>),
}

/// What this rank owns of a group.
pub(super) enum Received<B: Backend> {
    /// The slices of the parts, in their order.
    Slices {
        /// How long each is.
        own: usize,
        values: Vec<f32>,
    },
    /// The sum of all parts, with zeros behind it up to the longest shard.
    Sum(Tensor<B, 1>),
}

/// Groups whose buffers are there at a time; the next block is computed meanwhile.
const MOST: usize = 2;

impl<B: ModelOps> Exchange<B> {
    pub fn new(world: World) -> Self {
        Self {
            world,
            parts: world.size(),
            traffic: Traffic::default(),
            failed: None,
            transport: transport::<B>().filter(|_| world.size() > 1),
            under_way: VecDeque::new(),
        }
    }

    pub fn is_full(&self) -> bool {
        self.under_way.len() >= MOST
    }

    /// Sends a group's gradients to their owners; none where this rank has no part.
    pub fn start(
        &mut self,
        group: &ShardedGroup,
        part: Vec<Option<Tensor<B, 1>>>,
        device: &B::Device,
    ) {
        let begun = Instant::now();
        let under_way = match self.transport.clone() {
            Some(transport) => self.on_device(&*transport, group, part, device),
            None => self.on_host(group, part),
        };
        self.under_way.push_back((group.group, under_way));
        self.traffic.seconds += begun.elapsed().as_secs_f64();
    }

    fn on_host(&mut self, group: &ShardedGroup, part: Vec<Option<Tensor<B, 1>>>) -> UnderWay<B> {
        for (_, under_way) in &mut self.under_way {
            if let UnderWay::Host { transfer, .. } = under_way {
                transfer.progress();
            }
        }
        let sizes = group.sizes();
        let has_part = self.world.rank() < self.parts;
        let (send, to) = match has_part {
            true => (self.flat(group, part), sizes.clone()),
            false => (Vec::new(), vec![0; sizes.len()]),
        };
        let own = sizes[self.world.rank()];
        let from: Vec<usize> = (0..sizes.len())
            .map(|rank| if rank < self.parts { own } else { 0 })
            .collect();
        if has_part {
            self.traffic.bytes += 4 * (group.len() - own) as u64;
        }
        let transfer = self.world.all_to_all(send, &to, &from);
        UnderWay::Host { own, transfer }
    }

    /// A group's gradients end to end on the host.
    fn flat(&mut self, group: &ShardedGroup, part: Vec<Option<Tensor<B, 1>>>) -> Vec<f32> {
        let mut flat = Vec::with_capacity(group.len());
        for ((_, range), grad) in group.parameters.iter().zip(part) {
            match grad.map(to_host) {
                Some(Ok(values)) => flat.extend_from_slice(&values),
                Some(Err(error)) => self.failed = Some(error),
                None => {}
            }
            // What no gradient reaches has none.
            flat.resize(range.end, 0.0);
        }
        flat
    }

    /// Waits for the group that was sent first.
    pub fn receive(&mut self) -> Option<(Group, Received<B>)> {
        let (group, under_way) = self.under_way.pop_front()?;
        let begun = Instant::now();
        let received = match under_way {
            UnderWay::Device(arriving) => Received::Sum(arriving()),
            UnderWay::Host { own, transfer } => {
                let values = transfer.wait();
                Received::Slices { own, values }
            }
        };
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        Some((group, received))
    }

    /// The shards of a group are sent from device to device, all of one length.
    fn on_device(
        &mut self,
        transport: &dyn DeviceTransport<B>,
        group: &ShardedGroup,
        part: Vec<Option<Tensor<B, 1>>>,
        device: &B::Device,
    ) -> UnderWay<B> {
        let grads = group.parameters.iter().zip(part);
        let grads = grads.map(|((_, range), grad)| match grad {
            Some(grad) => grad,
            None => Tensor::zeros([range.len()], (device, DType::F32)),
        });
        let flat = Tensor::cat(grads.collect(), 0);
        let longest = longest(group);
        let slices = group.owned.iter().map(|owned| {
            let owned = (!owned.is_empty()).then(|| flat.clone().slice(owned.clone()));
            padded(owned, longest, DType::F32, device)
        });
        let slices = Tensor::cat(slices.collect(), 0);
        self.traffic.bytes += 4 * (longest * (self.world.size() - 1)) as u64;
        UnderWay::Device(transport.reduce_scatter(slices))
    }

    /// Gives all ranks the new weights of a group: `own` is what this rank owns of it, flat, in the
    /// weights' dtype. Collective.
    pub fn all_gather(
        &mut self,
        group: &ShardedGroup,
        own: Vec<Tensor<B, 1>>,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Gathering<B>, DeviceError> {
        let begun = Instant::now();
        let sizes = group.sizes();
        let sent = match &self.transport {
            Some(_) => longest(group),
            None => sizes[self.world.rank()],
        };
        let others = (self.world.size() - 1) as u64;
        self.traffic.bytes += others * (sent * dtype.size()) as u64;
        let own = (!own.is_empty()).then(|| Tensor::cat(own, 0));
        let gathering = match (&self.transport, dtype) {
            (Some(transport), _) => {
                let longest = longest(group);
                let arriving = transport.all_gather(padded(own, longest, dtype, device));
                Gathering::Device(Box::new(move || {
                    let all = arriving();
                    let sizes = sizes.into_iter().enumerate();
                    let slices = sizes.filter(|(_, size)| *size > 0).map(|(rank, size)| {
                        let start = rank * longest;
                        all.clone().slice(start..start + size)
                    });
                    Tensor::cat(slices.collect(), 0)
                }))
            }
            (None, DType::BF16) => {
                let data = own.map(Tensor::try_into_data).transpose();
                let data = data.map_err(|e| DeviceError(e.to_string()))?;
                let values = data.map(TensorData::into_vec::<bf16>).transpose();
                let values = values.map_err(|e| DeviceError(format!("{e:?}")))?;
                let send = values.unwrap_or_default().reinterpret_into();
                Gathering::Bf16(self.world.all_gather_u16(send, &sizes))
            }
            (None, _) => {
                let values = own.map(to_host).transpose()?.unwrap_or_default();
                Gathering::F32(self.world.all_gather_f32(values, &sizes))
            }
        };
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        Ok(gathering)
    }

    /// Waits for the weights of a group: `[n]` for each of its parameters, in memory of its own.
    pub fn gathered(
        &mut self,
        group: &ShardedGroup,
        gathering: Gathering<B>,
        device: &B::Device,
    ) -> Vec<Tensor<B, 1>> {
        let begun = Instant::now();
        let ranges = group.parameters.iter().map(|(_, range)| range.clone());
        let weights = match gathering {
            Gathering::Device(arriving) => {
                let flat = arriving();
                ranges.map(|range| flat.clone().slice(range)).collect()
            }
            Gathering::F32(transfer) => {
                let values = transfer.wait();
                let tensor = |range| from_slice(&values[range], DType::F32, device);
                ranges.map(tensor).collect()
            }
            Gathering::Bf16(transfer) => {
                let values: Vec<bf16> = transfer.wait().reinterpret_into();
                let tensor = |range| from_slice(&values[range], DType::BF16, device);
                ranges.map(tensor).collect()
            }
        };
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        weights
    }
}

/// A tensor of values on the host.
pub(super) fn from_slice<B: Backend, E: Element>(
    values: &[E],
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, 1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, dtype))
}

/// New weights of a group on their way.
pub(super) enum Gathering<B: Backend> {
    Device(Arriving<B>),
    F32(Box<dyn Transfer<f32>>),
    Bf16(Box<dyn Transfer<u16>>),
}

/// The longest shard: devices exchange shards of one length.
fn longest(group: &ShardedGroup) -> usize {
    group.sizes().into_iter().max().unwrap_or(0)
}

/// A slice with zeros behind it; `None` is one without elements, which a device cannot hold.
fn padded<B: Backend>(
    slice: Option<Tensor<B, 1>>,
    length: usize,
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, 1> {
    let count = slice.as_ref().map_or(0, |slice| slice.dims()[0]);
    let zeros = (count < length).then(|| Tensor::zeros([length - count], (device, dtype)));
    Tensor::cat(slice.into_iter().chain(zeros).collect(), 0)
}
