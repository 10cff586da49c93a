//! `POST /v1/chat/completions`.

use serde_json::json;
use sppo_model::generate::MOST_LIKELIEST;

use super::app::App;
use super::ask::{Ask, Form};
use super::error::ApiError;
use super::fields::Fields;
use super::messages::{Rendering, messages};
use super::prompts::{Prompt, check};
use super::sampling::{check_model, wishes};

/// Reads a body.
pub fn ask(body: &[u8], app: &App) -> Result<Ask, ApiError> {
    let mut fields = Fields::parse(body)?;
    check_model(&mut fields, &app.served)?;
    let mut wishes = wishes(&mut fields, &app.served)?;
    wishes.max_tokens = max_tokens(&mut fields)?;
    wishes.logprobs = logprobs(&mut fields)?;
    wishes.stop.extend(app.served.stop_text.clone());
    let rendering = Rendering::take(&mut fields)?;
    let turns = messages(fields.take("messages"), &app.unknown)?;
    for key in ["echo", "prompt"] {
        fields.refuse(key, &[json!(false)], "belongs to /v1/completions")?;
    }
    app.unknown.say("/v1/chat/completions", &fields);
    let ids = rendering.ids(&turns, &app.served)?;
    check(&ids, "messages", 1, &app.served)?;
    let ask = Ask {
        form: Form::Chat,
        prompts: vec![Prompt::of_ids(ids)],
        wishes,
        echo: false,
    };
    ask.check(app.served.context)?;
    Ok(ask)
}

/// The smaller of both names' values; what the context leaves room for without either.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let mut least: Option<usize> = None;
    for key in ["max_tokens", "max_completion_tokens"] {
        if let Some(most) = fields.whole(key, 1, u32::MAX.into())? {
            let most = most as usize;
            least = Some(least.map_or(most, |least| least.min(most)));
        }
    }
    Ok(least)
}

/// `top_logprobs` of the likeliest tokens, where `logprobs` is true.
fn logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", MOST_LIKELIEST)?;
    match (wanted, top) {
        (false, Some(1..)) => {
            let message = "`top_logprobs` needs `logprobs`: true";
            Err(ApiError::param("top_logprobs", message))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, _) => Ok(None),
    }
}
