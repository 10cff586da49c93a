//! Where a row's prompt stands, in the spellings that users have.

use serde_json::Value;
use sppo_model::chat_template::Message;

use super::super::hh;
use super::super::messages::{self, NO_MEDIA, says_something};
use super::super::problem::describe;
use super::super::prompt::{Prompt, turn};
use super::{Fields, RowProblem};

/// The keys that a row with a prompt looks at, and those of its own.
macro_rules! prompt_keys {
    ($($own:literal),* $(,)?) => {
        &[
            $($own,)*
            "prompt", "system", "system_prompt", "tools",
            // Refused where they say something, since they would change the prompt.
            "documents", "images", "image", "videos", "video", "audios", "audio", "functions",
            "history", "chat_template_kwargs",
        ]
    };
}

/// The keys of [`prompt_keys`] and the other places of a prompt.
macro_rules! source_keys {
    ($($own:literal),* $(,)?) => {
        prompt_keys!($($own,)* "instruction", "input", "context", "question", "messages", "conversations", "turns")
    };
}

pub(super) use {prompt_keys, source_keys};

/// Columns that would change the prompt and cannot be shown to the model.
const REFUSED: [(&str, &str); 10] = [
    ("documents", "write the documents into the prompt"),
    ("images", NO_MEDIA),
    ("image", NO_MEDIA),
    ("videos", NO_MEDIA),
    ("video", NO_MEDIA),
    ("audios", NO_MEDIA),
    ("audio", NO_MEDIA),
    (
        "functions",
        "write them as the column `tools`, a list of JSON schemas",
    ),
    (
        "history",
        "write the turns before the prompt into `messages`",
    ),
    (
        "chat_template_kwargs",
        "a template's variables are the same for all rows; remove the column and change the template's defaults",
    ),
];

/// A row's prompt from the first place that it has: `prompt`, `instruction` (with Alpaca's `input`
/// below it), `question`, the turns before the answer of `messages` or ShareGPT's `conversations`,
/// MT-Bench's `turns`. Without its `system` and `tools`.
pub(super) fn prompt(fields: &Fields<'_>) -> Result<Option<Prompt>, RowProblem> {
    if let Some(prompt) = given_or_hh(fields)? {
        return Ok(Some(prompt));
    }
    if let Some(text) = instruction_or_question(fields)? {
        return Ok(Some(Prompt::Text(text)));
    }
    for key in ["messages", "conversations"] {
        if let Some(turns) = fields.messages(key)? {
            return before_answer(key, turns).map(Some);
        }
    }
    only_turn(fields)
}

/// The `prompt`; a text of HH's kind that ends in `Assistant:` is its turns.
pub(super) fn given_or_hh(fields: &Fields<'_>) -> Result<Option<Prompt>, RowProblem> {
    Ok(fields.prompt("prompt")?.map(|prompt| match prompt {
        Prompt::Text(text) => match hh::prompt(&text) {
            Some(turns) => Prompt::Messages(turns),
            None => Prompt::Text(text),
        },
        messages => messages,
    }))
}

/// An answer in text; behind a prompt of HH's kind the blanks around it belong to the layout.
pub(super) fn answer(fields: &Fields<'_>, text: String) -> String {
    let prompt = fields.get("prompt").and_then(Value::as_str);
    match prompt.and_then(hh::prompt) {
        Some(_) => text.trim().to_string(),
        None => text,
    }
}

/// Turns without the answer behind the last of the user or of a tool.
fn before_answer(key: &str, mut turns: Vec<Message>) -> Result<Prompt, RowProblem> {
    let asks = |turn: &Message| matches!(turn.role.as_str(), "user" | "tool" | "ipython");
    match turns.iter().rposition(asks) {
        Some(last) => turns.truncate(last + 1),
        None => {
            return Err(RowProblem::mistyped(
                key,
                "a conversation with a user turn",
                "none",
            ));
        }
    }
    Ok(Prompt::Messages(turns))
}

