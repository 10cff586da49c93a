//! `messages` of a chat as ids to continue.

use serde_json::{Value, json};
use sppo_model::chat_template::Message;
use sppo_model::chat_text::{ChatText, ChatTextError};

use super::error::ApiError;
use super::fields::{Fields, shown, wrong};
use super::model::Served;
use super::unknown::UnknownKeys;

const MOST_MESSAGES: usize = 4096;

/// How a conversation is written.
pub struct Rendering {
    /// Whether the header of an answer follows.
    pub add_generation_prompt: bool,
    /// Whether the last turn stays open.
    pub continue_final_message: bool,
    /// Whether the tokenizer puts its own special tokens around what the template writes.
    pub add_special_tokens: bool,
}

impl Rendering {
    /// Takes its keys.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let off = [json!(""), json!({}), json!([])];
        for key in ["chat_template", "chat_template_kwargs", "documents"] {
            fields.refuse(
                key,
                &off,
                "is not supported by this server: the template is the model's (--chat-template)",
            )?;
        }
        let add = fields.flag("add_generation_prompt")?.unwrap_or(true);
        let open = fields.flag("continue_final_message")?.unwrap_or(false);
        if add && open {
            let message = "`continue_final_message` needs `add_generation_prompt`: false, since the last turn goes on";
            return Err(ApiError::param("continue_final_message", message));
        }
        Ok(Self {
            add_generation_prompt: add,
            continue_final_message: open,
            add_special_tokens: fields.flag("add_special_tokens")?.unwrap_or(false),
        })
    }

    /// Ids of a conversation.
    pub fn ids(&self, turns: &[Message], served: &Served) -> Result<Vec<u32>, ApiError> {
        let chat = served.chat.as_ref();
        let chat = chat
            .map_err(|why| ApiError::param("messages", format!("this model has no chat: {why}")))?;
        let failed = |error: ChatTextError| ApiError::param("messages", error.to_string());
        let text = match self.add_generation_prompt {
            true => chat.prompt(turns),
            false => chat.conversation(turns),
        };
        let mut text = text.map_err(failed)?;
        if self.continue_final_message {
            leave_open(&mut text, turns)?;
        }
        encode(chat, &text, self.add_special_tokens)
    }
}

fn encode(chat: &ChatText, text: &str, special: bool) -> Result<Vec<u32>, ApiError> {
    let ids = chat.tokenizer().encode(text, special);
    ids.map_err(|error| ApiError::param("messages", error.to_string()))
}

/// Cuts what the template writes behind the last turn, as transformers does: templates may trim it.
fn leave_open(text: &mut String, turns: &[Message]) -> Result<(), ApiError> {
    let last = turns.last().and_then(|turn| turn.content.as_deref());
    let last = last.unwrap_or_default();
    let found = text.rfind(last.trim()).filter(|_| !last.trim().is_empty());
    let Some(start) = found else {
        let message = "`continue_final_message`: the chat template does not write the last message as it is, or it is empty";
        return Err(ApiError::param("continue_final_message", message));
    };
    let whole = last.trim_start();
    let kept = match text[start..].starts_with(whole) {
        true => whole.len(),
        false => last.trim().len(),
    };
    text.truncate(start + kept);
    Ok(())
}

/// Reads `messages`.
pub fn messages(value: Option<Value>, unknown: &UnknownKeys) -> Result<Vec<Message>, ApiError> {
    const NAME: &str = "messages";
    match value {
        Some(Value::Array(list)) if !list.is_empty() && list.len() <= MOST_MESSAGES => {
            let turns = list.into_iter().enumerate();
            turns
                .map(|(number, turn)| message(number, turn, unknown))
                .collect()
        }
        found => {
            let expected = format!("a list of 1 to {MOST_MESSAGES} messages");
            Err(match found {
                Some(Value::Array(list)) => ApiError::param(
                    NAME,
                    format!(
                        "`messages` has {} messages; expected {expected}",
                        list.len()
                    ),
                ),
                Some(other) => wrong(NAME, &other, &expected),
                None => {
                    ApiError::param(NAME, format!("`messages` is missing; expected {expected}"))
                }
            })
        }
    }
}

