//! Continuous batching: requests come and go at any time, every step draws a token for each
//! sequence in a slot.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::candidates::AllLogits;
use super::check::check_request;
use super::plan::CachePlan;
use super::prefixes::{Prefixes, lock};
use super::request::{Event, FinishReason, GenerateError, Request, RequestId, Sample, SampleId};
use super::stop::TextStream;
use super::worker::{Drawn, Worker};
use crate::llama::Decoder;
use crate::llama::slot_cache::{Writes, bytes_per_token};
use crate::ops::ModelOps;
use crate::packed_batch::common_prefix;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// How many requests of each worker are remembered, to give it those that begin alike.
const LATELY: usize = 8;

/// Answers requests with a fixed number of slots.
///
/// A response is a function of the model and of the request's prompt, id, seed and parameters:
/// which other requests there are, when they come and how many slots there are changes nothing on
/// a CPU backend. On GPUs other batch shapes may choose other kernels, whose rounding differs.
pub struct Engine<B: Backend> {
    decoder: Arc<Decoder<B>>,
    plan: CachePlan,
    workers: Vec<Worker<B>>,
    /// Whether logits stay on the device but for the likeliest.
    on_device: bool,
    /// Accepted, but no worker has room.
    queue: VecDeque<(RequestId, Arc<Request>)>,
    open: BTreeMap<RequestId, Open>,
    tokenizer: Option<Arc<Tokenizer>>,
    ready: Vec<Event>,
    next: u64,
    /// The requests that each worker was given last, newest first, where prompts are kept.
    lately: Vec<VecDeque<Arc<Request>>>,
    /// What prompts begin with, for all workers.
    kept: Mutex<Prefixes<B>>,
    /// Bytes of keys and values that a token takes.
    token_bytes: u64,
    /// Bytes of an output that is kept with them.
    output_bytes: u64,
}

/// Does `work` for each, on all cores where there are several; one alone stays on this thread, the
/// only one that drives a device.
fn each<T: Send, R: Send>(
    all: &mut [T],
    work: impl Fn((usize, &mut T)) -> Result<R, GenerateError> + Sync + Send,
) -> Result<Vec<R>, GenerateError> {
    match all.len() {
        1 => all.iter_mut().enumerate().map(work).collect(),
        _ => all.par_iter_mut().enumerate().map(work).collect(),
    }
}

/// A step of workers on a host: each runs its blocks, and the vocabulary's product is one for the rows
/// of all, by all cores, so that its weights, the largest, are read once.
fn together<B: ModelOps>(
    workers: &mut [Worker<B>],
    decoder: &Decoder<B>,
    plan: &CachePlan,
    kept: &Mutex<Prefixes<B>>,
) -> Result<Vec<Vec<Drawn>>, GenerateError> {
    let advance = |(number, worker): (usize, &mut Worker<B>)| {
        worker.advance(decoder, plan.slots_of(number), kept)
    };
    let (mut drawn, hidden): (Vec<_>, Vec<_>) = each(workers, advance)?.into_iter().unzip();
    let mut end = 0;
    let rows: Vec<_> = hidden
        .iter()
        .map(|hidden| {
            let first = end;
            end += hidden.as_ref().map_or(0, |hidden| hidden.dims()[0]);
            first..end
        })
        .collect();
    let mut hidden: Vec<_> = hidden.into_iter().flatten().collect();
    let hidden = match hidden.len() {
        0 | 1 => hidden.pop(),
        _ => Some(Tensor::cat(hidden, 0)),
    };
    if let Some(hidden) = hidden {
        let logits = AllLogits::new(decoder.logits(hidden), false)?;
        let turns = workers.iter_mut().zip(rows).zip(&mut drawn);
        let mut turns: Vec<_> = turns.collect();
        each(&mut turns, |(_, ((worker, rows), drawn))| {
            worker.draw(decoder, &logits, rows.clone(), drawn)
        })?;
    }
    Ok(drawn)
}

/// What a token makes of a text.
#[derive(Default)]
struct Texts {
    /// Final now.
    now: String,
    /// What was held back, at the end.
    rest: String,
    /// All of it, at the end.
    whole: String,
    /// Whether a stop string was written.
    stopped: bool,
}

