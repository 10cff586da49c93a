//! How many slots a budget of memory holds.

use burn::tensor::DType;

use super::request::GenerateError;
use crate::llama::LlamaConfig;
use crate::llama::slot_cache::{bytes_per_token, rounded_width};

/// More than any machine has, and far enough from the end of 64 bits to be added to.
const MOST_BYTES: u64 = 1 << 60;

/// How an engine is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Sequences decoded together.
    pub slots: usize,
    /// Groups of slots that are computed side by side, each on a core.
    pub workers: usize,
    /// Most tokens of a sequence, prompt and response.
    pub tokens: usize,
    /// Most bytes that keys and values take.
    pub bytes: u64,
}

impl CachePlan {
    /// As many slots as are `wanted` and fit into `budget` bytes, for sequences of up to `tokens`
    /// tokens; an error with the numbers where not even one fits.
    pub fn new(
        config: &LlamaConfig,
        dtype: DType,
        wanted: usize,
        workers: usize,
        tokens: usize,
        budget: Option<u64>,
    ) -> Result<Self, GenerateError> {
        let plan = |slots: usize| {
            let workers = workers.clamp(1, slots);
            let bytes = bytes(config, dtype, slots, workers, tokens);
            Self {
                slots,
                workers,
                tokens,
                bytes,
            }
        };
        let fits = |slots: &usize| budget.is_none_or(|budget| plan(*slots).bytes <= budget);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let slots = (1..=wanted.max(1)).rev().find(fits);
        slots.map(plan).ok_or_else(|| GenerateError::NoRoom {
            tokens,
            needed: mib(plan(1).bytes),
            budget: budget.unwrap_or(0) >> 20,
        })
    }

    /// Workers for so many slots: one a core of a CPU, fewer where each would read the weights for
    /// too few rows. A device is driven by one.
    pub fn workers_for(cores: usize, slots: usize) -> usize {
        cores.min(slots / 4).max(1)
    }

    /// Slots of worker number `worker`.
    pub(super) fn slots_of(&self, worker: usize) -> usize {
        slots_of(self.slots, self.workers, worker)
    }
}

fn slots_of(slots: usize, workers: usize, worker: usize) -> usize {
    slots / workers + usize::from(worker < slots % workers)
}

/// The cache of every worker, the prompt that it prefills (held twice while a chunk is added), and
/// the one tensor that is held twice while the cache grows. Absurd sizes stay absurd: they do not
/// wrap around.
fn bytes(config: &LlamaConfig, dtype: DType, slots: usize, workers: usize, tokens: usize) -> u64 {
    let token = u128::from(bytes_per_token(config, dtype));
    let slot = token * rounded_width(tokens) as u128;
    let growing = |slots: u128| slot * slots / (2 * config.num_hidden_layers as u128);
    let worker = |worker: usize| {
        let slots = slots_of(slots, workers, worker).max(2) as u128;
        slot * (slots + 1) + growing(slots + 2)
    };
    let all: u128 = (0..workers).map(worker).sum();
    all.min(MOST_BYTES.into()) as u64
}
