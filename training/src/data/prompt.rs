//! A prompt: what responses answer.

use std::borrow::Cow;

use serde::Serialize;
use sha2::{Digest, Sha256};
use sppo_model::chat_template::Message;

/// A prompt: plain text, or chat turns.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Plain text; as a chat it is one user turn.
    Text(String),
    /// Chat turns, at least one.
    Messages(Vec<Message>),
}

impl Prompt {
    /// The prompt as chat turns; plain text becomes one user turn.
    pub fn messages(&self) -> Cow<'_, [Message]> {
        match self {
            Prompt::Text(text) => Cow::Owned(vec![turn("user", text.clone())]),
            Prompt::Messages(messages) => Cow::Borrowed(messages),
        }
    }

    /// The same, consuming the prompt.
    pub fn into_messages(self) -> Vec<Message> {
        match self {
            Prompt::Text(text) => vec![turn("user", text)],
            Prompt::Messages(messages) => messages,
        }
    }
}

pub(super) fn turn(role: &str, content: String) -> Message {
    Message {
        role: role.to_string(),
        content,
    }
}

/// SHA-256 of rows, in hex: the same from every kind of file.
pub fn rows_fingerprint<T: Serialize>(rows: &[T]) -> String {
    let mut hash = Sha256::new();
    for row in rows {
        // What was read from a file always serialises.
        hash.update(serde_json::to_vec(row).unwrap_or_default());
        hash.update(b"\n");
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The first 16 hex digits of the SHA-256 of a value's compact JSON; of a prompt (a string, or a
/// list of `{"role", "content"}`) it is the id where the file names none.
pub fn stable_hash(value: &impl Serialize) -> String {
    // Texts, numbers and lists of them always serialise.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let digest = Sha256::digest(json);
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
