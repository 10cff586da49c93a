//! `prompt` of a completion: a text, texts, ids, or lists of ids.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{token_ids, wrong};
use super::model::Served;

/// Prompts of one request.
pub const MOST_PROMPTS: usize = 2048;

/// One prompt.
pub struct Prompt {
    /// What the model reads.
    pub ids: Vec<u32>,
    /// As it was given, where it was text.
    pub text: Option<String>,
    /// How many of the ids the tokenizer put in front of the text.
    pub added: usize,
}

impl Prompt {
    /// Of ids.
    pub fn of_ids(ids: Vec<u32>) -> Self {
        Self {
            ids,
            text: None,
            added: 0,
        }
    }

    /// Of a text.
    pub fn of_text(text: String, special: bool, served: &Served) -> Result<Self, ApiError> {
        let encode = |special| {
            let ids = served.tokenizer.encode(&text, special);
            ids.map_err(|error| ApiError::param("prompt", error.to_string()))
        };
        let ids = encode(special)?;
        let added = match special {
            true => {
                let plain = encode(false)?;
                let more = ids.len().saturating_sub(plain.len());
                (0..=more)
                    .find(|&at| ids[at..].starts_with(&plain))
                    .unwrap_or(0)
            }
            false => 0,
        };
        Ok(Self {
            ids,
            text: Some(text),
            added,
        })
    }
}

/// Reads `prompt`; `room` tokens have to fit behind each.
pub fn prompts(
    value: Option<Value>,
    special: bool,
    room: usize,
    served: &Served,
) -> Result<Vec<Prompt>, ApiError> {
    const NAME: &str = "prompt";
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
    let prompts = match value {
        None => {
            return Err(ApiError::param(
                NAME,
                format!("`prompt` is missing; expected {expected}"),
            ));
        }
        Some(Value::String(text)) => vec![Prompt::of_text(text, special, served)?],
        Some(Value::Array(list)) => match list.first() {
            None => {
                return Err(ApiError::param(
                    NAME,
                    format!("`prompt` is an empty list; expected {expected}"),
                ));
            }
            Some(Value::Number(_)) => vec![Prompt::of_ids(token_ids(&list, NAME, served.vocab)?)],
            Some(_) if list.len() > MOST_PROMPTS => {
                let message = format!(
                    "`prompt` has {} prompts; at most {MOST_PROMPTS} are taken",
                    list.len()
                );
                return Err(ApiError::param(NAME, message));
            }
            Some(_) => {
                let prompt = |value| match value {
                    Value::String(text) => Prompt::of_text(text, special, served),
                    Value::Array(ids) => Ok(Prompt::of_ids(token_ids(&ids, NAME, served.vocab)?)),
                    other => Err(wrong(NAME, &other, expected)),
                };
                list.into_iter().map(prompt).collect::<Result<_, _>>()?
            }
        },
        Some(other) => return Err(wrong(NAME, &other, expected)),
    };
    prompts
        .iter()
        .try_for_each(|prompt| check(&prompt.ids, NAME, room, served))?;
    Ok(prompts)
}

/// Refuses a prompt without tokens, one with so many that `room` more do not fit behind them, and tokens that
/// were added to the tokenizer but not to the model.
pub fn check(ids: &[u32], param: &str, room: usize, served: &Served) -> Result<(), ApiError> {
    let unknown = ids.iter().find(|&&id| id as usize >= served.vocab);
    match (unknown, ids.len()) {
        (Some(id), _) => {
            let token = served.tokenizer.id_to_token(*id).unwrap_or_default();
            let message = format!(
                "`{param}` has the token {id} ({token:?}), for which the model has no embedding"
            );
            Err(ApiError::param(param, message))
        }
        (None, 0) => {
            let message = format!("`{param}` has no tokens; there is nothing to continue");
            Err(ApiError::param(param, message))
        }
        (None, tokens) if tokens.saturating_add(room) > served.context => {
            Err(ApiError::too_long(param, tokens, served.context))
        }
        _ => Ok(()),
    }
}
