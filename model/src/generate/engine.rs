//! Continuous batching: requests come and go at any time, every step draws a token for each
//! sequence in a slot.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::plan::CachePlan;
use super::request::{Event, FinishReason, GenerateError, Request, RequestId, Sample, SampleId};
use super::stop::TextStream;
use super::worker::{Drawn, Worker};
use crate::llama::slot_cache::Writes;
use crate::llama::{Decoder, LlamaConfig};
use crate::ops::ModelOps;
use crate::tokenizer::Tokenizer;

/// Answers requests with a fixed number of slots.
///
/// A response is a function of the model and of the request's prompt, id, seed and parameters:
/// which other requests there are, when they come and how many slots there are changes nothing on
/// a CPU backend. On GPUs other batch shapes may choose other kernels, whose rounding differs.
pub struct Engine<B: Backend> {
    decoder: Arc<Decoder<B>>,
    plan: CachePlan,
    workers: Vec<Worker<B>>,
    /// Accepted, but no worker has room.
    queue: VecDeque<(RequestId, Arc<Request>)>,
    open: BTreeMap<RequestId, Open>,
    tokenizer: Option<Arc<Tokenizer>>,
    ready: Vec<Event>,
    next: u64,
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
        let workers = (0..plan.workers)
            .map(|number| Worker::new(&decoder, &plan, number, writes))
            .collect();
        Self {
            decoder,
            plan,
            workers,
            queue: VecDeque::new(),
            open: BTreeMap::new(),
            tokenizer,
            ready: Vec::new(),
            next: 0,
        }
    }

    /// Accepts a request, or says why it can never be answered.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, GenerateError> {
        check_prompt(&self.decoder.config, &request.id, &request.prompt)?;
        let needed = request.most_tokens(self.decoder.config.max_position_embeddings);
        if needed > self.plan.tokens {
            return Err(GenerateError::SlotTooSmall {
                id: request.id,
                needed,
                slot: self.plan.tokens,
            });
        }
        if request.needs_text() && self.tokenizer.is_none() {
            return Err(GenerateError::NoTokenizer { id: request.id });
        }
        if request.stop.iter().any(String::is_empty) {
            return Err(GenerateError::EmptyStop { id: request.id });
        }
        let id = RequestId(self.next);
        self.next += 1;
        if request.params.max_new_tokens == 0 {
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
        self.queue.is_empty()
    }

    /// What it has done and does.
    pub fn counts(&self) -> EngineCounts {
        EngineCounts {
            cache_bytes: self.plan.bytes,
            ..EngineCounts::default()
        }
    }

    /// Draws a token for every sequence under way; what happened, by workers and slots.
    pub fn step(&mut self) -> Result<Vec<Event>, GenerateError> {
        self.assign();
        let (decoder, plan) = (&self.decoder, &self.plan);
        let step =
            |(number, worker): (usize, &mut Worker<B>)| worker.step(decoder, plan.slots_of(number));
        let drawn: Vec<Vec<Drawn>> = match self.workers.len() {
            // A device is driven from one thread only.
            1 => self
                .workers
                .iter_mut()
                .enumerate()
                .map(step)
                .collect::<Result<_, _>>()?,
            _ => self
                .workers
                .par_iter_mut()
                .enumerate()
                .map(step)
                .collect::<Result<_, _>>()?,
        };
        let mut events = std::mem::take(&mut self.ready);
        for one in drawn.into_iter().flatten() {
            self.report(one, &mut events)?;
        }
        Ok(events)
    }

    /// Gives queued requests to the workers with the most room; only as many as begin soon, so that
    /// workers that finish early get more.
    fn assign(&mut self) {
        while let Some((id, request)) = self.queue.pop_front() {
            let room = |worker: usize| {
                self.plan.slots_of(worker) as isize - self.workers[worker].load() as isize
            };
            let best = (0..self.workers.len())
                .max_by_key(|&worker| (room(worker), std::cmp::Reverse(worker)));
            match best.filter(|&worker| room(worker) > 0) {
                Some(worker) => {
                    self.workers[worker].push(id, request);
                    if let Some(open) = self.open.get_mut(&id) {
                        open.worker = Some(worker);
                    }
                }
                None => {
                    self.queue.push_front((id, request));
                    return;
                }
            }
        }
    }

    fn report(&mut self, drawn: Drawn, events: &mut Vec<Event>) -> Result<(), GenerateError> {
        let (of, token, finished) = match drawn {
            Drawn::Token {
                of,
                token,
                finished,
            } => (of, token, finished),
            Drawn::NonFinite { of } => {
                self.fail(of, events);
                return Ok(());
            }
        };
        let Some(open) = self.open.get_mut(&of.request) else {
            return Ok(());
        };
        let mut finished = finished;
        let (mut text, mut rest) = (String::new(), String::new());
        if let Some(tokenizer) = self
            .tokenizer
            .as_ref()
            .filter(|_| open.request.needs_text())
        {
            let failed = |source| GenerateError::Text {
                id: open.request.id.clone(),
                source,
            };
            let stream = open.texts.entry(of.sample);
            let stream = stream.or_insert_with(|| TextStream::new(open.request.stop.clone()));
            if !finished.as_ref().is_some_and(|sample| sample.stop_token) {
                text = stream.push(tokenizer, token).map_err(failed)?;
            }
            if finished.is_some() {
                rest = stream.finish(tokenizer).map_err(failed)?;
            }
            if stream.stopped() && finished.is_none() {
                let worker = open.worker.and_then(|worker| self.workers.get_mut(worker));
                finished = worker.and_then(|worker| worker.stop(of));
            }
            if let Some(sample) = &mut finished {
                if stream.stopped() {
                    sample.finish = FinishReason::Stop;
                }
                sample.text = Some(stream.text().to_string());
                open.texts.remove(&of.sample);
            }
        }
        events.push(Event::Token {
            of,
            token,
            score: None,
            text,
        });
        if let Some(sample) = finished {
            open.left -= 1;
            if open.left == 0 {
                self.open.remove(&of.request);
            }
            events.push(Event::Finished {
                of,
                text: rest,
                sample,
            });
        }
        Ok(())
    }

    fn fail(&mut self, of: SampleId, events: &mut Vec<Event>) {
        let Some(open) = self.open.get_mut(&of.request) else {
            return;
        };
        let id = open.request.id.clone();
        events.push(Event::Failed { of, id });
        open.texts.remove(&of.sample);
        open.left -= 1;
        if open.left == 0 {
            self.open.remove(&of.request);
        }
    }

    fn answer_with_nothing(&mut self, id: RequestId, request: &Request) {
        let events = (0..request.samples).map(|sample| Event::Finished {
            of: SampleId {
                request: id,
                sample,
            },
            text: String::new(),
            sample: Sample {
                tokens: Vec::new(),
                finish: FinishReason::Length,
                stop_token: false,
                logprobs: Vec::new(),
                text: request.needs_text().then(String::new),
            },
        });
        self.ready.extend(events);
    }
}

/// Refuses a prompt that the model cannot answer.
pub fn check_prompt(config: &LlamaConfig, id: &str, prompt: &[u32]) -> Result<(), GenerateError> {
    let id = id.to_string();
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt { id });
    }
    if prompt.len() >= config.max_position_embeddings {
        return Err(GenerateError::PromptTooLong {
            id,
            tokens: prompt.len(),
            context: config.max_position_embeddings,
        });
    }
    if let Some(&token) = prompt.iter().find(|&&t| t as usize >= config.vocab_size) {
        return Err(GenerateError::UnknownToken {
            id,
            token,
            vocab: config.vocab_size,
        });
    }
    Ok(())
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
                Event::Failed { id, .. } => return Err(GenerateError::NonFinite { id }),
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
