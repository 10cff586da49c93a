//! `POST /v1/completions`.

use serde_json::{Value, json};
use sppo_model::generate::MOST_LIKELIEST;

use super::app::App;
use super::ask::{Ask, Form};
use super::error::ApiError;
use super::fields::Fields;
use super::prompts::prompts;
use super::sampling::{check_model, wishes};

/// OpenAI's.
const MAX_TOKENS: usize = 16;

/// Reads a body.
pub fn ask(body: &[u8], app: &App) -> Result<Ask, ApiError> {
    let mut fields = Fields::parse(body)?;
    check_model(&mut fields, &app.served)?;
    let mut wishes = wishes(&mut fields, &app.served)?;
    wishes.max_tokens = Some(
        fields
            .count("max_tokens", u32::MAX as usize)?
            .unwrap_or(MAX_TOKENS),
    );
    wishes.logprobs = logprobs(&mut fields)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    if wishes.max_tokens == Some(0) && !echo {
        let message =
            "`max_tokens` is 0, which leaves nothing to answer with; 0 goes with `echo`: true";
        return Err(ApiError::param("max_tokens", message));
    }
    let room = wishes.max_tokens.map_or(1, |most| most.min(1));
    let special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let prompts = prompts(fields.take("prompt"), special, room, &app.served)?;
    fields.refuse("messages", &[json!([])], "belongs to /v1/chat/completions")?;
    app.unknown.say("/v1/completions", &fields);
    let ask = Ask {
        form: Form::Completion,
        prompts,
        wishes,
        echo,
    };
    ask.check(app.served.context)?;
    Ok(ask)
}

/// A number of the likeliest tokens; true is 1.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(1)),
        Some(value) => {
            let mut one = Fields::within(json!({"logprobs": value}), "")?;
            let counted = one.count("logprobs", MOST_LIKELIEST);
            counted.map_err(|_| {
                super::fields::wrong(
                    "logprobs",
                    &value,
                    &format!("true, false or a whole number from 0 to {MOST_LIKELIEST}"),
                )
            })
        }
    }
}
