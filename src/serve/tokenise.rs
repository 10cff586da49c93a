//! `POST /tokenize` and `/detokenize`, as vLLM has them, and what `/tokenizer_info` says.

use std::path::Path;

use serde_json::{Value, json};
use sppo_training::files::FileError;

use super::app::App;
use super::error::ApiError;
use super::fields::{Fields, token_ids, wrong};
use super::messages::{Rendering, messages};
use super::sampling::check_model;

/// Ids of a prompt, or of a conversation.
pub fn tokenize(body: &[u8], app: &App) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    let served = &app.served;
    check_model(&mut fields, served)?;
    let strings = fields.flag("return_token_strs")?.unwrap_or(false);
    let ids = match (fields.text("prompt")?, fields.take("messages")) {
        (Some(prompt), None) => {
            let special = fields.flag("add_special_tokens")?.unwrap_or(true);
            let ids = served.tokenizer.encode(&prompt, special);
            ids.map_err(|error| ApiError::param("prompt", error.to_string()))?
        }
        (None, Some(turns)) => {
            fields.refuse("tools", &[json!([])], "is not supported by this server")?;
            let rendering = Rendering::take(&mut fields)?;
            rendering.ids(&messages(Some(turns), &app.unknown)?, served)?
        }
        _ => {
            let message = "expected either `prompt`, a string, or `messages`";
            return Err(ApiError::param("prompt", message));
        }
    };
    app.unknown.say("/tokenize", &fields);
    let texts = || {
        ids.iter()
            .map(|&id| served.tokenizer.id_to_token(id))
            .collect::<Vec<_>>()
    };
    Ok(json!({
        "count": ids.len(),
        "max_model_len": served.context,
        "tokens": ids,
        "token_strs": strings.then(texts),
    }))
}

/// The text of ids, special tokens included.
pub fn detokenize(body: &[u8], app: &App) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    let served = &app.served;
    check_model(&mut fields, served)?;
    let expected = "a list of token ids";
    let ids = match fields.take("tokens") {
        Some(Value::Array(ids)) => token_ids(&ids, "tokens", served.vocab)?,
        Some(other) => return Err(wrong("tokens", &other, expected)),
        None => {
            let message = format!("`tokens` is missing; expected {expected}");
            return Err(ApiError::param("tokens", message));
        }
    };
    app.unknown.say("/detokenize", &fields);
    let text = served.tokenizer.decode(&ids, false);
    let text = text.map_err(|error| ApiError::param("tokens", error.to_string()))?;
    Ok(json!({"prompt": text}))
}

/// The folder's tokenizer_config.json with its special tokens as plain strings and its template.
pub fn tokenizer_info(folder: &Path) -> Result<String, FileError> {
    let read = |name: &str| {
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(FileError::new("read", &path)),
        }
    };
    // Opening the folder has read both, so that they are sound.
    let config = read("tokenizer_config.json")?.unwrap_or_default();
    let mut config: Value = serde_json::from_str(&config).unwrap_or_else(|_| json!({}));
    if let Some(keys) = config.as_object_mut() {
        for (key, value) in keys.iter_mut() {
            if key.ends_with("_token")
                && let Some(text) = value.get("content").cloned()
            {
                *value = text;
            }
        }
        if let Some(template) = read("chat_template.jinja")? {
            keys.insert("chat_template".into(), template.into());
        }
    }
    Ok(config.to_string())
}
