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
    /// Tokens of prompts that go through the model together: [`prefill_tokens`].
    ///
    /// [`prefill_tokens`]: crate::llama::prefill_tokens
    pub pass: usize,
    /// Most bytes that keys and values take.
    pub bytes: u64,
}

impl CachePlan {
    /// As many slots as are `wanted` and fit into `budget` bytes, for sequences of up to `tokens`
    /// tokens, whose prompts go through the model `pass` tokens at a time; an error with the numbers
    /// where not even one fits.
    pub fn new(
        config: &LlamaConfig,
        dtype: DType,
        wanted: usize,
        workers: usize,
        tokens: usize,
        pass: usize,
        budget: Option<u64>,
    ) -> Result<Self, GenerateError> {
        let plan = |slots: usize| {
            let workers = workers.clamp(1, slots);
            let mut plan = Self {
                slots,
                workers,
                tokens,
                pass,
                bytes: 0,
            };
            plan.bytes = plan.bytes_of(config, dtype);
            plan
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
        self.slots / self.workers + usize::from(worker < self.slots % self.workers)
    }

    /// The cache of every worker, the prompts of its pass, and the one tensor that is held twice
    /// while the cache or a prompt grows. Absurd sizes stay absurd: they do not wrap around.
    fn bytes_of(&self, config: &LlamaConfig, dtype: DType) -> u64 {
        let token = u128::from(bytes_per_token(config, dtype));
        let slot = rounded_width(self.tokens) as u128;
        let growing = |tokens: u128| tokens / (2 * config.num_hidden_layers as u128);
        let worker = |worker: usize| {
            let slots = self.slots_of(worker) as u128;
            let together = (self.pass as u128).min(slots * self.tokens as u128);
            let prompts = slot.max(together);
            let cache = slot * slots.max(2);
            token * (cache + prompts + growing(cache + 2 * prompts))
        };
        let all: u128 = (0..self.workers).map(worker).sum();
        all.min(MOST_BYTES.into()) as u64
    }
}
