//! From the engine's thread to a request's task: a bounded channel that never makes the engine wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sppo_model::generate::{Event, EventSink, GenerateError, SampleId};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::ask::Ask;
use super::metrics::Metrics;

/// An event of the prompt of this number.
pub type Arrived = (usize, Result<Event, GenerateError>);

/// Tokens of one answer that wait for a slow reader.
const WAITING_TOKENS: usize = 512;

/// The engine's end.
pub struct Sink {
    to: Sender<Arrived>,
    keeps_tokens: bool,
    samples: usize,
    overrun: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
    begun: Instant,
    /// When the last token of each answer came.
    last: Vec<Option<Instant>>,
}

/// The task's end.
pub struct Events {
    /// What comes.
    pub from: Receiver<Arrived>,
    overrun: Arc<AtomicBool>,
}

impl Events {
    /// Whether the channel ended because nobody took what was in it.
    pub fn overran(&self) -> bool {
        self.overrun.load(Ordering::SeqCst)
    }
}

/// Both ends for a request. Where the whole answer is collected, whoever reads is this program, and
/// there is room for all of it.
pub fn channel_for(ask: &Ask, tokens: usize, metrics: &Arc<Metrics>) -> (Sink, Events) {
    let choices = ask.choices();
    let room = match ask.wishes.stream {
        true => choices.saturating_mul(WAITING_TOKENS),
        false => tokens.saturating_add(choices.saturating_mul(4)),
    };
    let room = room.clamp(16, tokio::sync::Semaphore::MAX_PERMITS);
    let (to, from) = channel(room);
    let overrun = Arc::<AtomicBool>::default();
    let sink = Sink {
        to,
        keeps_tokens: ask.keeps_tokens(),
        samples: ask.wishes.n,
        overrun: overrun.clone(),
        metrics: metrics.clone(),
        begun: Instant::now(),
        last: vec![None; choices],
    };
    (sink, Events { from, overrun })
}

impl Sink {
    /// Counts a token that was drawn now.
    fn time(&mut self, request: usize, of: SampleId) {
        let place = request * self.samples + of.sample;
        let Some(last) = self.last.get_mut(place) else {
            return;
        };
        let now = Instant::now();
        match last.replace(now) {
            None => self.metrics.first_token((now - self.begun).as_secs_f64()),
            Some(before) => self.metrics.next_token((now - before).as_secs_f64()),
        }
    }
}

impl EventSink for Sink {
    fn send(&mut self, request: usize, event: Result<Event, GenerateError>) -> bool {
        if let Ok(Event::Token { of, .. }) = &event {
            self.time(request, *of);
            if !self.keeps_tokens {
                return !self.to.is_closed();
            }
        }
        if let Ok(Event::Finished { sample, .. }) = &event {
            self.metrics.finished(sample.finish.as_str());
        }
        let sent = self.to.try_send((request, event));
        if matches!(sent, Err(tokio::sync::mpsc::error::TrySendError::Full(_))) {
            self.overrun.store(true, Ordering::SeqCst);
        }
        sent.is_ok()
    }

    fn is_gone(&self) -> bool {
        self.to.is_closed() || self.overrun.load(Ordering::SeqCst)
    }
}
