//! One batch of prompts, several samples each, decoded together.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::sampling::{Draws, SamplingParams, sample};
use crate::llama::layout::{MASKED, ints};
use crate::llama::transformer::CachedStep;
use crate::llama::{KvCache, Llama, LlamaConfig};

/// A prompt to be answered `samples` times.
#[derive(Clone, Debug)]
pub struct Request {
    /// Stable name of the prompt; the random draws belong to it.
    pub id: String,
    /// Prompt tokens, through the assistant header.
    pub prompt: Vec<u32>,
    pub samples: usize,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was drawn.
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
    pub finish: FinishReason,
}

impl Sample {
    /// The tokens that make the text: all but the stop token.
    pub fn text_tokens(&self) -> &[u32] {
        match self.finish {
            FinishReason::Stop => &self.tokens[..self.tokens.len().saturating_sub(1)],
            FinishReason::Length => &self.tokens,
        }
    }
}

/// Why prompts cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    #[error("prompt {id} is empty")]
    EmptyPrompt { id: String },
    #[error(
        "prompt {id} has {tokens} tokens, which leaves no room in the model's context of {context}"
    )]
    PromptTooLong {
        id: String,
        tokens: usize,
        context: usize,
    },
    #[error("prompt {id} holds token {token}, but the model knows only {vocab}")]
    UnknownToken {
        id: String,
        token: u32,
        vocab: usize,
    },
    #[error("prompt {id}: the model's logits are not finite (NaN or infinite weights?)")]
    NonFinite { id: String },
    #[error("reading the logits failed: {0}")]
    Device(String),
}

/// A response under way.
struct Row {
    request: usize,
    sample: usize,
    /// Left padding of its prompt in slots.
    padding: usize,
    draws: Draws,
    tokens: Vec<u32>,
    finish: Option<FinishReason>,
}

