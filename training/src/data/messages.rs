//! Chat turns as files hold them: OpenAI's `role`/`content` and ShareGPT's `from`/`value`.

use serde_json::Value;
use sppo_model::chat_template::Message;

use super::problem::{Object, RowProblem, describe};

/// Names of speakers in files, and the role that each is.
const ROLES: [(&str, &str); 7] = [
    ("system", "system"),
    ("user", "user"),
    ("human", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("tool", "tool"),
    // Llama 3.1's own name of `tool`, which its template asks for too.
    ("ipython", "ipython"),
];

/// Keys of a turn that hold what a model of text alone cannot be shown, or shown otherwise.
const REFUSED: [(&str, &str); 8] = [
    ("image", NO_MEDIA),
    ("images", NO_MEDIA),
    ("audio", NO_MEDIA),
    ("video", NO_MEDIA),
    ("videos", NO_MEDIA),
    ("documents", "write the documents into the turn's text"),
    (
        "function_call",
        "write it as `tool_calls`: [{\"type\": \"function\", \"function\": {\"name\", \"arguments\"}}]",
    ),
    ("functions", "write them as the row's column `tools`"),
];

pub(super) const NO_MEDIA: &str = "only text can be read; remove it or leave the row out";

/// What an answer to learn may not hold beside its text, since it would not be learnt.
const BESIDE_ANSWERS: [&str; 5] = [
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "thinking",
    "tool_plan",
];

/// Whether a value says anything: not null, and not an empty string, list or object.
pub(super) fn says_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(object) => !object.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// One turn. Keys that are null count as absent; the template sees all others.
pub(super) fn message(key: &str, value: &Value) -> Result<Message, RowProblem> {
    let Value::Object(object) = value else {
        return Err(RowProblem::mistyped(
            key,
            "a message {\"role\", \"content\"}",
            describe(value),
        ));
    };
    for (name, advice) in REFUSED {
        if let Some(value) = object.get(name).filter(|value| says_something(value)) {
            let found = describe(value);
            return Err(RowProblem::refused(format!("{key}.{name}"), found, advice));
        }
    }
    let role = role(key, object)?;
    let mut further = Object::new();
    for (name, value) in object {
        let known = matches!(name.as_str(), "role" | "content" | "from" | "value");
        // Tables give every turn a list of calls, if an empty one; templates ask whether it is there.
        let no_calls = name == "tool_calls" && !says_something(value);
        if !known && !value.is_null() && !no_calls {
            further.insert(name.clone(), value.clone());
        }
    }
    if let Some(calls) = further.get("tool_calls") {
        check_calls(&format!("{key}.tool_calls"), calls)?;
    }
    let calls = further.contains_key("tool_calls");
    Ok(Message {
        role: role.to_string(),
        content: content(key, object, calls)?,
        further,
        tools: None,
    })
}

/// The value of one of two spellings of a key, with the name it stands under; the first where
/// neither is there.
fn spelt<'v>(
    key: &str,
    object: &'v Object,
    names: [&str; 2],
) -> Result<(String, Option<&'v Value>), RowProblem> {
    let found = names.map(|name| object.get(name).filter(|value| !value.is_null()));
    match found {
        [Some(_), Some(other)] => Err(RowProblem::refused(
            format!("{key}.{}", names[1]),
            describe(other),
            format!("the turn has `{}` too; keep one of both", names[0]),
        )),
        [None, Some(value)] => Ok((format!("{key}.{}", names[1]), Some(value))),
        [value, None] => Ok((format!("{key}.{}", names[0]), value)),
    }
}

fn role(key: &str, object: &Object) -> Result<&'static str, RowProblem> {
    let (key, value) = spelt(key, object, ["role", "from"])?;
    let Some(Value::String(name)) = value else {
        let found = value.map_or("nothing".to_string(), describe);
        return Err(RowProblem::mistyped(key, "a string", found));
    };
    let known = ROLES.iter().find(|(spelt, _)| spelt == name);
    known.map(|(_, role)| *role).ok_or_else(|| {
        RowProblem::mistyped(
            key,
            "one of system, user (or human), assistant (or gpt) and tool",
            format!("{name:?}"),
        )
    })
}

/// What is said; text in parts is joined. Only a turn that calls tools may say nothing.
fn content(key: &str, object: &Object, calls: bool) -> Result<Option<String>, RowProblem> {
    let (key, value) = spelt(key, object, ["content", "value"])?;
    match value {
        None if calls => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate();
            let texts = parts.map(|(i, part)| text_part(&format!("{key}[{i}]"), part));
            texts.collect::<Result<String, _>>().map(Some)
        }
        other => Err(RowProblem::mistyped(
            key,
            "a string",
            other.map_or("nothing".to_string(), describe),
        )),
    }
}

/// The text of `{"type": "text", "text": …}`.
fn text_part<'v>(key: &str, part: &'v Value) -> Result<&'v str, RowProblem> {
    let kind = part.get("type").and_then(Value::as_str);
    match (kind, part.get("text").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => Ok(text),
        (Some(kind), _) if kind != "text" => {
            let found = format!("a part of type {kind:?}");
            Err(RowProblem::refused(key, found, NO_MEDIA))
        }
        _ => Err(RowProblem::mistyped(
            key,
            "a part {\"type\": \"text\", \"text\": …}",
            describe(part),
        )),
    }
}

fn check_calls(key: &str, calls: &Value) -> Result<(), RowProblem> {
    let expected = "a list of calls {\"function\": {\"name\", \"arguments\"}}";
    match calls {
        Value::Array(calls) if calls.iter().all(Value::is_object) => Ok(()),
        other => Err(RowProblem::mistyped(key, expected, describe(other))),
    }
}

/// The text of a turn that is an answer to learn.
pub(super) fn answer_text(key: &str, turn: Message) -> Result<String, RowProblem> {
    for name in BESIDE_ANSWERS {
        if let Some(value) = turn.further.get(name).filter(|value| says_something(value)) {
            let found = format!("an answer with `{name}`, {}", describe(value));
            let advice = "only the text of an answer is learnt; leave the row out, or write what it should say into its text";
            return Err(RowProblem::refused(key, found, advice));
        }
    }
    Ok(turn.content.unwrap_or_default())
}

/// A `tools` column: a list of JSON schemas, also as the text of one.
pub(super) fn tools(key: &str, value: &Value) -> Result<Option<Value>, RowProblem> {
    let expected = "a list of tools, each an object (its JSON schema)";
    let parsed = match value {
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => serde_json::from_str(text).map_err(|error| {
            let found = format!("{}, which is not JSON: {error}", describe(value));
            RowProblem::mistyped(key, expected, found)
        })?,
        other => other.clone(),
    };
    let Value::Array(items) = parsed else {
        return match parsed {
            Value::Null => Ok(None),
            other => Err(RowProblem::mistyped(key, expected, describe(&other))),
        };
    };
    let mut tools = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        let tool = match &item {
            Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            _ => item.clone(),
        };
        if !tool.is_object() {
            let key = format!("{key}[{i}]");
            return Err(RowProblem::mistyped(key, "an object", describe(&item)));
        }
        tools.push(tool);
    }
    Ok(Some(tools.into()))
}