/// What an engine has done and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCounts {
    /// Sequences under way.
    pub running: u64,
    /// Prompt tokens that were computed.
    pub computed: u64,
    /// Prompt tokens that were there already.
    pub cached: u64,
    /// Tokens drawn.
    pub drawn: u64,
    /// Bytes of keys and values in use.
    pub cache_used: u64,
    /// Bytes of keys and values that there may be.
    pub cache_bytes: u64,
}

/// A request whose samples are not all finished.
struct Open {
    request: Arc<Request>,
    worker: Option<usize>,
    left: usize,
    texts: BTreeMap<usize, TextStream>,
}

impl<B: ModelOps> Engine<B> {
    /// An engine over a model; `tokenizer` serves stop strings and streamed text.
    pub fn new(
        decoder: Arc<Decoder<B>>,
        plan: CachePlan,
        tokenizer: Option<Arc<Tokenizer>>,
    ) -> Self {
        Self::with_writes(decoder, plan, tokenizer, Writes::of::<B>())
    }

    /// The same with caches written in a given way.
    pub fn with_writes(
        decoder: Arc<Decoder<B>>,
        plan: CachePlan,
        tokenizer: Option<Arc<Tokenizer>>,
        writes: Writes,
    ) -> Self {
        let token_bytes = bytes_per_token(&decoder.config, decoder.dtype());
        let output_bytes = (decoder.config.hidden_size * decoder.dtype().size()) as u64;
        let workers = (0..plan.workers)
            .map(|number| Worker::new(&decoder, &plan, number, writes))
            .collect();
        Self {
            decoder,
            plan,
            workers,
            on_device: writes == Writes::Additions,
            queue: VecDeque::new(),
            open: BTreeMap::new(),
            tokenizer,
            ready: Vec::new(),
            next: 0,
            lately: vec![VecDeque::new(); plan.workers],
            kept: Mutex::new(Prefixes::new(0)),
            token_bytes,
            output_bytes,
        }
    }

    /// Keeps up to `bytes` of keys, values and outputs of prompts for later ones that begin alike. On
    /// a CPU that changes no result.
    pub fn keep_prefixes(mut self, bytes: u64) -> Self {
        let tokens = bytes / (self.token_bytes + self.output_bytes).max(1);
        self.kept = Mutex::new(Prefixes::new(tokens as usize));
        self
    }

