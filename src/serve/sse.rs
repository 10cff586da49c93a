//! Answers as they are made: server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use futures_util::stream::unfold;
use serde_json::{Value, json};
use sppo_model::generate::{Event, Sample, TokenScore};

use super::answer::{OfPrompt, Usage, failed, prompt_places, prompt_text, understood};
use super::app::App;
use super::ask::{Ask, Form};
use super::error::ApiError;
use super::head::Head;
use super::life::UnderWay;
use super::logprobs::{self, Offsets, Place};
use super::sink::Events;

/// So often something is sent while nothing comes, so that proxies keep the connection.
const PULSE: Duration = Duration::from_secs(15);

/// A response that streams the answer to `ask`.
pub fn streamed(app: Arc<App>, ask: Ask, events: Events, under_way: UnderWay) -> Response {
    let stream = Stream {
        head: Head::new(&app, &ask),
        usage: Usage::of(&ask),
        prompts: vec![OfPrompt::default(); ask.prompts.len()],
        choices: (0..ask.choices()).map(|_| Choice::default()).collect(),
        left: ask.choices(),
        lines: VecDeque::new(),
        over: false,
        app,
        ask,
        events,
        _under_way: under_way,
    };
    let parts = unfold(stream, |mut stream| async {
        let part = stream.part().await?;
        Some((Ok::<_, Infallible>(part), stream))
    });
    let mut response = Response::new(Body::from_stream(parts));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// One answer on its way.
#[derive(Default)]
struct Choice {
    /// Made by the first event.
    offsets: Option<Offsets>,
}

struct Stream {
    app: Arc<App>,
    ask: Ask,
    events: Events,
    head: Head,
    usage: Usage,
    prompts: Vec<OfPrompt>,
    choices: Vec<Choice>,
    left: usize,
    /// Written, not sent.
    lines: VecDeque<String>,
    over: bool,
    _under_way: UnderWay,
}

impl Stream {
    /// What is sent next; none at the end.
    async fn part(&mut self) -> Option<Bytes> {
        while self.lines.is_empty() {
            if self.over {
                return None;
            }
            match tokio::time::timeout(PULSE, self.events.from.recv()).await {
                Err(_) => self.lines.push_back(": waiting\n\n".into()),
                Ok(None) => self.fail(&self.app.cut_short(&self.events)),
                Ok(Some(arrived)) => {
                    self.take(arrived);
                    while !self.over
                        && let Ok(arrived) = self.events.from.try_recv()
                    {
                        self.take(arrived);
                    }
                }
            }
        }
        let part: String = self.lines.drain(..).collect();
        Some(part.into())
    }

    fn say(&mut self, value: &Value) {
        self.lines.push_back(format!("data: {value}\n\n"));
    }

    fn fail(&mut self, error: &ApiError) {
        self.say(&error.body());
        self.over = true;
    }

    fn take(&mut self, arrived: super::sink::Arrived) {
        let number = arrived.0;
        let taken = understood(arrived).and_then(|event| self.event(number, event));
        if let Err(error) = taken {
            self.fail(&error);
        }
    }

    fn event(&mut self, number: usize, event: Event) -> Result<(), ApiError> {
        let place = |sample: usize| number * self.ask.wishes.n + sample;
        match event {
            Event::Prompt { cached, scores, .. } => {
                self.usage.cached += cached;
                self.prompts[number].scores = scores;
            }
            Event::Token {
                of,
                token,
                score,
                text,
            } => {
                let index = place(of.sample);
                self.begin(index)?;
                self.token(index, token, score, text);
            }
            Event::Finished { of, text, sample } => {
                let index = place(of.sample);
                self.begin(index)?;
                self.finish(index, text, &sample);
            }
            Event::Failed { error, .. } => return Err(failed(error)),
        }
        Ok(())
    }

    /// What comes before an answer's first token: the role, or the prompt where it is echoed.
    fn begin(&mut self, index: usize) -> Result<(), ApiError> {
        if self.choices[index].offsets.is_some() {
            return Ok(());
        }
        let mut characters = 0;
        match self.ask.form {
            Form::Chat => {
                let delta = json!({"role": "assistant", "content": ""});
                self.chunk(index, delta, None, None);
            }
            Form::Completion if self.ask.echo => {
                let text = prompt_text(&self.app, &self.ask, index)?;
                characters = text.chars().count();
                let logprobs = self.ask.wishes.logprobs.map(|most| {
                    let scores = &self.prompts[index / self.ask.wishes.n].scores;
                    let places = prompt_places(&self.app, &self.ask, index, &text, scores);
                    logprobs::of_completion(&places, most, &self.app.served.tokenizer)
                });
                self.chunk(index, text.into(), logprobs, None);
            }
            Form::Completion => {}
        }
        self.choices[index].offsets = Some(Offsets::new(characters, true));
        Ok(())
    }

    fn token(&mut self, index: usize, token: u32, score: Option<TokenScore>, text: String) {
        let logprobs = self.ask.wishes.logprobs.map(|most| {
            let tokenizer = &self.app.served.tokenizer;
            let offsets = self.choices[index].offsets.as_mut();
            let offset = offsets.map_or(0, |offsets| offsets.next(tokenizer, token));
            let places = [Place {
                token,
                score,
                offset,
            }];
            match self.ask.form {
                Form::Completion => logprobs::of_completion(&places, most, tokenizer),
                Form::Chat => logprobs::of_chat(&places, most, tokenizer),
            }
        });
        if !text.is_empty() || logprobs.is_some() {
            self.chunk(index, self.delta(text), logprobs, None);
        }
    }

    fn finish(&mut self, index: usize, rest: String, sample: &Sample) {
        self.usage.drawn += sample.tokens.len();
        let tokenizer = self.app.served.tokenizer.clone();
        let decode = |ids: &[u32]| tokenizer.decode(ids, true).unwrap_or_default();
        let stop = self.ask.stop_reason(sample, decode);
        if !rest.is_empty() {
            self.chunk(index, self.delta(rest), None, None);
        }
        let empty = match self.ask.form {
            Form::Completion => "".into(),
            Form::Chat => json!({}),
        };
        self.chunk(index, empty, None, Some((sample.finish.as_str(), stop)));
        self.left -= 1;
        if self.left == 0 {
            self.end();
        }
    }

    fn end(&mut self) {
        if self.ask.wishes.include_usage {
            let last = self.head.body(Vec::new(), Some(self.usage.json()));
            self.say(&last);
        }
        self.lines.push_back("data: [DONE]\n\n".into());
        self.over = true;
    }

    fn delta(&self, text: String) -> Value {
        match self.ask.form {
            Form::Completion => text.into(),
            Form::Chat => json!({"content": text}),
        }
    }

    fn chunk(
        &mut self,
        index: usize,
        content: Value,
        logprobs: Option<Value>,
        end: Option<(&str, Value)>,
    ) {
        let key = match self.ask.form {
            Form::Completion => "text",
            Form::Chat => "delta",
        };
        let (finish, stop) = end.unzip();
        let choice = json!({
            "index": index,
            key: content,
            "logprobs": logprobs,
            "finish_reason": finish,
            "stop_reason": stop.unwrap_or_default(),
        });
        let body = self.head.body(vec![choice], None);
        self.say(&body);
    }
}
