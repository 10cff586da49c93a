//! One group of slots: prompts enter in chunks, every sequence under way gets a token a step.

use std::collections::VecDeque;
use std::sync::Arc;

use burn::tensor::backend::Backend;

use super::candidates::StepLogits;
use super::plan::CachePlan;
use super::request::{FinishReason, GenerateError, Request, RequestId, Sample, SampleId};
use super::sampling::{Draws, Sampler, SamplingParams};
use crate::llama::Decoder;
use crate::llama::slot_cache::{Prefix, SlotCache, Writes};
use crate::ops::ModelOps;

/// Tokens of a prompt that run together, always cut at multiples of this: a prompt's keys and
/// values then depend on nothing else in the engine. Also the prompt tokens of one step.
const CHUNK: usize = 256;

/// What a step did for one sample.
pub(super) enum Drawn {
    /// A token was drawn; with the sample where that ended it.
    Token {
        of: SampleId,
        token: u32,
        finished: Option<Sample>,
    },
    /// Its logits are not finite: it is dropped.
    NonFinite { of: SampleId },
}

impl Drawn {
    /// Whether the sample goes on.
    fn goes_on(&self) -> bool {
        matches!(self, Self::Token { finished: None, .. })
    }
}

/// Slots of its own, on a core of its own where workers are many.
pub(super) struct Worker<B: Backend> {
    cache: SlotCache<B>,
    /// What is in each of the first slots; a gap until the next sample enters or the last moves in.
    rows: Vec<Option<Row>>,
    waiting: VecDeque<(RequestId, Arc<Request>)>,
    entering: Option<Entering<B>>,
    sampler: Sampler,
    /// Whether logits stay on the device but for the likeliest.
    on_device: bool,
}

/// A prompt that is prefilled, then handed to its samples.
struct Entering<B: Backend> {
    id: RequestId,
    request: Arc<Request>,
    prefix: Prefix<B>,
    done: usize,
    /// Logits behind the prompt `[1, vocab]`, once it is done.
    logits: Option<StepLogits<B>>,
    /// Samples that have not started, in order.
    samples: VecDeque<usize>,
}

/// A response under way.
struct Row {
    of: SampleId,
    request: Arc<Request>,
    draws: Draws,
    /// Tokens in its slot; the last drawn one is not yet.
    length: usize,
    tokens: Vec<u32>,
    logprobs: Vec<f64>,
}

impl<B: ModelOps> Worker<B> {
    pub fn new(decoder: &Decoder<B>, plan: &CachePlan, number: usize, writes: Writes) -> Self {
        // A row alone would be computed by other routines than several are.
        let slots = plan.slots_of(number).max(2);
        let cache = SlotCache::new(
            &decoder.config,
            slots,
            plan.tokens,
            writes,
            decoder.dtype(),
            &decoder.device(),
        );
        Self {
            cache,
            rows: Vec::with_capacity(plan.slots_of(number)),
            waiting: VecDeque::new(),
            entering: None,
            sampler: Sampler::default(),
            on_device: writes == Writes::Additions,
        }
    }

    /// Samples that are here, under way or not.
    pub fn load(&self) -> usize {
        let waiting = self.waiting.iter().map(|(_, r)| r.samples);
        let entering = self.entering.as_ref().map_or(0, |e| e.samples.len());
        waiting.sum::<usize>() + entering + self.rows.iter().flatten().count()
    }

    pub fn push(&mut self, id: RequestId, request: Arc<Request>) {
        self.waiting.push_back((id, request));
    }

    /// Ends a sample whose text reached a stop string.
    pub fn stop(&mut self, of: SampleId) -> Option<Sample> {
        let place = self
            .rows
            .iter_mut()
            .find(|row| row.as_ref().is_some_and(|r| r.of == of))?;
        place.take().map(|row| Sample {
            tokens: row.tokens,
            finish: FinishReason::Stop,
            stop_token: false,
            logprobs: row.logprobs,
            text: None,
        })
    }

    /// Drops the samples for which `dropped` holds.
    pub fn drop_samples(&mut self, dropped: impl Fn(SampleId) -> bool) {
        for row in &mut self.rows {
            if row.as_ref().is_some_and(|row| dropped(row.of)) {
                *row = None;
            }
        }
        if let Some(Entering { id, samples, .. }) = &mut self.entering {
            let request = *id;
            samples.retain(|&sample| !dropped(SampleId { request, sample }));
            if samples.is_empty() {
                self.entering = None;
            }
        }
    }

    /// Drops a request that has not begun.
    pub fn drop_waiting(&mut self, request: RequestId) {
        self.waiting.retain(|(id, _)| *id != request);
    }

    /// Lets prompts enter free slots, then draws one token for every sequence under way.
    pub fn step(
        &mut self,
        decoder: &Decoder<B>,
        slots: usize,
    ) -> Result<Vec<Drawn>, GenerateError> {
        let mut drawn = Vec::new();
        crate::progress::advance();
        self.enter(decoder, slots, &mut drawn)?;
        self.close_gaps();
        if self.rows.is_empty() {
            return Ok(drawn);
        }
        let mut ids = Vec::with_capacity(self.rows.len() + 1);
        let mut lengths = Vec::with_capacity(ids.capacity());
        for row in self.rows.iter().flatten() {
            ids.push(row.tokens.last().copied().unwrap_or(0));
            lengths.push(row.length);
        }
        if ids.len() == 1 {
            ids.push(0);
            lengths.push(0);
        }
        let params: Vec<_> = self.rows.iter().flatten().map(|r| r.params()).collect();
        let logits = decoder.step(&ids, &lengths, &mut self.cache);
        let logits = StepLogits::new(logits, &params, self.on_device)?;
        for (number, slot) in self.rows.iter_mut().enumerate() {
            if let Some(row) = slot {
                row.length += 1;
                let one = row.draw(&logits, number, &mut self.sampler, decoder)?;
                if !one.goes_on() {
                    *slot = None;
                }
                if matches!(one, Drawn::NonFinite { .. }) {
                    // What is not finite would reach the next sequence there: 0 · NaN is NaN.
                    self.cache.clear(number);
                }
                drawn.push(one);
            }
        }
        Ok(drawn)
    }