    /// Accepts a request, or says why it can never be answered.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, GenerateError> {
        check_request(
            &request,
            &self.decoder.config,
            &self.plan,
            self.tokenizer.is_some(),
        )?;
        let id = RequestId(self.next);
        self.next += 1;
        if request.params.max_new_tokens == 0 && request.prompt_logprobs.is_none() {
            self.answer_with_nothing(id, &request);
            return Ok(id);
        }
        if request.samples == 0 {
            return Ok(id);
        }
        let request = Arc::new(request);
        let open = Open {
            request: request.clone(),
            worker: None,
            left: request.samples,
            texts: BTreeMap::new(),
        };
        self.open.insert(id, open);
        self.queue.push_back((id, request));
        Ok(id)
    }

    /// Drops a request; nothing more is heard of it.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(open) = self.open.remove(&id) {
            match open.worker {
                None => self.queue.retain(|(queued, _)| *queued != id),
                Some(worker) => {
                    self.workers[worker].drop_waiting(id);
                    self.workers[worker].drop_samples(|of| of.request == id);
                }
            }
        }
        self.ready.retain(|event| event.request() != id);
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.open.is_empty() && self.ready.is_empty()
    }

    /// Requests that are accepted and not finished.
    pub fn pending(&self) -> usize {
        self.open.len()
    }

    /// Whether a request that is submitted now begins soon.
    pub fn has_room(&self) -> bool {
        let queued: usize = self.queue.iter().map(|(_, request)| request.samples).sum();
        let held: usize = self.workers.iter().map(Worker::load).sum();
        queued + held < self.plan.slots
    }

    /// What it has done and does.
    pub fn counts(&self) -> EngineCounts {
        let mut counts = EngineCounts::default();
        let mut tokens = 0;
        for worker in &self.workers {
            let done = worker.done();
            counts.computed += done.computed;
            counts.cached += done.cached;
            counts.drawn += done.drawn;
            let (sequences, held) = worker.under_way();
            counts.running += sequences as u64;
            tokens += held as u64;
        }
        let kept = lock(&self.kept);
        let kept_bytes = self.token_bytes + self.output_bytes;
        counts.cache_used = tokens * self.token_bytes + kept.tokens() as u64 * kept_bytes;
        counts.cache_bytes = self.plan.bytes + kept.room() as u64 * kept_bytes;
        counts
    }

    /// Draws a token for every sequence under way; what happened, by workers and slots.
    pub fn step(&mut self) -> Result<Vec<Event>, GenerateError> {
        self.assign();
        let (decoder, plan, kept) = (&self.decoder, &self.plan, &self.kept);
        let drawn = match self.on_device {
            // A worker's tensors stay on its thread: a device may have a queue for each.
            true => each(&mut self.workers, |(number, worker)| {
                let (mut drawn, hidden) = worker.advance(decoder, plan.slots_of(number), kept)?;
                if let Some(hidden) = hidden {
                    let rows = 0..hidden.dims()[0];
                    let logits = AllLogits::new(decoder.logits(hidden), true)?;
                    worker.draw(decoder, &logits, rows, &mut drawn)?;
                }
                Ok(drawn)
            })?,
            false => together(&mut self.workers, decoder, plan, kept)?,
        };
        let mut events = std::mem::take(&mut self.ready);
        for one in drawn.into_iter().flatten() {
            self.report(one, &mut events);
        }
        Ok(events)
    }

    /// Gives queued requests to workers that have room: to the one that has most, but where another
    /// was given a prompt lately that begins alike, to that one. Only as many as begin soon, so that
    /// workers that finish early get more.
    fn assign(&mut self) {
        let shares = lock(&self.kept).room() > 0;
        while let Some((id, request)) = self.queue.pop_front() {
            let Some(worker) = self.worker_for(&request) else {
                self.queue.push_front((id, request));
                return;
            };
            if shares {
                let lately = &mut self.lately[worker];
                lately.truncate(LATELY - 1);
                lately.push_front(request.clone());
            }
            self.workers[worker].push(id, request);
            if let Some(open) = self.open.get_mut(&id) {
                open.worker = Some(worker);
            }
        }
    }

    fn worker_for(&self, request: &Request) -> Option<usize> {
        let room = |worker: usize| {
            self.plan.slots_of(worker) as isize - self.workers[worker].load() as isize
        };
        let common = |worker: usize| {
            let lately = self.lately[worker].iter();
            let shares = lately.map(|other| common_prefix(&other.prompt, &request.prompt));
            // Less than half is not worth another core's idling.
            shares
                .max()
                .filter(|&most| 2 * most >= request.prompt.len())
        };
        (0..self.workers.len())
            .filter(|&worker| room(worker) > 0)
            .max_by_key(|&worker| (common(worker), room(worker), std::cmp::Reverse(worker)))
    }

    fn report(&mut self, drawn: Drawn, events: &mut Vec<Event>) {
        let Some(open) = self.open.get(&drawn.request()) else {
            return;
        };
        let (of, token, score, finished) = match drawn {
            Drawn::Prompt {
                request,
                cached,
                scores,
            } => {
                return events.push(Event::Prompt {
                    request,
                    cached,
                    scores,
                });
            }
            Drawn::Token {
                of,
                token,
                score,
                finished,
            } => (of, token, score, finished),
            Drawn::Nothing { of } => {
                let text = open.request.needs_text().then(String::new);
                events.push(nothing(of, text));
                return self.close(of);
            }
            Drawn::NonFinite { of } => {
                let id = open.request.id.clone();
                return self.fail(of, GenerateError::NonFinite { id }, events);
            }
        };
        let texts = match self.texts_of(of, token, finished.as_ref()) {
            Ok(texts) => texts,
            Err(error) => {
                self.drop_sample(of);
                self.fail(of, error, events);
                return;
            }
        };
        let mut finished = finished;
        let (mut text, mut rest) = (String::new(), String::new());
        if let Some(texts) = texts {
            if texts.stopped && finished.is_none() {
                finished = self.drop_sample(of);
            }
            if let Some(sample) = &mut finished {
                if texts.stopped {
                    sample.finish = FinishReason::Stop;
                }
                sample.text = Some(texts.whole);
            }
            (text, rest) = (texts.now, texts.rest);
        }
        events.push(Event::Token {
            of,
            token,
            score,
            text,
        });
        if let Some(sample) = finished {
            self.close(of);
            events.push(Event::Finished {
                of,
                text: rest,
                sample,
            });
        }
    }

    /// What a token makes of a sample's text, where that is asked for.
    fn texts_of(
        &mut self,
        of: SampleId,
        token: u32,
        finished: Option<&Sample>,
    ) -> Result<Option<Texts>, GenerateError> {
        let Some((tokenizer, open)) = self.tokenizer.as_ref().zip(self.open.get_mut(&of.request))
        else {
            return Ok(None);
        };
        if !open.request.needs_text() {
            return Ok(None);
        }
        let failed = |source: TokenizerError| GenerateError::Text {
            id: open.request.id.clone(),
            source,
        };
        let new = || TextStream::new(open.request.stop.clone(), open.request.params.min_tokens);
        let stream = open.texts.entry(of.sample).or_insert_with(new);
        let mut texts = Texts::default();
        if !finished.is_some_and(|sample| sample.stop_token) {
            texts.now = stream.push(tokenizer, token).map_err(failed)?;
        }
        if finished.is_some() {
            texts.rest = stream.finish(tokenizer).map_err(failed)?;
        }
        texts.stopped = stream.stopped();
        if texts.stopped || finished.is_some() {
            texts.whole = stream.text().to_string();
        }
        Ok(Some(texts))
    }

    /// Takes a sample that is under way out of its slot.
    fn drop_sample(&mut self, of: SampleId) -> Option<Sample> {
        let worker = self.open.get(&of.request)?.worker?;
        self.workers.get_mut(worker)?.stop(of)
    }

    /// Counts a sample of a request as done.
    fn close(&mut self, of: SampleId) {
        let Some(open) = self.open.get_mut(&of.request) else {
            return;
        };
        open.texts.remove(&of.sample);
        open.left -= 1;
        if open.left == 0 {
            self.open.remove(&of.request);
        }
    }

    fn fail(&mut self, of: SampleId, error: GenerateError, events: &mut Vec<Event>) {
        events.push(Event::Failed { of, error });
        self.close(of);
    }

    fn answer_with_nothing(&mut self, id: RequestId, request: &Request) {
        let of = |sample| SampleId {
            request: id,
            sample,
        };
        let text = request.needs_text().then(String::new);
        let events = (0..request.samples).map(|sample| nothing(of(sample), text.clone()));
        self.ready.extend(events);
    }
}