fn message(number: usize, value: Value, unknown: &UnknownKeys) -> Result<Message, ApiError> {
    let mut fields = Fields::within(value, &format!("messages[{number}]"))?;
    let role = fields.text("role")?;
    let role = match role.as_deref() {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        found => {
            let name = fields.name("role");
            let found = found.map_or("missing".into(), |role| shown(&role.into()));
            let message = format!(
                "`{name}` is {found}; expected system, developer, user or assistant (tools are not supported)"
            );
            return Err(ApiError::param(name, message));
        }
    };
    for key in ["tool_calls", "function_call", "tool_call_id", "audio"] {
        fields.refuse(key, &[json!([])], "is not supported by this server")?;
    }
    let content = content(&mut fields)?;
    let mut message = Message::new(role, content);
    if let Some(name) = fields.text("name")? {
        message.further.insert("name".into(), name.into());
    }
    for key in ["refusal", "annotations"] {
        fields.take(key);
    }
    // Named without the number of the message.
    unknown.say("messages", &fields);
    Ok(message)
}

/// A text, or parts that are texts, which vLLM joins by line breaks.
fn content(fields: &mut Fields) -> Result<String, ApiError> {
    let name = fields.name("content");
    let expected = "a string or a list of {\"type\": \"text\", \"text\": …}";
    let parts = match fields.take("content") {
        Some(Value::String(text)) => return Ok(text),
        Some(Value::Array(parts)) => parts,
        Some(other) => return Err(wrong(&name, &other, expected)),
        None => {
            let message = format!("`{name}` is missing or null; expected {expected}");
            return Err(ApiError::param(name, message));
        }
    };
    let mut texts = Vec::new();
    for (number, part) in parts.into_iter().enumerate() {
        let name = format!("{name}[{number}]");
        let kind = part["type"].as_str();
        match (kind, part["text"].as_str(), part.as_str()) {
            (Some("text"), Some(text), _) | (_, _, Some(text)) => texts.push(text.to_string()),
            (Some(kind), ..) if kind != "text" => {
                let kind = shown(&kind.into());
                let message = format!("`{name}` is of type {kind}; this model reads text only");
                return Err(ApiError::param(name, message));
            }
            _ => return Err(wrong(&name, &part, "{\"type\": \"text\", \"text\": …}")),
        }
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_turn_stays_open_where_it_ends() {
        let open = |rendered: &str, last: &str| {
            let mut text = rendered.to_string();
            let turns = [Message::new("assistant", last)];
            leave_open(&mut text, &turns)
                .map(|()| text)
                .map_err(|error| error.body())
        };
        assert_eq!(
            open("<a>The answer<e>", "The answer").unwrap(),
            "<a>The answer"
        );
        assert_eq!(
            open("<a>The answer <e>", "The answer ").unwrap(),
            "<a>The answer "
        );
        assert_eq!(
            open("<a>The answer<e>", "  The answer ").unwrap(),
            "<a>The answer"
        );
        assert_eq!(open("a a<e>", "a").unwrap(), "a a");
        assert!(open("<a>upper<e>", "UPPER").is_err());
        assert!(open("<a><e>", " ").is_err());
    }

    #[test]
    fn parts_are_joined_and_images_refused() {
        let read = |value| messages(Some(value), &UnknownKeys::default());
        let turns = json!([{"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        let turns = read(turns).ok().unwrap();
        assert_eq!(
            (turns[0].role.as_str(), turns[1].text()),
            ("system", "a\nb".into())
        );
        for wrong in [
            json!([]),
            json!("x"),
            json!([{"role": "tool", "content": "x"}]),
            json!([{"role": "user"}]),
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
            json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
