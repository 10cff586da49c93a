//! Prompt rows and supervised rows.

use serde::Serialize;
use serde_json::Value;
use sppo_model::chat_template::{Message, tools_of};

use super::super::messages::answer_text;
use super::super::prompt::{Prompt, prompt_and_tools, stable_hash};
use super::source::{self, prompt_keys, source_keys};
use super::{Fields, Row, RowProblem};

/// A prompt to answer. Read from `prompt`, else `instruction` (with Alpaca's `input` below it), else
/// `question`, else the turns of `messages` or ShareGPT's `conversations` up to the last one of the
/// user or a tool, else MT-Bench's `turns`; with `system` and `tools` where they are there.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptRow {
    /// Unique in its file; [`stable_hash`] of the prompt where the file names none.
    pub prompt_id: String,
    /// What is to be answered.
    #[serde(flatten, serialize_with = "prompt_and_tools")]
    pub prompt: Prompt,
    /// A good answer, for judges that compare with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Row for PromptRow {
    const KIND: &'static str = "prompts";
    const KEYS: &'static [&'static str] = source_keys!["prompt_id", "reference"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let Some(prompt) = source::prompt(fields)? else {
            let need = "a prompt row needs `prompt`, `instruction` or `messages` (or `question`, `conversations`, `turns`)";
            return Err(source::missing(fields, "prompt", need));
        };
        let prompt = source::with_context(fields, prompt)?;
        Ok(PromptRow {
            prompt_id: id_or_hash(fields, &prompt, tools_of(&prompt.messages()))?,
            prompt,
            reference: fields.string("reference")?,
        })
    }

    fn unique_id(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt_id)
    }
}

/// A prompt with the answer to learn. Read from `prompt` + `response` (or TRL's `completion`), from
/// `instruction` (with Alpaca's `input`) + `output`, from `question` + `answer`, or from `messages`
/// or ShareGPT's `conversations` that end in an assistant turn; with `system` and `tools`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SftRow {
    /// Chat turns up to the answer.
    pub prompt: Vec<Message>,
    /// The answer to learn.
    pub response: String,
}

impl Row for SftRow {
    const KIND: &'static str = "sft rows";
    const KEYS: &'static [&'static str] =
        source_keys!["response", "completion", "output", "answer"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let (prompt, response) = prompt_and_response(fields)?;
        Ok(SftRow {
            prompt: source::with_context(fields, prompt)?.into_messages(),
            response,
        })
    }
}

fn prompt_and_response(fields: &Fields<'_>) -> Result<(Prompt, String), RowProblem> {
    const NEED: &str = "an sft row needs `prompt` + `response`, `instruction` + `output` or `messages` (or `completion`, `question` + `answer`, `conversations`)";
    let given = answer(fields, &["response", "completion"])?;
    let text_prompt = || match source::given_or_hh(fields)? {
        Some(prompt) => Ok(Some(prompt)),
        None => Ok(source::instruction_or_question(fields)?.map(Prompt::Text)),
    };
    if let Some(response) = given {
        let prompt = text_prompt()?.ok_or_else(|| source::missing(fields, "prompt", NEED))?;
        return Ok((prompt, response));
    }
    // A question beside a conversation may only repeat it.
    let asked = fields.get("instruction").is_some()
        || has_either(fields, "output", "answer")
        || !has_either(fields, "messages", "conversations");
    if asked && let Some(text) = source::instruction_or_question(fields)? {
        let beside = match fields.get("instruction") {
            Some(_) => ("output", "`instruction` needs it beside it"),
            None => ("answer", "`question` needs it beside it, or `response`"),
        };
        let response = answer(fields, &["output", "answer"])?;
        let response = response.ok_or_else(|| source::missing(fields, beside.0, beside.1))?;
        return Ok((Prompt::Text(text), response));
    }
    for key in ["messages", "conversations"] {
        if let Some(turns) = fields.messages(key)? {
            let (prompt, response) = split_conversation(key, turns)?;
            return Ok((Prompt::Messages(prompt), response));
        }
    }
    let absent = match text_prompt()? {
        Some(_) => "response",
        None => "prompt",
    };
    Err(source::missing(fields, absent, NEED))
}

fn has_either(fields: &Fields<'_>, one: &str, other: &str) -> bool {
    fields.get(one).is_some() || fields.get(other).is_some()
}

/// The answer under the first of some keys that is there: text, or one assistant turn.
fn answer(fields: &Fields<'_>, keys: &[&str]) -> Result<Option<String>, RowProblem> {
    let Some(key) = keys.iter().find(|key| fields.get(key).is_some()) else {
        return Ok(None);
    };
    match fields.get(key) {
        Some(Value::Array(_) | Value::Object(_)) => {}
        _ => {
            let text = fields.string(key)?;
            return Ok(text.map(|text| source::answer(fields, text)));
        }
    }
    let mut turns = fields.messages(key)?.unwrap_or_default();
    match (turns.pop(), turns.len()) {
        (Some(turn), 0) if turn.role == "assistant" => answer_text(key, turn).map(Some),
        _ => Err(RowProblem::mistyped(
            *key,
            "a string or one assistant turn",
            format!("{} turns that are not just that", turns.len() + 1),
        )),
    }
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
        Some(last) if !turns.is_empty() => Ok((turns, answer_text(key, last)?)),
        _ => Err(RowProblem::mistyped(
            key,
            format!("{expected}, with a prompt before it"),
            "no turn before the last",
        )),
    }
}

/// The row's own `prompt_id`, else the hash of its prompt and of the tools it may call.
pub(super) fn id_or_hash(
    fields: &Fields<'_>,
    prompt: &impl Serialize,
    tools: Option<&Value>,
) -> Result<String, RowProblem> {
    Ok(match (fields.id("prompt_id")?, tools) {
        (Some(id), _) => id,
        (None, None) => stable_hash(prompt),
        (None, Some(tools)) => stable_hash(&(prompt, tools)),
    })
}