/// The end of a sample without a token.
fn nothing(of: SampleId, text: Option<String>) -> Event {
    Event::Finished {
        of,
        text: String::new(),
        sample: Sample {
            tokens: Vec::new(),
            finish: FinishReason::Length,
            stop_token: false,
            logprobs: Vec::new(),
            text,
        },
    }
}

/// Answers all requests at once; results in the order of requests and samples.
pub fn answer_all<B: ModelOps>(
    engine: &mut Engine<B>,
    requests: Vec<Request>,
) -> Result<Vec<Vec<Sample>>, GenerateError> {
    let mut found: Vec<Vec<Option<Sample>>> = Vec::new();
    let mut numbers = BTreeMap::new();
    for (number, request) in requests.into_iter().enumerate() {
        found.push(vec![None; request.samples]);
        numbers.insert(engine.submit(request)?, number);
    }
    while !engine.is_idle() {
        for event in engine.step()? {
            let (of, sample) = match event {
                Event::Finished { of, sample, .. } => (of, sample),
                Event::Failed { error, .. } => return Err(error),
                Event::Prompt { .. } | Event::Token { .. } => continue,
            };
            if let Some(&number) = numbers.get(&of.request) {
                found[number][of.sample] = Some(sample);
            }
        }
    }
    Ok(found
        .into_iter()
        .map(|s| s.into_iter().flatten().collect())
        .collect())
}
