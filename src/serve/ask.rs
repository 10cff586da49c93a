//! A request that was understood: what the engine is asked, and within which bounds.

use serde_json::Value;
use sha2::{Digest, Sha256};
use sppo_model::generate::{FinishReason, Request, Sample};
use sppo_training::files::hex;

use super::error::ApiError;
use super::prompts::Prompt;
use super::sampling::Wishes;

/// Tokens that one request may come to: prompts and the longest answers.
const MOST_TOKENS: usize = 1 << 22;
/// Answers to all prompts of one request.
const MOST_CHOICES: usize = 4096;

/// Which route's form the answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// A request that was understood.
pub struct Ask {
    /// The form of its answer.
    pub form: Form,
    /// What is to be continued.
    pub prompts: Vec<Prompt>,
    /// How.
    pub wishes: Wishes,
    /// Whether the prompt stands in front of the answer.
    pub echo: bool,
}

impl Ask {
    /// Checks the bounds on all of it.
    pub fn check(&self, context: usize) -> Result<(), ApiError> {
        let choices = self.choices();
        if choices > MOST_CHOICES {
            return Err(ApiError::param(
                "n",
                format!(
                    "{} prompts with `n` {} make {choices} answers; at most {MOST_CHOICES} are given to one request",
                    self.prompts.len(),
                    self.wishes.n
                ),
            ));
        }
        let tokens = |prompt: &Prompt| {
            let answers = self.length(prompt, context).saturating_mul(self.wishes.n);
            prompt.ids.len().saturating_add(answers)
        };
        let tokens = self
            .prompts
            .iter()
            .map(tokens)
            .fold(0usize, usize::saturating_add);
        if tokens > MOST_TOKENS {
            return Err(ApiError::param(
                "max_tokens",
                format!(
                    "prompts and answers may come to {tokens} tokens; at most {MOST_TOKENS} are given to one request: lower `max_tokens` or `n`, or send fewer prompts"
                ),
            ));
        }
        let longest = self.wishes.max_tokens.unwrap_or(usize::MAX);
        if self.wishes.params.min_tokens > longest {
            let message = format!("`min_tokens` is more than `max_tokens`, {longest}");
            return Err(ApiError::param("min_tokens", message));
        }
        Ok(())
    }

    /// Answers to all prompts.
    pub fn choices(&self) -> usize {
        self.prompts.len() * self.wishes.n
    }

    /// Tokens of an answer at most: what was asked for, cut to what the context leaves.
    fn length(&self, prompt: &Prompt, context: usize) -> usize {
        let left = context.saturating_sub(prompt.ids.len());
        self.wishes.max_tokens.map_or(left, |most| most.min(left))
    }

    /// Whether what comes with tokens is needed one by one.
    pub fn keeps_tokens(&self) -> bool {
        self.wishes.stream || self.wishes.logprobs.is_some()
    }

    /// So many of the likeliest tokens come with those of the prompt.
    pub fn prompt_likeliest(&self) -> Option<usize> {
        let echoed = self.wishes.logprobs.filter(|_| self.echo);
        echoed.max(self.wishes.prompt_logprobs)
    }

    /// For the engine, one for each prompt.
    pub fn requests(&self, context: usize) -> Vec<Request> {
        let request = |prompt: &Prompt| {
            let mut params = self.wishes.params.clone();
            params.max_new_tokens = self.length(prompt, context);
            params.min_tokens = params.min_tokens.min(params.max_new_tokens);
            Request {
                stop: self.wishes.stop.clone(),
                stream: self.wishes.stream,
                logprobs: self.wishes.logprobs.is_some(),
                likeliest: self.wishes.logprobs.unwrap_or(0),
                prompt_logprobs: self.prompt_likeliest(),
                ..Request::new(name(&prompt.ids), prompt.ids.clone(), self.wishes.n, params)
            }
        };
        self.prompts.iter().map(request).collect()
    }

    /// vLLM's `stop_reason`: the stop string or id of the request that ended an answer; null where
    /// the model's own did, or the length. `text` is all that was decoded, the end included.
    pub fn stop_reason(&self, sample: &Sample, decode: impl Fn(&[u32]) -> String) -> Value {
        let (params, last) = (&self.wishes.params, sample.tokens.last());
        match (sample.finish, last) {
            (FinishReason::Stop, Some(last)) if sample.stop_token => {
                let text = self.wishes.stop_tokens.iter().find(|(id, _)| id == last);
                let of_model = params.stop_ids.contains(last) && !params.ignore_eos;
                match text {
                    _ if of_model => Value::Null,
                    Some((_, text)) => text.as_str().into(),
                    None => (*last).into(),
                }
            }
            (FinishReason::Stop, _) => {
                let kept = sample.text.as_ref().map_or(0, String::len);
                let whole = decode(sample.text_tokens());
                let end = whole.get(kept..).unwrap_or_default();
                let found = self
                    .wishes
                    .stop
                    .iter()
                    .find(|stop| end.starts_with(stop.as_str()));
                found.map_or(Value::Null, |stop| stop.as_str().into())
            }
            _ => Value::Null,
        }
    }
}

/// The stable name of a prompt, to which its random draws belong: equal ids, equal draws.
fn name(ids: &[u32]) -> String {
    let mut hash = Sha256::new();
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    hex(&hash.finalize())
}