/// `instruction` with what `input` adds, or `question`.
pub(super) fn instruction_or_question(fields: &Fields<'_>) -> Result<Option<String>, RowProblem> {
    let (key, text, input) = if let Some(text) = fields.string("instruction")? {
        let input = fields.string("input")?.unwrap_or_default();
        ("instruction", text, input)
    } else if let Some(text) = fields.string("question")? {
        refuse(fields, "input", "write it into `question`")?;
        ("question", text, String::new())
    } else {
        return Ok(None);
    };
    refuse(
        fields,
        "context",
        &format!("write it into `{key}`, or, beside `instruction`, as `input`"),
    )?;
    let text = match input.is_empty() {
        true => text,
        false => format!("{text}\n\n{input}"),
    };
    if text.is_empty() {
        return Err(RowProblem::mistyped(
            key,
            "a prompt that is not empty",
            "an empty string",
        ));
    }
    Ok(Some(text))
}

/// MT-Bench's `turns`: the user's only one.
fn only_turn(fields: &Fields<'_>) -> Result<Option<Prompt>, RowProblem> {
    let items = match fields.get("turns") {
        None => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => {
            let expected = "a list of the user's turns or of messages";
            return Err(RowProblem::mistyped("turns", expected, describe(other)));
        }
    };
    match items.as_slice() {
        [Value::String(text)] if !text.is_empty() => Ok(Some(Prompt::Text(text.clone()))),
        [Value::String(_), Value::String(_), ..] => Err(RowProblem::refused(
            "turns",
            format!("{} user turns", items.len()),
            "each turn behind the first needs a model's answer before it, and one answer a row is what is sampled; for the first turns alone: jq -c '{prompt_id: .question_id, prompt: .turns[0]}' FILE",
        )),
        _ => {
            let turns = fields.messages("turns")?.unwrap_or_default();
            before_answer("turns", turns).map(Some)
        }
    }
}

/// A prompt with the row's `system` and `tools`; what else would change it is refused.
pub(super) fn with_context(fields: &Fields<'_>, prompt: Prompt) -> Result<Prompt, RowProblem> {
    for (key, advice) in REFUSED {
        refuse(fields, key, advice)?;
    }
    let system = system(fields)?;
    let tools = match fields.get("tools") {
        Some(value) => messages::tools("tools", value)?,
        None => None,
    };
    if system.is_none() && tools.is_none() {
        return Ok(prompt);
    }
    let mut turns = prompt.into_messages();
    if let Some((key, system)) = system {
        let own = turns.iter().position(|turn| turn.role == "system");
        match own {
            None => turns.insert(0, turn("system", system)),
            Some(0) if turns[0].content.as_deref() == Some(&system) => {}
            Some(_) => {
                return Err(RowProblem::refused(
                    key,
                    describe(&system.into()),
                    "the messages have another system turn; keep one of both",
                ));
            }
        }
    }
    if let Some(first) = turns.first_mut() {
        first.tools = tools;
    }
    Ok(Prompt::Messages(turns))
}

/// The text of a system column with its key; an empty one counts as none.
fn system(fields: &Fields<'_>) -> Result<Option<(&'static str, String)>, RowProblem> {
    let mut found: Option<(&'static str, String)> = None;
    for key in ["system", "system_prompt"] {
        let Some(text) = fields.string(key)?.filter(|text| !text.is_empty()) else {
            continue;
        };
        match &found {
            Some((_, first)) if *first != text => {
                return Err(RowProblem::refused(
                    key,
                    describe(&text.into()),
                    "`system` says something else; keep one of both",
                ));
            }
            Some(_) => {}
            None => found = Some((key, text)),
        }
    }
    Ok(found)
}

/// Refuses a key that says something.
fn refuse(fields: &Fields<'_>, key: &str, advice: &str) -> Result<(), RowProblem> {
    match fields.get(key).filter(|value| says_something(value)) {
        Some(value) => Err(RowProblem::refused(key, describe(value), advice)),
        None => Ok(()),
    }
}

/// A missing key, with what the row has instead and how to rename it.
pub(super) fn missing(fields: &Fields<'_>, key: &str, need: &str) -> RowProblem {
    let names: Vec<String> = fields.names().map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return RowProblem::missing(key, need);
    }
    RowProblem::missing(
        key,
        format!(
            "{need}; the row has {}. Other names can be changed with, for example, jq -c '{{{key}: .NAME}}' FILE > new.jsonl",
            names.join(", ")
        ),
    )
}
