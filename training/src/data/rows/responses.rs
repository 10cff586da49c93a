//! Sampled responses, their judgement, and log-probabilities of pairs.

use serde::Serialize;
use serde_json::Value;
use sppo_model::chat_template::tools_of;

use super::super::fields::{in_unit, same_length};
use super::super::prompt::{Prompt, prompt_and_tools};
use super::prompts::id_or_hash;
use super::source::{self, prompt_keys};
use super::{Fields, Row, RowProblem};

/// K sampled responses to one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResponseRow {
    /// That of the prompt's row; a hash of the prompt where the file names none.
    pub prompt_id: String,
    /// The sampler writes chat turns; text from elsewhere reaches a judge as it is.
    #[serde(flatten, serialize_with = "prompt_and_tools")]
    pub prompt: Prompt,
    /// A good answer, for judges that compare with one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// `[K]` texts, at least one.
    pub responses: Vec<String>,
    /// `[K]` reasons, `stop` or `length`; absent in rows from elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reasons: Option<Vec<String>>,
    /// `[K]` token counts; absent in rows from elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<u32>>,
    /// `[K]` summed log-probabilities under the sampling model, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f64>>,
    /// Token ids of the prompt, through the assistant's header; absent in rows from elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_ids: Option<Vec<u32>>,
    /// `[K][n]` token ids as they were sampled, a stop token included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_ids: Option<Vec<Vec<u32>>>,
}

impl Row for ResponseRow {
    const KIND: &'static str = "responses";
    const KEYS: &'static [&'static str] = prompt_keys![
        "prompt_id",
        "reference",
        "responses",
        "finish_reasons",
        "tokens",
        "logprobs",
        "prompt_ids",
        "response_ids",
    ];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let need = "a response row needs `prompt` and `responses`";
        let prompt = fields.require("prompt", need, fields.prompt("prompt"))?;
        let prompt = source::with_context(fields, prompt)?;
        let row = ResponseRow {
            prompt_id: id_or_hash(fields, &prompt, tools_of(&prompt.messages()))?,
            prompt,
            reference: fields.string("reference")?,
            responses: fields.require("responses", need, fields.strings("responses"))?,
            finish_reasons: fields.strings("finish_reasons")?,
            tokens: fields.ids("tokens")?,
            logprobs: fields.numbers("logprobs")?,
            prompt_ids: fields.ids("prompt_ids")?,
            response_ids: fields.lists_of_ids("response_ids")?,
        };
        let count = row.responses.len();
        if count == 0 {
            return Err(RowProblem::mistyped(
                "responses",
                "a list of at least one response",
                "an empty list",
            ));
        }
        for (key, length) in [
            ("finish_reasons", row.finish_reasons.as_ref().map(Vec::len)),
            ("tokens", row.tokens.as_ref().map(Vec::len)),
            ("logprobs", row.logprobs.as_ref().map(Vec::len)),
            ("response_ids", row.response_ids.as_ref().map(Vec::len)),
        ] {
            same_length(key, length.unwrap_or(count), count)?;
        }
        Ok(row)
    }

    fn unique_id(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt_id)
    }
}

/// A response row with a judge's scores and win probabilities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JudgedRow {
    /// What was judged; its keys stand beside the others in the file.
    #[serde(flatten)]
    pub responses: ResponseRow,
    /// `[K]` scores, higher is better.
    pub rm_scores: Vec<f64>,
    /// `[K][K]`: the probability that response i beats response j.
    pub probability: Vec<Vec<f64>>,
    /// `[K][K]` logits of a judge that compares pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison_logits: Option<Vec<Vec<f64>>>,
    /// How the row was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Value>,
}

impl Row for JudgedRow {
    const KIND: &'static str = "judged rows";
    const KEYS: &'static [&'static str] = prompt_keys![
        "prompt_id",
        "reference",
        "responses",
        "finish_reasons",
        "tokens",
        "logprobs",
        "prompt_ids",
        "response_ids",
        "rm_scores",
        "probability",
        "comparison_logits",
        "judge",
    ];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let responses = ResponseRow::from_fields(fields)?;
        let need = "a judged row needs `rm_scores` and `probability` (sppo judge writes them)";
        let row = JudgedRow {
            rm_scores: fields.require("rm_scores", need, fields.numbers("rm_scores"))?,
            probability: fields.require("probability", need, fields.matrix("probability"))?,
            comparison_logits: fields.matrix("comparison_logits")?,
            judge: fields.get("judge").cloned(),
            responses,
        };
        let count = row.responses.responses.len();
        same_length("rm_scores", row.rm_scores.len(), count)?;
        same_length("probability", row.probability.len(), count)?;
        if let Some(logits) = &row.comparison_logits {
            same_length("comparison_logits", logits.len(), count)?;
        }
        for (i, values) in row.probability.iter().enumerate() {
            for (j, &value) in values.iter().enumerate() {
                in_unit(&format!("probability[{i}][{j}]"), value)?;
            }
        }
        Ok(row)
    }

    fn unique_id(&mut self) -> Option<&mut String> {
        self.responses.unique_id()
    }
}

/// Summed response log-probabilities of one pair, in nats; rows follow the order of the pairs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogpRow {
    /// Of the chosen response.
    pub chosen_logps: f64,
    /// Of the rejected response.
    pub rejected_logps: f64,
}

impl Row for LogpRow {
    const KIND: &'static str = "log-probabilities";
    const KEYS: &'static [&'static str] = &["chosen_logps", "rejected_logps"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let read = |key| fields.require(key, "a score row needs both sums", fields.number(key));
        Ok(LogpRow {
            chosen_logps: read("chosen_logps")?,
            rejected_logps: read("rejected_logps")?,
        })
    }
}
