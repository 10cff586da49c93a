//! A prompt: what responses answer.

use std::borrow::Cow;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use sha2::{Digest, Sha256};
use sppo_model::chat_template::{Message, tools_of};

use crate::files::hex;

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
    Message::new(role, content)
}

/// Writes a prompt as `prompt` and, where it has tools, `tools`: the text of their list, which a
/// Parquet column holds as well, and TRL reads.
pub(super) fn prompt_and_tools<S: Serializer>(
    prompt: &Prompt,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("prompt", prompt)?;
    if let Prompt::Messages(messages) = prompt {
        tools_entry(&mut map, messages)?;
    }
    map.end()
}

/// The entry `tools` of a conversation that has some.
pub(super) fn tools_entry<M: SerializeMap>(
    map: &mut M,
    messages: &[Message],
) -> Result<(), M::Error> {
    match tools_of(messages) {
        Some(tools) => map.serialize_entry("tools", &tools.to_string()),
        None => Ok(()),
    }
}

/// SHA-256 of rows, in hex: the same from every kind of file.
pub fn rows_fingerprint<T: Serialize>(rows: &[T]) -> String {
    let mut fingerprint = RowsFingerprint::default();
    rows.iter().for_each(|row| fingerprint.add(row));
    fingerprint.finish()
}

/// The same, row by row.
#[derive(Default)]
pub struct RowsFingerprint(Sha256);

impl RowsFingerprint {
    /// Takes the next row.
    pub fn add(&mut self, row: &impl Serialize) {
        // What was read from a file always serialises.
        self.0.update(serde_json::to_vec(row).unwrap_or_default());
        self.0.update(b"\n");
    }

    /// In hex.
    pub fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

/// The first 16 hex digits of the SHA-256 of a value's compact JSON; of a prompt (a string, or a
/// list of `{"role", "content"}`) it is the id where the file names none.
pub fn stable_hash(value: &impl Serialize) -> String {
    // Texts, numbers and lists of them always serialise.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let digest = Sha256::digest(json);
    hex(&digest[..8])
}
