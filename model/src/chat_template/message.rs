//! One turn of a conversation.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation, with every key that a template may look at.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// What is said; null in a turn that only calls tools.
    pub content: Option<String>,
    /// Further keys, such as `tool_calls` or `name`, as the template sees them.
    #[serde(flatten)]
    pub further: Map<String, Value>,
    /// On a conversation's first turn: the tools that it may call, a list of JSON schemas, which
    /// the template sees as `tools`. A variable beside the messages, so not serialised with them.
    #[serde(skip)]
    pub tools: Option<Value>,
}

impl Message {
    /// A turn of `role` saying `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            further: Map::new(),
            tools: None,
        }
    }

    /// What the turn says as plain text, its calls of tools as JSON behind it.
    pub fn text(&self) -> String {
        let content = self.content.iter().cloned();
        let calls = self.further.get("tool_calls").map(Value::to_string);
        content.chain(calls).collect::<Vec<_>>().join("\n")
    }
}

/// The tools of a conversation, if it names any.
pub fn tools_of(messages: &[Message]) -> Option<&Value> {
    messages.first().and_then(|first| first.tools.as_ref())
}

/// Says only what is there, so that keys made from it stay what they were for plain turns.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Message");
        shown.field("role", &self.role);
        match &self.content {
            Some(content) => shown.field("content", content),
            None => shown.field("content", &None::<String>),
        };
        if !self.further.is_empty() {
            shown.field("further", &self.further);
        }
        if let Some(tools) = &self.tools {
            shown.field("tools", tools);
        }
        shown.finish()
    }
}
