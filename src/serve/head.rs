//! What all bodies of one answer have in common.

use serde_json::{Value, json};

use super::app::App;
use super::ask::{Ask, Form};
use super::sampling::random;

/// Id, time and model of an answer.
pub struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
}

impl Head {
    /// Of a new answer.
    pub fn new(app: &App, ask: &Ask) -> Self {
        let (prefix, object) = match (ask.form, ask.wishes.stream) {
            (Form::Completion, _) => ("cmpl", "text_completion"),
            (Form::Chat, false) => ("chatcmpl", "chat.completion"),
            (Form::Chat, true) => ("chatcmpl", "chat.completion.chunk"),
        };
        let now = std::time::UNIX_EPOCH.elapsed();
        Self {
            id: format!("{prefix}-{:016x}{:016x}", random(), random()),
            object,
            created: now.map_or(0, |now| now.as_secs()),
            model: app.served.name.clone(),
        }
    }

    /// A body with these choices.
    pub fn body(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("sppo-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
            "usage": usage,
        })
    }
}