/// Answers every request; results in the order of requests and samples.
///
/// The samples of one prompt share its prefill. `progress` hears of every token batch and ends
/// the run early by returning false (the result is then `None`).
pub fn generate<B: Backend>(
    model: &Llama<B>,
    config: &LlamaConfig,
    requests: &[Request],
    params: &SamplingParams,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<Option<Vec<Vec<Sample>>>, GenerateError> {
    check_requests(config, requests)?;
    let samples = |r: &Request| r.samples;
    if requests.iter().map(samples).sum::<usize>() == 0 || params.max_new_tokens == 0 {
        let none = |r: &Request| {
            let empty = Sample {
                tokens: vec![],
                finish: FinishReason::Length,
            };
            vec![empty; r.samples]
        };
        return Ok(Some(requests.iter().map(none).collect()));
    }
    let device = model.device();
    let longest = requests.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
    let room = params.max_new_tokens.min(config.max_position_embeddings);
    let mut cache = KvCache::new(
        config,
        requests.len(),
        longest + room.min(64),
        model.dtype(),
        &device,
    );
    let logits = prefill(model, requests, longest, &mut cache, &device);
    let mut rows = rows(requests, longest, params.seed);
    let parents: Vec<usize> = rows.iter().map(|r| r.request).collect();
    cache.select_rows(&parents, &device);
    let logits = logits.select(
        0,
        ints(parents.iter().map(|&p| p as i64).collect(), &device),
    );
    let mut done = Vec::with_capacity(rows.len());
    let mut logits = host(logits)?;
    loop {
        let vocab = logits.len() / rows.len();
        for (row, logits) in rows.iter_mut().zip(logits.chunks_exact(vocab)) {
            if row.finish.is_none() {
                let prompt = &requests[row.request];
                row.draw(logits, prompt, params, config.max_position_embeddings)?;
            }
        }
        let active: Vec<usize> = (0..rows.len())
            .filter(|&i| rows[i].finish.is_none())
            .collect();
        if !progress(active.len()) {
            return Ok(None);
        }
        if active.is_empty() {
            done.append(&mut rows);
            return Ok(Some(collect(requests, done)));
        }
        // Dropping rows copies the cache, so wait until a quarter of them is done.
        if active.len() * 4 <= rows.len() * 3 {
            cache.select_rows(&active, &device);
            let (going, finished) = rows.into_iter().partition(|r| r.finish.is_none());
            rows = going;
            done.extend::<Vec<Row>>(finished);
        }
        logits = host(decode_one(model, &rows, &mut cache, room, &device))?;
    }
}

/// Refuses prompts that the model cannot answer, naming the first one.
pub fn check_requests(config: &LlamaConfig, requests: &[Request]) -> Result<(), GenerateError> {
    for Request { id, prompt, .. } in requests {
        let id = id.clone();
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
    }
    Ok(())
}

fn rows(requests: &[Request], longest: usize, seed: u64) -> Vec<Row> {
    let rows_of = |(index, request): (usize, &Request)| {
        let padding = longest - request.prompt.len();
        let id = request.id.clone();
        (0..request.samples).map(move |sample| Row {
            request: index,
            sample,
            padding,
            draws: Draws::new(seed, &id, sample),
            tokens: Vec::new(),
            finish: None,
        })
    };
    requests.iter().enumerate().flat_map(rows_of).collect()
}

/// Runs all prompts, padded on the left, and gives their last logits `[requests, vocab]`.
fn prefill<B: Backend>(
    model: &Llama<B>,
    requests: &[Request],
    longest: usize,
    cache: &mut KvCache<B>,
    device: &B::Device,
) -> Tensor<B, 2> {
    let mut ids = Vec::with_capacity(requests.len() * longest);
    let mut positions = Vec::with_capacity(ids.capacity());
    let mut mask = Vec::with_capacity(ids.capacity() * longest);
    for request in requests {
        let padding = longest - request.prompt.len();
        ids.extend(std::iter::repeat_n(0, padding));
        ids.extend(request.prompt.iter().map(|&t| t as i64));
        for i in 0..longest {
            positions.push(i.saturating_sub(padding) as i64);
            mask.extend((0..longest).map(|j| match j <= i && j >= padding {
                true => 0.0,
                false => MASKED,
            }));
        }
    }
    let step = CachedStep {
        positions: ints(positions, device),
        mask: floats(mask, [requests.len(), 1, longest, longest], device),
        rows: requests.len(),
    };
    model.decode(ints(ids, device), &step, cache)
}

/// Runs the last token of every row, `[rows, vocab]`.
fn decode_one<B: Backend>(
    model: &Llama<B>,
    rows: &[Row],
    cache: &mut KvCache<B>,
    room: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let used = cache.used();
    if used == cache.capacity() {
        cache.grow(used.min(room).max(1), device);
    }
    let last = |row: &Row| row.tokens.last().map_or(0, |&t| t as i64);
    // A row that is done waits in the batch; its output is not read, and its place may lie behind
    // the context.
    let position = |row: &Row| match row.finish {
        Some(_) => 0,
        None => (used - row.padding) as i64,
    };
    let mask = rows
        .iter()
        .flat_map(|row| (0..=used).map(|slot| if slot >= row.padding { 0.0 } else { MASKED }));
    let step = CachedStep {
        positions: ints(rows.iter().map(position).collect(), device),
        mask: floats(mask.collect(), [rows.len(), 1, 1, used + 1], device),
        rows: rows.len(),
    };
    model.decode(ints(rows.iter().map(last).collect(), device), &step, cache)
}

impl Row {
    fn draw(
        &mut self,
        logits: &[f32],
        request: &Request,
        params: &SamplingParams,
        context: usize,
    ) -> Result<(), GenerateError> {
        if logits.iter().any(|x| !x.is_finite()) {
            return Err(GenerateError::NonFinite {
                id: request.id.clone(),
            });
        }
        let draw = self.draws.at(self.tokens.len());
        let token = sample(logits, params, draw) as u32;
        self.tokens.push(token);
        let length = self.tokens.len();
        if params.stop_ids.contains(&token) {
            self.finish = Some(FinishReason::Stop);
        } else if length >= params.max_new_tokens || request.prompt.len() + length >= context {
            self.finish = Some(FinishReason::Length);
        }
        Ok(())
    }
}

fn collect(requests: &[Request], mut rows: Vec<Row>) -> Vec<Vec<Sample>> {
    rows.sort_by_key(|r| (r.request, r.sample));
    let mut rows = rows.into_iter();
    let mut take = |request: &Request| {
        let own = rows.by_ref().take(request.samples);
        own.map(|row| Sample {
            tokens: row.tokens,
            finish: row.finish.unwrap_or(FinishReason::Length),
        })
        .collect()
    };
    requests.iter().map(&mut take).collect()
}

fn floats<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn host<B: Backend>(logits: Tensor<B, 2>) -> Result<Vec<f32>, GenerateError> {
    let data = logits
        .try_into_data()
        .map_err(|e| GenerateError::Device(e.to_string()))?;
    data.into_vec()
        .map_err(|e| GenerateError::Device(format!("{e:?}")))
}
