//! Prompt rows and supervised rows.

use serde::Serialize;
use sppo_model::chat_template::Message;

use super::super::prompt::{Prompt, stable_hash, turn};
use super::{Fields, Row, RowProblem};

/// A prompt to answer. Read from `prompt`, else `instruction` (with Alpaca's `input` below it),
/// else the turns of `messages` up to the last user turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptRow {
    /// Unique in its file; [`stable_hash`] of the prompt where the file names none.
    pub prompt_id: String,
    /// What is to be answered.
    pub prompt: Prompt,
    /// A good answer, for judges that compare with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Row for PromptRow {
    const KIND: &'static str = "prompts";
    const KEYS: &'static [&'static str] = &[
        "prompt_id",
        "prompt",
        "instruction",
        "input",
        "messages",
        "reference",
    ];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let prompt = if let Some(prompt) = fields.prompt("prompt")? {
            prompt
        } else if let Some(text) = instruction(fields)? {
            Prompt::Text(text)
        } else if let Some(mut turns) = fields.messages("messages")? {
            let last = turns.iter().rposition(|turn| turn.role == "user");
            let Some(last) = last else {
                return Err(RowProblem::mistyped(
                    "messages",
                    "a conversation with a user turn",
                    "none",
                ));
            };
            turns.truncate(last + 1);
            Prompt::Messages(turns)
        } else {
            return Err(RowProblem::missing(
                "prompt",
                "a prompt row needs `prompt`, `instruction` or `messages`",
            ));
        };
        Ok(PromptRow {
            prompt_id: id_or_hash(fields, &prompt)?,
            prompt,
            reference: fields.string("reference")?,
        })
    }

    fn unique_id(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt_id)
    }
}

/// A prompt with the answer to learn. Read from `prompt` + `response`, from `instruction` +
/// `output` (with Alpaca's `input`), or from `messages` that end in an assistant turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SftRow {
    /// Chat turns up to the answer.
    pub prompt: Vec<Message>,
    /// The answer to learn.
    pub response: String,
}

impl Row for SftRow {
    const KIND: &'static str = "sft rows";
    const KEYS: &'static [&'static str] = &[
        "prompt",
        "response",
        "instruction",
        "input",
        "output",
        "messages",
    ];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        if fields.get("response").is_some() || !has_either(fields, "instruction", "messages") {
            let need =
                "an sft row needs `prompt` + `response`, `instruction` + `output` or `messages`";
            let prompt = fields.require("prompt", need, fields.prompt("prompt"))?;
            let response = fields.require("response", need, fields.string("response"))?;
            return Ok(SftRow {
                prompt: prompt.into_messages(),
                response,
            });
        }
        if let Some(text) = instruction(fields)? {
            let need = "`instruction` needs it beside it";
            return Ok(SftRow {
                prompt: vec![turn("user", text)],
                response: fields.require("output", need, fields.string("output"))?,
            });
        }
        let turns = fields.require(
            "messages",
            "an sft row needs it",
            fields.messages("messages"),
        )?;
        let (prompt, response) = split_conversation("messages", turns)?;
        Ok(SftRow { prompt, response })
    }
}

fn has_either(fields: &Fields<'_>, one: &str, other: &str) -> bool {
    fields.get(one).is_some() || fields.get(other).is_some()
}

/// The `instruction` of a row, with what `input` adds.
fn instruction(fields: &Fields<'_>) -> Result<Option<String>, RowProblem> {
    let Some(instruction) = fields.string("instruction")? else {
        return Ok(None);
    };
    let input = fields.string("input")?.unwrap_or_default();
    let text = if input.is_empty() {
        instruction
    } else {
        format!("{instruction}\n\n{input}")
    };
    if text.is_empty() {
        return Err(RowProblem::mistyped(
            "instruction",
            "a prompt that is not empty",
            "an empty string",
        ));
    }
    Ok(Some(text))
}

/// Splits a conversation into the turns before and the text of the assistant turn that ends it.
pub(super) fn split_conversation(
    key: &str,
    mut turns: Vec<Message>,
) -> Result<(Vec<Message>, String), RowProblem> {
    let expected = "a conversation that ends in an assistant turn";
    match turns.pop() {
        Some(last) if last.role != "assistant" => Err(RowProblem::mistyped(
            key,
            expected,
            format!("a last turn of role `{}`", last.role),
        )),
        Some(last) if !turns.is_empty() => Ok((turns, last.content)),
        _ => Err(RowProblem::mistyped(
            key,
            format!("{expected}, with a prompt before it"),
            "no turn before the last",
        )),
    }
}

/// The row's own `prompt_id`, else the hash of its prompt.
pub(super) fn id_or_hash(
    fields: &Fields<'_>,
    prompt: &impl Serialize,
) -> Result<String, RowProblem> {
    Ok(match fields.id("prompt_id")? {
        Some(id) => id,
        None => stable_hash(prompt),
    })
}
