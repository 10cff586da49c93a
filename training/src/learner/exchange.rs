//! Gradients and weights on their way between ranks, a group of the table at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use half::bf16;
use half::vec::{HalfBitsVecExt, HalfFloatVecExt};
use sppo_model::llama::parameters::Group;
use sppo_model::ops::{DeviceError, ModelOps, to_host};

use super::shards::ShardedGroup;
use crate::cluster::{Communicator, DeviceTransport, Transfer, transport};

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
    transport: Option<Arc<dyn DeviceTransport<B>>>,
    under_way: VecDeque<UnderWay>,
}

struct UnderWay {
    group: Group,
    /// What each sender's slice comes to.
    own: usize,
    transfer: Box<dyn Transfer<f32>>,
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
    pub fn start(&mut self, group: &ShardedGroup, part: Vec<Option<Tensor<B, 1>>>) {
        let begun = Instant::now();
        for under_way in &mut self.under_way {
            under_way.transfer.progress();
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
        self.under_way.push_back(UnderWay {
            group: group.group,
            own,
            transfer: self.world.all_to_all(send, &to, &from),
        });
        self.traffic.seconds += begun.elapsed().as_secs_f64();
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

    /// Waits for the group that was sent first: its name, and the slice of each part in their order.
    pub fn receive(&mut self) -> Option<(Group, Vec<Vec<f32>>)> {
        let UnderWay {
            group,
            own,
            transfer,
        } = self.under_way.pop_front()?;
        let begun = Instant::now();
        let received = transfer.wait();
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        let slices = received.chunks_exact(own.max(1)).map(<[f32]>::to_vec);
        Some((group, slices.collect()))
    }

    /// The sum over the ranks of what this one owns of a group, from device to device; `None` where
    /// there is no such way.
    pub fn on_device(
        &mut self,
        group: &ShardedGroup,
        part: &[Option<Tensor<B, 1>>],
        device: &B::Device,
    ) -> Option<Tensor<B, 1>> {
        let transport = self.transport.clone()?;
        let begun = Instant::now();
        let grads: Vec<Tensor<B, 1>> = group
            .parameters
            .iter()
            .zip(part)
            .map(|((_, range), grad)| match grad {
                Some(grad) => grad.clone(),
                None => Tensor::zeros([range.len()], (device, DType::F32)),
            })
            .collect();
        let flat = Tensor::cat(grads, 0);
        let longest = longest(group);
        let slices = group.owned.iter().map(|owned| {
            let slice = flat.clone().slice(owned.clone());
            padded(slice, longest)
        });
        let own = transport.reduce_scatter(Tensor::cat(slices.collect(), 0));
        let kept = group.sizes()[self.world.rank()];
        self.traffic.bytes += 4 * (longest * (self.world.size() - 1)) as u64;
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        Some(own.slice(0..kept))
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
        let kept = sizes[self.world.rank()];
        let others = (self.world.size() - 1) as u64;
        self.traffic.bytes += others * (kept * dtype.size()) as u64;
        let own = match own.is_empty() {
            true => Tensor::zeros([0], (device, dtype)),
            false => Tensor::cat(own, 0),
        };
        let gathering = match (&self.transport, dtype) {
            (Some(transport), _) => {
                let longest = longest(group);
                let all = transport.all_gather(padded(own, longest));
                let slices = sizes.iter().enumerate().map(|(rank, &size)| {
                    let start = rank * longest;
                    all.clone().slice(start..start + size)
                });
                Gathering::There(Tensor::cat(slices.collect(), 0))
            }
            (None, DType::BF16) => {
                let data = own
                    .try_into_data()
                    .map_err(|e| DeviceError(e.to_string()))?;
                let values = data.into_vec::<bf16>();
                let values = values.map_err(|e| DeviceError(format!("{e:?}")))?;
                let send = values.reinterpret_into();
                Gathering::Bf16(self.world.all_gather_u16(send, &sizes))
            }
            (None, _) => Gathering::F32(self.world.all_gather_f32(to_host(own)?, &sizes)),
        };
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        Ok(gathering)
    }

    /// Waits for the weights of a group: `[n]`, flat.
    pub fn gathered(&mut self, gathering: Gathering<B>, device: &B::Device) -> Tensor<B, 1> {
        let begun = Instant::now();
        let flat = match gathering {
            Gathering::There(flat) => flat,
            Gathering::F32(transfer) => {
                let values = transfer.wait();
                let count = values.len();
                Tensor::from_data(TensorData::new(values, [count]), (device, DType::F32))
            }
            Gathering::Bf16(transfer) => {
                let values: Vec<bf16> = transfer.wait().reinterpret_into();
                let count = values.len();
                Tensor::from_data(TensorData::new(values, [count]), (device, DType::BF16))
            }
        };
        self.traffic.seconds += begun.elapsed().as_secs_f64();
        flat
    }
}

/// New weights of a group on their way.
pub(super) enum Gathering<B: Backend> {
    There(Tensor<B, 1>),
    F32(Box<dyn Transfer<f32>>),
    Bf16(Box<dyn Transfer<u16>>),
}

/// The longest shard: devices exchange shards of one length.
fn longest(group: &ShardedGroup) -> usize {
    group.sizes().into_iter().max().unwrap_or(0)
}

fn padded<B: Backend>(slice: Tensor<B, 1>, length: usize) -> Tensor<B, 1> {
    let [count] = slice.dims();
    match length - count {
        0 => slice,
        lacking => {
            let zeros = Tensor::zeros([lacking], (&slice.device(), slice.dtype()));
            Tensor::cat(vec![slice, zeros], 0)
        }
    }
}
