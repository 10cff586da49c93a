//! Prompts on their way in: computed together, a pass at a time, scored where that is asked for, then
//! handed to their samples.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use burn::tensor::{Tensor, backend::Backend};

use super::candidates::StepLogits;
use super::prefixes::{Computed, Prefixes, lock};
use super::prompt_scores::score_tokens;
use super::request::{GenerateError, Request, RequestId, TokenScore};
use crate::llama::{Decoder, Piece, Prefix};
use crate::ops::{ModelOps, ints};

/// A prompt that is prefilled, then handed to its samples.
pub(super) struct Entering<B: Backend> {
    pub id: RequestId,
    pub request: Arc<Request>,
    /// Samples that have not started, in order.
    pub samples: VecDeque<usize>,
    /// Tokens that were there already.
    pub cached: usize,
    /// Of the prompt, as far as it got.
    computed: Computed<B>,
    /// Whether all outputs are kept, or the last pass's.
    whole: bool,
    end: Option<End<B>>,
}

/// How the way in ended.
enum End<B: Backend> {
    /// With logits behind prompts `[prompts, vocab]`, its own in this row.
    Logits(Arc<StepLogits<B>>, usize),
    /// Logits within the prompt are not finite.
    NonFinite,
}

impl<B: ModelOps> Entering<B> {
    pub fn new(id: RequestId, request: Arc<Request>, kept: &Mutex<Prefixes<B>>) -> Self {
        let mut kept = lock(kept);
        let mut computed = kept.find(&request.prompt).unwrap_or_else(|| Computed {
            prefix: Prefix::default(),
            hidden: None,
            scores: Vec::new(),
            likeliest: None,
        });
        // Scores with too few of the likeliest tokens are made again from the outputs.
        match (computed.likeliest, request.prompt_logprobs) {
            (Some(there), Some(asked)) if there >= asked => {
                let scores = computed.scores.iter_mut();
                scores.for_each(|score| score.likeliest.truncate(asked));
            }
            _ => computed.scores.clear(),
        }
        computed.likeliest = request.prompt_logprobs;
        Self {
            id,
            samples: (0..request.samples).collect(),
            cached: computed.tokens(),
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

    /// The logits behind the prompt, in a row of these; none where there are none that are finite.
    pub fn logits(&self) -> Option<(&StepLogits<B>, usize)> {
        match &self.end {
            Some(End::Logits(logits, row)) => Some((logits, *row)),
            _ => None,
        }
    }

    /// Keeps its own of the logits of a pass, where samples have to wait.
    pub fn leave_others(&mut self) {
        if let Some(End::Logits(logits, row)) = &mut self.end
            && logits.rows() > 1
        {
            *logits = Arc::new(logits.only(*row));
            *row = 0;
        }
    }

    /// Keys and values of its tokens.
    pub fn prefix(&self) -> &Prefix<B> {
        &self.computed.prefix
    }

    /// Tokens that are computed.
    pub fn tokens(&self) -> usize {
        self.computed.tokens()
    }

    /// The tokens that come next, up to the end of a pass.
    pub fn next(&self, pass: usize) -> Range<usize> {
        let done = self.tokens();
        let end = (done / pass + 1) * pass;
        done..end.min(self.request.prompt.len())
    }

    /// Takes the outputs of its next tokens.
    fn add(&mut self, hidden: Tensor<B, 2>) {
        let before = self.computed.hidden.take().filter(|_| self.whole);
        self.computed.hidden = Some(match before {
            Some(before) => Tensor::cat(vec![before, hidden], 0),
            None => hidden,
        });
    }

    /// Scores the tokens behind those outputs that are there and not used yet; whether all logits
    /// are finite.
    fn score(&mut self, decoder: &Decoder<B>, on_device: bool) -> Result<bool, GenerateError> {
        let (computed, Some(likeliest)) = (&mut self.computed, self.request.prompt_logprobs) else {
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
        match self.request.prompt_logprobs {
            Some(_) => self.computed.scores.clone(),
            None => Vec::new(),
        }
    }

    /// Keeps what was computed for prompts that begin alike. What is not finite would reach them.
    pub fn keep(&self, kept: &Mutex<Prefixes<B>>) {
        if let Some((logits, row)) = self.logits()
            && logits.is_finite(row)
        {
            lock(kept).keep(&self.request.prompt, &self.computed);
        }
    }
}

/// Runs the next tokens of all these prompts in one pass; how many those were.
pub(super) fn prefill<B: ModelOps>(
    entering: &mut [Entering<B>],
    decoder: &Decoder<B>,
    pass: usize,
    on_device: bool,
) -> Result<usize, GenerateError> {
    let (mut pieces, mut numbers) = (Vec::new(), Vec::new());
    for (number, one) in entering.iter_mut().enumerate() {
        let next = one.next(pass);
        // All of one may have been there already.
        if !next.is_empty() {
            numbers.push(number);
            pieces.push(Piece {
                tokens: &one.request.prompt[next],
                prefix: &mut one.computed.prefix,
            });
        }
    }
    let computed = pieces.iter().map(|piece| piece.tokens.len()).sum();
    let mut outputs = None;
    if !pieces.is_empty() {
        let (hidden, rows) = decoder.prefill(&mut pieces);
        for (&number, rows) in numbers.iter().zip(&rows) {
            entering[number].add(hidden.clone().narrow(0, rows.start, rows.len()));
        }
        outputs = Some((hidden, rows));
    }
    let mut ready = Vec::new();
    for (number, one) in entering.iter_mut().enumerate() {
        if one.request.prompt_logprobs.is_some() && !one.score(decoder, on_device)? {
            one.end = Some(End::NonFinite);
        } else if one.tokens() == one.request.prompt.len() {
            ready.push(number);
        }
    }
    // Those of the pass in one go, behind them those that were there.
    let (mut last, mut from_pass) = (Vec::new(), Vec::new());
    if let Some((hidden, rows)) = outputs {
        let of_ready = numbers.iter().zip(rows).filter(|(n, _)| ready.contains(n));
        let (numbers, rows): (Vec<usize>, Vec<i64>) = of_ready
            .map(|(&number, rows)| (number, rows.end as i64 - 1))
            .unzip();
        if !rows.is_empty() {
            let device = hidden.device();
            last.push(hidden.select(0, ints(rows, &device)));
        }
        from_pass = numbers;
    }
    ready.retain(|number| !from_pass.contains(number));
    for &number in &ready {
        if let Some(hidden) = &entering[number].computed.hidden {
            last.push(hidden.clone().narrow(0, hidden.dims()[0] - 1, 1));
        }
    }
    let ready = [from_pass, ready].concat();
    if !ready.is_empty() {
        let params = ready.iter().map(|&n| &entering[n].request.params);
        let params: Vec<_> = params.collect();
        let logits = decoder.logits(Tensor::cat(last, 0));
        let logits = Arc::new(StepLogits::new(logits, &params, on_device)?);
        for (row, number) in ready.into_iter().enumerate() {
            entering[number].end = Some(End::Logits(logits.clone(), row));
        }
    }
    Ok(computed)
}