    /// Prefills about [`CHUNK`] tokens while there are free slots for samples, and starts those.
    fn enter(
        &mut self,
        decoder: &Decoder<B>,
        slots: usize,
        drawn: &mut Vec<Drawn>,
    ) -> Result<(), GenerateError> {
        let mut budget = CHUNK;
        loop {
            let under_way = self.rows.iter().flatten().count();
            if under_way >= slots {
                return Ok(());
            }
            let mut entering = match (self.entering.take(), self.waiting.pop_front()) {
                (Some(entering), None) => entering,
                (Some(entering), Some(next)) => {
                    self.waiting.push_front(next);
                    entering
                }
                (None, Some((id, request))) => Entering::new(id, request),
                (None, None) => return Ok(()),
            };
            if entering.logits.is_none() {
                if budget == 0 {
                    self.entering = Some(entering);
                    return Ok(());
                }
                budget = budget.saturating_sub(entering.prefill(decoder, self.on_device)?);
            }
            if entering.logits.is_some() {
                while let Some(slot) = self.free_slot(slots) {
                    let Some(sample) = entering.samples.pop_front() else {
                        break;
                    };
                    self.start(slot, sample, &entering, decoder, drawn)?;
                }
            }
            if !entering.samples.is_empty() {
                self.entering = Some(entering);
            }
        }
    }

    fn free_slot(&self, slots: usize) -> Option<usize> {
        let gap = self.rows.iter().position(Option::is_none);
        gap.or((self.rows.len() < slots).then_some(self.rows.len()))
    }

    fn start(
        &mut self,
        slot: usize,
        sample: usize,
        entering: &Entering<B>,
        decoder: &Decoder<B>,
        drawn: &mut Vec<Drawn>,
    ) -> Result<(), GenerateError> {
        let request = entering.request.clone();
        let mut row = Row {
            of: SampleId {
                request: entering.id,
                sample,
            },
            draws: Draws::new(request.params.seed, &request.id, sample),
            length: request.prompt.len(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            request,
        };
        let Some(logits) = &entering.logits else {
            return Ok(());
        };
        let one = row.draw(logits, 0, &mut self.sampler, decoder)?;
        if one.goes_on() {
            self.cache.reserve(row.length + 1, &decoder.device());
            self.cache.fill(slot, &entering.prefix);
            match self.rows.get_mut(slot) {
                Some(place) => *place = Some(row),
                None => self.rows.push(Some(row)),
            }
        }
        drawn.push(one);
        Ok(())
    }

    /// Moves the last sequences into gaps, so that no step computes an empty row.
    fn close_gaps(&mut self) {
        loop {
            while self.rows.last().is_some_and(Option::is_none) {
                self.rows.pop();
            }
            let Some(gap) = self.rows.iter().position(Option::is_none) else {
                return;
            };
            if let Some(Some(row)) = self.rows.pop() {
                self.cache.copy(self.rows.len(), gap, row.length);
                self.rows[gap] = Some(row);
            }
        }
    }
}

impl<B: ModelOps> Entering<B> {
    fn new(id: RequestId, request: Arc<Request>) -> Self {
        Self {
            id,
            prefix: Vec::new(),
            done: 0,
            logits: None,
            samples: (0..request.samples).collect(),
            request,
        }
    }

    /// Runs the next chunk; how many tokens that were.
    fn prefill(&mut self, decoder: &Decoder<B>, on_device: bool) -> Result<usize, GenerateError> {
        let prompt = &self.request.prompt;
        let end = (self.done + CHUNK).min(prompt.len());
        let logits = decoder.prefill(&prompt[self.done..end], &mut self.prefix);
        let count = end - self.done;
        self.done = end;
        if end == prompt.len() {
            let params = [&self.request.params];
            self.logits = Some(StepLogits::new(logits, &params, on_device)?);
        }
        Ok(count)
    }
}

impl Row {
    fn params(&self) -> &SamplingParams {
        &self.request.params
    }

    /// Draws the next token from row `number` of `logits`.
    fn draw<B: ModelOps>(
        &mut self,
        logits: &StepLogits<B>,
        number: usize,
        sampler: &mut Sampler,
        decoder: &Decoder<B>,
    ) -> Result<Drawn, GenerateError> {
        let params = &self.request.params;
        let draw = self.draws.at(self.tokens.len());
        let found = logits.draw(number, params, draw, self.request.logprobs, sampler)?;
        let Some((token, logprob)) = found else {
            return Ok(Drawn::NonFinite { of: self.of });
        };
        self.logprobs.extend(logprob);
        let token = token as u32;
        self.tokens.push(token);
        let stop_token = params.stop_ids.contains(&token);
        let full = self.tokens.len() >= params.max_new_tokens
            || self.request.prompt.len() + self.tokens.len()
                >= decoder.config.max_position_embeddings;
        let finish = match (stop_token, full) {
            (true, _) => Some(FinishReason::Stop),
            (false, true) => Some(FinishReason::Length),
            (false, false) => None,
        };
        let finished = finish.map(|finish| Sample {
            tokens: std::mem::take(&mut self.tokens),
            finish,
            stop_token,
            logprobs: std::mem::take(&mut self.logprobs),
            text: None,
        });
        Ok(Drawn::Token {
            of: self.of,
            token,
            finished,
        })
    }
}
