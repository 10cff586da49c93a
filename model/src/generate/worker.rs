//! One group of slots: prompts enter some at a time, every sequence under way gets a token a step.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::candidates::{AllLogits, StepLogits, Turn};
use super::entering::{Entering, prefill};
use super::plan::CachePlan;
use super::prefixes::{LEAST_SHARED, Prefixes, lock};
use super::request::{
    FinishReason, GenerateError, Request, RequestId, Sample, SampleId, TokenScore,
};
use super::sampling::{Draws, Sampler, SamplingParams};
use crate::llama::slot_cache::{SlotCache, Writes};
use crate::llama::{Decoder, Prefix};
use crate::ops::ModelOps;
use crate::packed_batch::common_prefix;

/// What a step did for one sample.
pub(super) enum Drawn {
    /// A prompt was computed.
    Prompt {
        request: RequestId,
        cached: usize,
        scores: Vec<TokenScore>,
    },
    /// A token was drawn; with the sample where that ended it.
    Token {
        of: SampleId,
        token: u32,
        score: Option<TokenScore>,
        finished: Option<Sample>,
    },
    /// A sample that was to have no token.
    Nothing { of: SampleId },
    /// Its logits are not finite: it is dropped.
    NonFinite { of: SampleId },
}

impl Drawn {
    /// The request that it tells of.
    pub fn request(&self) -> RequestId {
        match self {
            Self::Prompt { request, .. } => *request,
            Self::Token { of, .. } | Self::Nothing { of } | Self::NonFinite { of } => of.request,
        }
    }

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
    /// Prompts that have begun, in order; samples of the first may wait for slots.
    entering: Vec<Entering<B>>,
    /// Prompts' tokens of a pass.
    pass: usize,
    sampler: Sampler,
    /// Whether logits stay on the device but for the likeliest.
    on_device: bool,
    done: Done,
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// Prompt tokens that were computed.
    pub computed: u64,
    /// Prompt tokens that were there already.
    pub cached: u64,
    /// Tokens drawn.
    pub drawn: u64,
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
            entering: Vec::new(),
            pass: plan.pass.max(1),
            sampler: Sampler::default(),
            on_device: writes == Writes::Additions,
            done: Done::default(),
        }
    }

    /// What it has done.
    pub fn done(&self) -> Done {
        self.done
    }

    /// Sequences under way, prompts that enter among them, and their tokens.
    pub fn under_way(&self) -> (usize, usize) {
        let rows = self.rows.iter().flatten();
        let tokens: usize = rows.clone().map(|row| row.length).sum();
        let entering: usize = self.entering.iter().map(Entering::tokens).sum();
        (rows.count() + self.entering.len(), tokens + entering)
    }

    /// Samples that are here, under way or not.
    pub fn load(&self) -> usize {
        let waiting = self.waiting.iter().map(|(_, r)| r.samples);
        let entering = self.entering.iter().map(|e| e.samples.len());
        waiting.chain(entering).sum::<usize>() + self.rows.iter().flatten().count()
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
        self.entering.retain_mut(|Entering { id, samples, .. }| {
            let request = *id;
            samples.retain(|&sample| !dropped(SampleId { request, sample }));
            !samples.is_empty()
        });
    }

    /// Drops a request that has not begun.
    pub fn drop_waiting(&mut self, request: RequestId) {
        self.waiting.retain(|(id, _)| *id != request);
    }

    /// Lets prompts enter free slots, then runs the last token of every sequence under way: its
    /// hidden state `[rows, hidden]`, of none where nothing is under way.
    pub fn advance(
        &mut self,
        decoder: &Decoder<B>,
        slots: usize,
        kept: &Mutex<Prefixes<B>>,
    ) -> Result<(Vec<Drawn>, Option<Tensor<B, 2>>), GenerateError> {
        let mut drawn = Vec::new();
        crate::progress::advance();
        self.enter(decoder, slots, kept, &mut drawn)?;
        self.close_gaps();
        if self.rows.is_empty() {
            return Ok((drawn, None));
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
        let hidden = decoder.step(&ids, &lengths, &mut self.cache);
        Ok((drawn, Some(hidden)))
    }

    /// Draws one token for every sequence under way from its rows of the step's logits.
    pub fn draw(
        &mut self,
        decoder: &Decoder<B>,
        logits: &AllLogits<B>,
        rows: Range<usize>,
        drawn: &mut Vec<Drawn>,
    ) -> Result<(), GenerateError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let params: Vec<_> = self.rows.iter().flatten().map(|r| r.params()).collect();
        let logits = logits.rows(rows, &params)?;
        for (number, slot) in self.rows.iter_mut().enumerate() {
            if let Some(row) = slot {
                row.length += 1;
                let one = row.draw(&logits, number, &mut self.sampler, decoder)?;
                self.done.drawn += 1;
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
        Ok(())
    }

    /// Prefills about as many tokens as a pass takes while there are free slots for samples, and
    /// starts those.
    fn enter(
        &mut self,
        decoder: &Decoder<B>,
        slots: usize,
        kept: &Mutex<Prefixes<B>>,
        drawn: &mut Vec<Drawn>,
    ) -> Result<(), GenerateError> {
        let mut budget = self.pass;
        loop {
            self.start_ready(slots, decoder, drawn)?;
            let together = self.choose(slots, budget, kept);
            if together == 0 {
                return Ok(());
            }
            let entering = &mut self.entering[..together];
            let computed = prefill(entering, decoder, self.pass, self.on_device)?;
            self.done.computed += computed as u64;
            budget = budget.saturating_sub(computed);
            for entering in entering.iter().filter(|e| e.is_ready()) {
                self.done.cached += entering.cached as u64;
                entering.keep(kept);
                drawn.push(Drawn::Prompt {
                    request: entering.id,
                    cached: entering.cached,
                    scores: entering.scores(),
                });
            }
        }
    }

    /// How many of the prompts that have begun go on in the next pass, new ones among them: in
    /// order, while their samples have slots and their tokens fit.
    fn choose(&mut self, slots: usize, budget: usize, kept: &Mutex<Prefixes<B>>) -> usize {
        let mut free = slots.saturating_sub(self.rows.iter().flatten().count());
        let (mut together, mut new, mut held) = (0, 0, 0);
        while free > 0 && new < budget {
            if together == self.entering.len() {
                match self.waiting.front() {
                    Some((_, request)) if !self.shares_more(request, kept) => {}
                    _ => break,
                }
                if let Some((id, request)) = self.waiting.pop_front() {
                    self.entering.push(Entering::new(id, request, kept));
                }
            }
            let next = &self.entering[together];
            let tokens = next.next(self.pass).len();
            // Tokens that were there already are held in the pass, too.
            let all = next.tokens() + tokens;
            if together > 0 && (new + tokens > budget || held + all > self.pass) {
                break;
            }
            (new, held) = (new + tokens, held + all);
            free = free.saturating_sub(next.samples.len());
            together += 1;
        }
        together
    }

    /// Whether more of a prompt is in the pass to come than is kept: then it waits for that.
    fn shares_more(&self, request: &Request, kept: &Mutex<Prefixes<B>>) -> bool {
        let kept = lock(kept);
        if kept.room() == 0 {
            return false;
        }
        let prompts = self.entering.iter().map(|e| &e.request.prompt);
        let common = prompts.map(|prompt| common_prefix(prompt, &request.prompt));
        let most = common.max().unwrap_or(0);
        most >= LEAST_SHARED && most > kept.shares(&request.prompt)
    }

    /// Starts samples of prompts that are computed while there are free slots.
    fn start_ready(
        &mut self,
        slots: usize,
        decoder: &Decoder<B>,
        drawn: &mut Vec<Drawn>,
    ) -> Result<(), GenerateError> {
        let (mut starts, mut longest): (Vec<(usize, Prefix<B>)>, usize) = (Vec::new(), 0);
        let mut entering = std::mem::take(&mut self.entering);
        for one in entering.iter_mut().filter(|one| one.is_ready()) {
            while let Some(slot) = self.free_slot(slots) {
                let Some(sample) = one.samples.pop_front() else {
                    break;
                };
                if self.start(slot, sample, one, decoder, drawn)? {
                    longest = longest.max(one.tokens() + 1);
                    starts.push((slot, one.prefix().clone()));
                }
            }
        }
        entering.retain(|one| !one.samples.is_empty());
        entering.iter_mut().for_each(Entering::leave_others);
        self.entering = entering;
        if !starts.is_empty() {
            self.cache.reserve(longest, &decoder.device());
            self.cache.fill(&starts, &decoder.device());
        }
        Ok(())
    }

    fn free_slot(&self, slots: usize) -> Option<usize> {
        let gap = self.rows.iter().position(Option::is_none);
        gap.or((self.rows.len() < slots).then_some(self.rows.len()))
    }

    /// Draws the first token of a sample; whether others follow, for which its slot has to be filled.
    fn start(
        &mut self,
        slot: usize,
        sample: usize,
        entering: &Entering<B>,
        decoder: &Decoder<B>,
        drawn: &mut Vec<Drawn>,
    ) -> Result<bool, GenerateError> {
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
        let of = row.of;
        let Some((logits, number)) = entering.logits() else {
            drawn.push(Drawn::NonFinite { of });
            return Ok(false);
        };
        if row.params().max_new_tokens == 0 {
            drawn.push(Drawn::Nothing { of });
            return Ok(false);
        }
        let one = row.draw(logits, number, &mut self.sampler, decoder)?;
        self.done.drawn += 1;
        let goes_on = one.goes_on();
        if goes_on {
            match self.rows.get_mut(slot) {
                Some(place) => *place = Some(row),
                None => self.rows.push(Some(row)),
            }
        }
        drawn.push(one);
        Ok(goes_on)
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
        let turn = Turn {
            request: &self.request,
            response: &self.tokens,
            draw: self.draws.at(self.tokens.len()),
        };
        let Some((token, score)) = logits.draw(number, &turn, sampler)? else {
            return Ok(Drawn::NonFinite { of: self.of });
        };
        let token = token as u32;
        if self.request.logprobs {
            self.logprobs
                .extend(score.as_ref().map(|score| score.logprob));
        }
        self.tokens.push(token);
        let stop_token = params.ends(token);
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
            score: score.map(|score| score.of(token)),
            finished,
        })
    }
}
