//! What is asked of the engine, and what comes back.

use super::sampling::SamplingParams;
use crate::tokenizer::TokenizerError;

/// A prompt to be answered `samples` times.
#[derive(Clone, Debug)]
pub struct Request {
    /// Stable name of the prompt; the random draws belong to it.
    pub id: String,
    /// Prompt tokens, through the assistant header.
    pub prompt: Vec<u32>,
    /// Number of responses.
    pub samples: usize,
    /// How each response is drawn.
    pub params: SamplingParams,
    /// Texts that end a response; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the events carry text.
    pub stream: bool,
    /// Whether samples carry log-probabilities.
    pub logprobs: bool,
    /// How many of the likeliest tokens come with each drawn one, with their log-probabilities; at
    /// most [`MOST_LIKELIEST`].
    pub likeliest: usize,
    /// Scores the prompt's tokens, with so many of the likeliest tokens at each place (at most
    /// [`MOST_LIKELIEST`]); they come before the first sample's tokens, which may be none.
    pub prompt_logprobs: Option<usize>,
}

/// Most tokens whose log-probabilities are given for one place.
pub const MOST_LIKELIEST: usize = 20;

impl Request {
    /// A request without stop strings, text or log-probabilities.
    pub fn new(id: String, prompt: Vec<u32>, samples: usize, params: SamplingParams) -> Self {
        Self {
            id,
            prompt,
            samples,
            params,
            stop: Vec::new(),
            stream: false,
            logprobs: false,
            likeliest: 0,
            prompt_logprobs: None,
        }
    }

    /// Most tokens that a slot holds for it, in a context of `context`.
    pub fn most_tokens(&self, context: usize) -> usize {
        self.prompt
            .len()
            .saturating_add(self.params.max_new_tokens)
            .min(context)
    }

    pub(super) fn needs_text(&self) -> bool {
        self.stream || !self.stop.is_empty()
    }
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was drawn, or a stop string written.
    Stop,
    /// `max_new_tokens` or the context was reached.
    Length,
}

impl FinishReason {
    /// The name that vLLM and the OpenAI API use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// One sampled response.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Drawn tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Whether the last token is a stop token, which makes no text.
    pub stop_token: bool,
    /// Log-probabilities of the tokens under the model, without temperature or cuts, in nats;
    /// empty unless asked for.
    pub logprobs: Vec<f64>,
    /// The text, cut before a stop string, where the request needs text.
    pub text: Option<String>,
}

impl Sample {
    /// The tokens that make the text: all but the stop token.
    pub fn text_tokens(&self) -> &[u32] {
        let end = self.tokens.len() - usize::from(self.stop_token);
        &self.tokens[..end]
    }
}

/// A token's log-probability under the model, in nats: of the whole distribution, without
/// temperature, cuts, bias or penalties.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens at its place and theirs, likeliest first, ties by id: as many as were
    /// asked for. The token itself has the same bits here and there.
    pub likeliest: Vec<(u32, f32)>,
}

/// Number of a request within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) u64);

/// One sample of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId {
    /// The request it answers.
    pub request: RequestId,
    /// From 0.
    pub sample: usize,
}

/// What a step of the engine brought.
#[derive(Debug)]
pub enum Event {
    /// A request's prompt is computed; comes once, before its tokens. What needs no prompt, since
    /// neither tokens nor scores are asked for, has none.
    Prompt {
        /// The request.
        request: RequestId,
        /// How many of its tokens were there already, from prompts that began alike.
        cached: usize,
        /// Of its tokens but the first, which nothing comes before, where the request asks for them.
        scores: Vec<TokenScore>,
    },
    /// A token was drawn.
    Token {
        /// The sample it belongs to.
        of: SampleId,
        /// Its id.
        token: u32,
        /// Its log-probability, where the request asks for log-probabilities or the likeliest
        /// tokens.
        score: Option<TokenScore>,
        /// Text that is final now, for requests that stream; often empty.
        text: String,
    },
    /// A response is complete. `text` is the rest of a stream that was held back.
    Finished {
        /// The sample that is complete.
        of: SampleId,
        /// Empty where nothing was held back.
        text: String,
        /// The whole response.
        sample: Sample,
    },
    /// A response cannot go on: the model's logits for it are not finite, or its tokens are no text;
    /// nothing more is heard of it. The others do go on.
    Failed {
        /// The sample that is dropped.
        of: SampleId,
        /// Why, with the name of its prompt.
        error: GenerateError,
    },
}

impl Event {
    /// The request that it tells of.
    pub fn request(&self) -> RequestId {
        match self {
            Self::Prompt { request, .. } => *request,
            Self::Token { of, .. } | Self::Finished { of, .. } | Self::Failed { of, .. } => {
                of.request
            }
        }
    }
}

/// Why prompts cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A prompt without tokens.
    #[error("prompt {id} is empty")]
    EmptyPrompt {
        /// The prompt's name.
        id: String,
    },
    /// A prompt that fills the model's context or more.
    #[error(
        "prompt {id} has {tokens} tokens, which leaves no room in the model's context of {context}"
    )]
    PromptTooLong {
        /// The prompt's name.
        id: String,
        /// Its length in tokens.
        tokens: usize,
        /// The model's context in tokens.
        context: usize,
    },
    /// A prompt with an id outside the model's vocabulary.
    #[error("prompt {id} holds token {token}, but the model knows only {vocab}")]
    UnknownToken {
        /// The prompt's name.
        id: String,
        /// The first such id.
        token: u32,
        /// Size of the vocabulary; ids are below it.
        vocab: usize,
    },
    /// A request that may grow longer than a slot of the cache.
    #[error(
        "prompt {id} needs {needed} tokens of cache with its response, but a slot holds {slot}; lower max_new_tokens"
    )]
    SlotTooSmall {
        /// The prompt's name.
        id: String,
        /// Most tokens of prompt and response.
        needed: usize,
        /// Tokens that a slot holds.
        slot: usize,
    },
    /// A budget that is too small for the cache of one sequence.
    #[error(
        "one sequence of {tokens} tokens needs {needed} MiB of cache, but the budget is {budget} MiB; raise generate.cache_memory_mib (--cache-memory-mib) or lower max_new_tokens"
    )]
    NoRoom {
        /// Length of the sequence.
        tokens: usize,
        /// What its cache takes, in MiB.
        needed: u64,
        /// What it may take, in MiB.
        budget: u64,
    },
    /// A request for text from an engine that has no tokenizer.
    #[error("prompt {id}: stop strings and streamed text need the model's tokenizer")]
    NoTokenizer {
        /// The prompt's name.
        id: String,
    },
    /// A stop string without characters.
    #[error("prompt {id}: an empty stop string would end every response at once")]
    EmptyStop {
        /// The prompt's name.
        id: String,
    },
    /// A response that cannot be turned into text.
    #[error("prompt {id}: {source}")]
    Text {
        /// The prompt's name.
        id: String,
        /// What the tokenizer said.
        source: TokenizerError,
    },
    /// Logits with NaN or infinity.
    #[error("prompt {id}: the model's logits are not finite (NaN or infinite weights?)")]
    NonFinite {
        /// The prompt's name.
        id: String,
    },
    /// Logits that cannot be read from the device; with its message.
    #[error("reading the logits failed: {0}")]
    Device(String),
}
