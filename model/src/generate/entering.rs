//! A prompt on its way in: computed in chunks, scored where that is asked for, then handed to its
//! samples.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use burn::tensor::{Tensor, backend::Backend};

use super::candidates::StepLogits;
use super::prefixes::{Computed, Prefixes, lock};
use super::prompt_scores::score_tokens;
use super::request::{GenerateError, Request, RequestId, TokenScore};
use crate::llama::Decoder;
use crate::llama::decoder::PREFILL_CHUNK;
use crate::ops::ModelOps;

/// A prompt that is prefilled, then handed to its samples.
pub(super) struct Entering<B: Backend> {
    pub id: RequestId,
    pub request: Arc<Request>,
    /// Samples that have not started, in order.
    pub samples: VecDeque<usize>,
    /// Tokens that were there already.
    pub cached: usize,
    /// Of the prompt, as far as it got.
    computed: Option<Computed<B>>,
    /// Whether all outputs are kept, or the last chunk's.
    whole: bool,
    end: Option<End<B>>,
}

/// How the way in ended.
enum End<B: Backend> {
    /// With the logits behind the prompt `[1, vocab]`.
    Logits(StepLogits<B>),
    /// Logits within the prompt are not finite.
    NonFinite,
}

impl<B: ModelOps> Entering<B> {
    pub fn new(id: RequestId, request: Arc<Request>, kept: &Mutex<Prefixes<B>>) -> Self {
        let mut kept = lock(kept);
        let mut computed = kept.find(&request.prompt);
        if let Some(computed) = &mut computed {
            // Scores with too few of the likeliest tokens are made again from the outputs.
            match (computed.likeliest, request.prompt_logprobs) {
                (Some(there), Some(asked)) if there >= asked => {
                    let scores = computed.scores.iter_mut();
                    scores.for_each(|score| score.likeliest.truncate(asked));
                }
                _ => computed.scores.clear(),
            }
            computed.likeliest = request.prompt_logprobs;
        }
        Self {
            id,
            samples: (0..request.samples).collect(),
            cached: computed.as_ref().map_or(0, Computed::tokens),
            computed,
            whole: kept.room() > 0 || request.prompt_logprobs.is_some(),
            end: None,
            request,
        }
    }

    /// Whether the whole prompt is computed.
    pub fn is_ready(&self) -> bool {
        self.end.is_some()
    }

    /// The logits behind the prompt; none where there are none that are finite.
    pub fn logits(&self) -> Option<&StepLogits<B>> {
        match &self.end {
            Some(End::Logits(logits)) => Some(logits),
            _ => None,
        }
    }

    /// Keys and values of its tokens.
    pub fn prefix(&self) -> &[(Tensor<B, 3>, Tensor<B, 3>)] {
        self.computed.as_ref().map_or(&[], |c| &c.prefix)
    }

    /// Tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.computed.as_ref().map_or(0, Computed::tokens)
    }

    /// Runs the tokens up to the end of a chunk; how many those were.
    pub fn prefill(
        &mut self,
        decoder: &Decoder<B>,
        on_device: bool,
    ) -> Result<usize, GenerateError> {
        let done = self.tokens();
        let request = self.request.clone();
        let end = (done / PREFILL_CHUNK + 1) * PREFILL_CHUNK;
        let new = &request.prompt[done..end.min(request.prompt.len())];
        if !new.is_empty() {
            self.run(new, decoder);
        }
        let new = new.len();
        if self.request.prompt_logprobs.is_some() && !self.score(decoder, on_device)? {
            self.end = Some(End::NonFinite);
        } else if done + new == self.request.prompt.len()
            && let Some(hidden) = self.computed.as_ref().and_then(|c| c.hidden.clone())
        {
            let last = hidden.dims()[0] - 1;
            let logits = decoder.logits(hidden.narrow(0, last, 1));
            let logits = StepLogits::new(logits, &[&self.request.params], on_device)?;
            self.end = Some(End::Logits(logits));
        }
        Ok(new)
    }

    fn run(&mut self, new: &[u32], decoder: &Decoder<B>) {
        let mut computed = self.computed.take().unwrap_or_else(|| Computed {
            prefix: Vec::new(),
            hidden: None,
            scores: Vec::new(),
            likeliest: self.request.prompt_logprobs,
        });
        let hidden = decoder.prefill(new, &mut computed.prefix);
        computed.hidden = Some(match computed.hidden.filter(|_| self.whole) {
            Some(before) => Tensor::cat(vec![before, hidden], 0),
            None => hidden,
        });
        self.computed = Some(computed);
    }

    /// Scores the tokens behind those outputs that are there and not used yet; whether all logits
    /// are finite.
    fn score(&mut self, decoder: &Decoder<B>, on_device: bool) -> Result<bool, GenerateError> {
        let (Some(computed), Some(likeliest)) = (&mut self.computed, self.request.prompt_logprobs)
        else {
            return Ok(true);
        };
        let Some(hidden) = &computed.hidden else {
            return Ok(true);
        };
        let first = computed.scores.len();
        let next = self.request.prompt.get(first + 1..).unwrap_or_default();
        let count = next.len().min(hidden.dims()[0] - first);
        if count == 0 {
            return Ok(true);
        }
        let hidden = hidden.clone().narrow(0, first, count);
        let scores = score_tokens(decoder, hidden, &next[..count], likeliest, on_device)?;
        let is_finite = scores.is_some();
        computed.scores.extend(scores.into_iter().flatten());
        Ok(is_finite)
    }

    /// The scores of the prompt's tokens but the first, where the request asks for them.
    pub fn scores(&self) -> Vec<TokenScore> {
        let asked = self.request.prompt_logprobs.and(self.computed.as_ref());
        asked.map_or_else(Vec::new, |computed| computed.scores.clone())
    }

    /// Keeps what was computed for prompts that begin alike. What is not finite would reach them.
    pub fn keep(&self, kept: &Mutex<Prefixes<B>>) {
        if let (Some(computed), Some(logits)) = (&self.computed, self.logits())
            && logits.is_finite(0)
        {
            lock(kept).keep(&self.request.prompt, computed);
        }
    }
}
