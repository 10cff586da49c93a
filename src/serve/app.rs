//! What all handlers share.

use std::sync::Arc;
use std::time::Duration;

use sppo_model::generate::{EngineHandle, Job, NotAccepted};

use super::ask::Ask;
use super::error::ApiError;
use super::keys::ApiKey;
use super::life::Life;
use super::metrics::Metrics;
use super::model::Served;
use super::sink::{Events, channel_for};
use super::unknown::UnknownKeys;

/// Bytes of a body.
pub const MOST_BYTES: usize = 16 << 20;

/// The server.
pub struct App {
    /// Its model.
    pub served: Served,
    /// Where it is between start and end.
    pub life: Arc<Life>,
    /// Who answers.
    pub engine: EngineHandle,
    /// Jobs that may wait there.
    pub most_waiting: usize,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// What every route but `/health` asks for.
    pub key: Option<ApiKey>,
    /// `/tokenizer_info`, where it is on.
    pub tokenizer_info: Option<String>,
    /// How long a client may take to send a request, or to take the next piece of an answer.
    pub timeout: Duration,
    /// Keys that were named.
    pub unknown: UnknownKeys,
}

impl App {
    /// Hands a request to the engine.
    pub fn submit(&self, ask: &Ask) -> Result<Events, ApiError> {
        let requests = ask.requests(self.served.context);
        let longest = requests.iter().map(|request| request.params.max_new_tokens);
        let tokens = longest.sum::<usize>().saturating_mul(ask.wishes.n);
        let (sink, events) = channel_for(ask, tokens, &self.metrics);
        let sink = Box::new(sink);
        match self.engine.submit(Job { requests, sink }) {
            Ok(()) => Ok(events),
            Err(NotAccepted::Full) => Err(ApiError::full(self.most_waiting)),
            Err(NotAccepted::Stopped) => Err(ApiError::unavailable("the server is shutting down")),
        }
    }

    /// Why the events of a request ended before it was answered.
    pub fn cut_short(&self, events: &Events) -> ApiError {
        match events.overran() {
            true => ApiError::internal("the answer was dropped: it was read too slowly"),
            false => ApiError::unavailable("the server stopped before the answer was whole"),
        }
    }
}
