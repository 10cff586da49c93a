//! Whole answers: what the engine sends is collected and written as one body.

use std::sync::Arc;

use serde_json::{Value, json};
use sppo_model::generate::{Event, GenerateError, Sample, TokenScore};

use super::app::App;
use super::ask::{Ask, Form};
use super::error::ApiError;
use super::head::Head;
use super::logprobs::{self, Offsets, Place};
use super::sink::{Arrived, Events};

/// What came with a prompt.
#[derive(Clone, Default)]
pub struct OfPrompt {
    /// Tokens of it that were there already.
    pub cached: usize,
    /// Of its tokens but the first.
    pub scores: Vec<TokenScore>,
}

/// One answer as far as it came.
#[derive(Clone, Default)]
struct Answer {
    drawn: Vec<(u32, Option<TokenScore>)>,
    sample: Option<Sample>,
}

/// Waits for all of a request and writes it.
pub async fn whole(app: &Arc<App>, ask: Ask, mut events: Events) -> Result<Value, ApiError> {
    let mut prompts = vec![OfPrompt::default(); ask.prompts.len()];
    let mut answers = vec![Answer::default(); ask.choices()];
    let mut left = answers.len();
    while left > 0 {
        let Some((number, event)) = events.from.recv().await else {
            return Err(app.cut_short(&events));
        };
        match understood((number, event))? {
            Event::Prompt { cached, scores, .. } => prompts[number] = OfPrompt { cached, scores },
            Event::Token {
                of, token, score, ..
            } => {
                let place = number * ask.wishes.n + of.sample;
                answers[place].drawn.push((token, score));
            }
            Event::Finished { of, sample, .. } => {
                answers[number * ask.wishes.n + of.sample].sample = Some(sample);
                left -= 1;
            }
            Event::Failed { error, .. } => return Err(failed(error)),
        }
    }
    body(app, &ask, prompts, answers)
}

/// An event, or the error that it is for the client.
pub fn understood((_, event): Arrived) -> Result<Event, ApiError> {
    event.map_err(failed)
}

/// What the client is told where the engine cannot answer.
pub fn failed(error: GenerateError) -> ApiError {
    match error {
        GenerateError::NonFinite { .. } | GenerateError::Device(_) | GenerateError::Text { .. } => {
            tracing::error!("{error}");
            ApiError::internal(error.to_string())
        }
        error => ApiError::invalid(error.to_string()),
    }
}

fn body(
    app: &App,
    ask: &Ask,
    prompts: Vec<OfPrompt>,
    answers: Vec<Answer>,
) -> Result<Value, ApiError> {
    let head = Head::new(app, ask);
    let mut usage = Usage::of(ask);
    usage.cached = prompts.iter().map(|prompt| prompt.cached).sum();
    let mut choices = Vec::with_capacity(answers.len());
    for (index, answer) in answers.into_iter().enumerate() {
        let prompt = index / ask.wishes.n;
        let Some(sample) = &answer.sample else {
            return Err(ApiError::internal("an answer is missing"));
        };
        usage.drawn += sample.tokens.len();
        let choice = choice(app, ask, index, &prompts[prompt], &answer.drawn, sample)?;
        choices.push(choice);
    }
    let mut body = head.body(choices, Some(usage.json()));
    if let (Form::Chat, Some(most)) = (ask.form, ask.wishes.prompt_logprobs) {
        let tokenizer = &app.served.tokenizer;
        body["prompt_logprobs"] = logprobs::of_prompt(&prompts[0].scores, most, tokenizer);
    }
    Ok(body)
}

fn choice(
    app: &App,
    ask: &Ask,
    index: usize,
    of_prompt: &OfPrompt,
    drawn: &[(u32, Option<TokenScore>)],
    sample: &Sample,
) -> Result<Value, ApiError> {
    let tokenizer = &app.served.tokenizer;
    let decode = |ids: &[u32]| tokenizer.decode(ids, true);
    let text = match &sample.text {
        Some(text) => text.clone(),
        None => decode(sample.text_tokens()).map_err(|e| ApiError::internal(e.to_string()))?,
    };
    let before = match ask.echo {
        true => prompt_text(app, ask, index)?,
        false => String::new(),
    };
    let mut places = Vec::new();
    if ask.wishes.logprobs.is_some() {
        if ask.echo {
            places = prompt_places(app, ask, index, &before, &of_prompt.scores);
        }
        let (start, end) = (before.chars().count(), text.chars().count());
        let mut offsets = Offsets::new(start, true);
        places.extend(drawn.iter().map(|(token, score)| Place {
            token: *token,
            score: score.clone(),
            // Behind a stop string there is no text.
            offset: offsets.next(tokenizer, *token).min(start + end),
        }));
    }
    let logprobs = ask.wishes.logprobs.map(|most| match ask.form {
        Form::Completion => logprobs::of_completion(&places, most, tokenizer),
        Form::Chat => logprobs::of_chat(&places, most, tokenizer),
    });
    let reason = ask.stop_reason(sample, |ids| decode(ids).unwrap_or_default());
    let mut choice = match ask.form {
        Form::Completion => json!({"index": index, "text": before + &text}),
        Form::Chat => json!({
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": null},
        }),
    };
    choice["logprobs"] = logprobs.into();
    choice["finish_reason"] = sample.finish.as_str().into();
    choice["stop_reason"] = reason;
    if let (Form::Completion, Some(most)) = (ask.form, ask.wishes.prompt_logprobs) {
        choice["prompt_logprobs"] = logprobs::of_prompt(&of_prompt.scores, most, tokenizer);
    }
    Ok(choice)
}

/// The prompt as it stands in front of an answer: the text that was given, or that of the ids.
pub fn prompt_text(app: &App, ask: &Ask, index: usize) -> Result<String, ApiError> {
    let prompt = &ask.prompts[index / ask.wishes.n];
    match &prompt.text {
        Some(text) => Ok(text.clone()),
        None => {
            let text = app.served.tokenizer.decode(&prompt.ids, false);
            text.map_err(|error| ApiError::internal(error.to_string()))
        }
    }
}

/// The prompt's tokens, the first without a score.
pub fn prompt_places(
    app: &App,
    ask: &Ask,
    index: usize,
    text: &str,
    scores: &[TokenScore],
) -> Vec<Place> {
    let prompt = &ask.prompts[index / ask.wishes.n];
    let end = text.chars().count();
    let mut offsets = Offsets::new(0, false);
    let place = |(number, &token): (usize, &u32)| Place {
        token,
        score: number
            .checked_sub(1)
            .and_then(|before| scores.get(before).cloned()),
        offset: match number < prompt.added {
            true => 0,
            false => offsets.next(&app.served.tokenizer, token).min(end),
        },
    };
    prompt.ids.iter().enumerate().map(place).collect()
}

/// Tokens that a request took.
pub struct Usage {
    prompt: usize,
    /// Of the prompt, those that were there already.
    pub cached: usize,
    /// Drawn for all answers.
    pub drawn: usize,
}

impl Usage {
    /// Before anything was drawn.
    pub fn of(ask: &Ask) -> Self {
        Self {
            prompt: ask.prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            cached: 0,
            drawn: 0,
        }
    }

    /// OpenAI's object.
    pub fn json(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.drawn,
            "total_tokens": self.prompt + self.drawn,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}
