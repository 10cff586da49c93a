//! Preference pairs in the layouts that users have.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;
use sppo_model::chat_template::{Message, tools_of};

use super::super::error::{DataError, Place};
use super::super::hh;
use super::super::prompt::{Prompt, tools_entry, turn};
use super::super::row_file::RowFile;
use super::prompts::{id_or_hash, split_conversation};
use super::source::{self, prompt_keys, source_keys};
use super::{Fields, Row, RowProblem};

/// A prompt with a better and a worse response.
#[derive(Clone, Debug, PartialEq)]
pub enum PairContent {
    /// Text, to be put through the chat template.
    Text {
        /// Chat turns, at least one.
        prompt: Vec<Message>,
        /// The better response.
        chosen: String,
        /// The worse response.
        rejected: String,
    },
    /// Token ids, used as they are.
    Ids {
        /// With all special tokens.
        prompt: Vec<u32>,
        /// Ids of the better response.
        chosen: Vec<u32>,
        /// Ids of the worse response.
        rejected: Vec<u32>,
    },
}

/// The ids behind a pair's text, as they were sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledIds {
    /// Of the prompt, through the assistant's header.
    pub prompt_ids: Vec<u32>,
    /// Of the better response.
    pub chosen_ids: Vec<u32>,
    /// Of the worse response.
    pub rejected_ids: Vec<u32>,
    /// Whether the better response ended by itself rather than by its length.
    pub chosen_ended: Option<bool>,
    /// The same of the worse one.
    pub rejected_ended: Option<bool>,
}

/// A pair with the probabilities that the SPPO losses aim at; other losses need none of them.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRow {
    /// A hash of the prompt where the file names none.
    pub prompt_id: String,
    /// Prompt and responses, as text or as ids.
    pub content: PairContent,
    /// Of a text, the ids that were sampled.
    pub sampled: Option<SampledIds>,
    /// What the SPPO losses aim at.
    pub probabilities: PairProbabilities,
}

/// The three probabilities of a pair, in 0..1, from the judge to the loss; none where a row lacks it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairProbabilities {
    /// P(chosen beats rejected), `chosen_probs`.
    pub chosen: Option<f64>,
    /// Mean probability that the chosen response beats one of the K, `chosen_probs_win`.
    pub win: Option<f64>,
    /// Mean probability that the rejected response beats one of the K, `chosen_probs_lose`.
    pub lose: Option<f64>,
}

impl PairProbabilities {
    /// All three, in the order of the fields.
    pub fn new(chosen: f64, win: f64, lose: f64) -> Self {
        Self {
            chosen: Some(chosen),
            win: Some(win),
            lose: Some(lose),
        }
    }
}

/// The three probabilities of a pair, for saying which ones a loss needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbabilityKey {
    /// P(chosen beats rejected).
    Chosen,
    /// Mean probability that the chosen response beats a candidate.
    Win,
    /// Mean probability that the rejected response beats a candidate.
    Lose,
}

impl ProbabilityKey {
    /// The key in the file.
    pub fn name(self) -> &'static str {
        match self {
            ProbabilityKey::Chosen => "chosen_probs",
            ProbabilityKey::Win => "chosen_probs_win",
            ProbabilityKey::Lose => "chosen_probs_lose",
        }
    }
}

impl PairRow {
    /// One of the three probabilities, where the row has it.
    pub fn probability(&self, key: ProbabilityKey) -> Option<f64> {
        match key {
            ProbabilityKey::Chosen => self.probabilities.chosen,
            ProbabilityKey::Win => self.probabilities.win,
            ProbabilityKey::Lose => self.probabilities.lose,
        }
    }
}

/// Refuses pairs that lack a probability which the loss needs, or leaves them out.
pub fn check_probabilities(
    file: &mut RowFile<PairRow>,
    loss: &str,
    keys: &[ProbabilityKey],
) -> Result<(), DataError> {
    let path = file.path.clone();
    file.check(|number, row| {
        let key = keys.iter().find(|key| row.probability(**key).is_none())?;
        let need = format!(
            "the loss `{loss}` needs it (prompt_id `{}`); make it with sppo judge and sppo pairs, or choose another loss",
            row.prompt_id
        );
        Some(DataError::Row {
            path: path.clone(),
            place: Place::Row(number),
            problem: Box::new(RowProblem::missing(key.name(), need)),
        })
    })
}

impl Row for PairRow {
    const KIND: &'static str = "pairs";
    const KEYS: &'static [&'static str] = source_keys![
        "prompt_id",
        "chosen",
        "rejected",
        "prompt_ids",
        "chosen_ids",
        "rejected_ids",
        "chosen_ended",
        "rejected_ended",
        "chosen_probs",
        "chosen_probs_win",
        "chosen_probs_lose",
    ];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let tokenised = ["prompt_ids", "chosen_ids", "rejected_ids"]
            .iter()
            .any(|key| fields.get(key).is_some());
        let has_text = fields.get("chosen").is_some() && fields.get("rejected").is_some();
        let (content, sampled) = match (tokenised, has_text) {
            (true, true) => (text_content(fields)?, Some(sampled_ids(fields)?)),
            (true, false) => (ids_content(fields)?, None),
            (false, _) => (text_content(fields)?, None),
        };
        let prompt_id = match &content {
            PairContent::Text { prompt, .. } => id_or_hash(fields, prompt, tools_of(prompt))?,
            PairContent::Ids { prompt, .. } => id_or_hash(fields, prompt, None)?,
        };
        Ok(PairRow {
            prompt_id,
            content,
            sampled,
            probabilities: PairProbabilities {
                chosen: fields.probability("chosen_probs")?,
                win: fields.probability("chosen_probs_win")?,
                lose: fields.probability("chosen_probs_lose")?,
            },
        })
    }
}

fn sampled_ids(fields: &Fields<'_>) -> Result<SampledIds, RowProblem> {
    let [prompt_ids, chosen_ids, rejected_ids] = ids(fields)?;
    Ok(SampledIds {
        prompt_ids,
        chosen_ids,
        rejected_ids,
        chosen_ended: fields.boolean("chosen_ended")?,
        rejected_ended: fields.boolean("rejected_ended")?,
    })
}

fn ids_content(fields: &Fields<'_>) -> Result<PairContent, RowProblem> {
    let [prompt, chosen, rejected] = ids(fields)?;
    Ok(PairContent::Ids {
        prompt,
        chosen,
        rejected,
    })
}

/// Of prompt, better and worse response.
fn ids(fields: &Fields<'_>) -> Result<[Vec<u32>; 3], RowProblem> {
    let read = |key| {
        let need = "a pre-tokenised pair needs `prompt_ids`, `chosen_ids` and `rejected_ids`";
        let ids = fields.require(key, need, fields.ids(key))?;
        if ids.is_empty() {
            return Err(RowProblem::mistyped(
                key,
                "a list of at least one token id",
                "an empty list",
            ));
        }
        Ok(ids)
    };
    Ok([
        read("prompt_ids")?,
        read("chosen_ids")?,
        read("rejected_ids")?,
    ])
}

const NEED: &str = "a pair needs `prompt`, `chosen` and `rejected`, or `prompt_ids`, `chosen_ids` and `rejected_ids`";

fn text_content(fields: &Fields<'_>) -> Result<PairContent, RowProblem> {
    let [chosen, rejected] = match hh_sides(fields) {
        Some(sides) => sides.map(|(key, turns)| split_conversation(key, turns)),
        None => {
            let prompt = prompt(fields)?;
            ["chosen", "rejected"].map(|key| side(fields, key, prompt.as_ref()))
        }
    };
    let (prompt, chosen) = chosen?;
    let (rejected_prompt, rejected) = rejected?;
    if prompt != rejected_prompt {
        return Err(RowProblem::mistyped(
            "rejected",
            "a conversation that begins with the same turns as `chosen`",
            "other turns before the last",
        ));
    }
    let prompt = source::with_context(fields, Prompt::Messages(prompt))?;
    Ok(PairContent::Text {
        prompt: prompt.into_messages(),
        chosen,
        rejected,
    })
}

/// Whole conversations in two texts of HH's kind, with no other prompt beside them.
fn hh_sides(fields: &Fields<'_>) -> Option<[(&'static str, Vec<Message>); 2]> {
    let turns = |key| hh::turns(fields.get(key)?.as_str()?);
    let chosen = turns("chosen")?;
    let rejected = turns("rejected")?;
    let repeated = match fields.get("prompt") {
        Some(prompt) => hh::prompt(prompt.as_str()?)?[..] == chosen[..chosen.len() - 1],
        None => ["instruction", "question", "messages", "conversations"]
            .iter()
            .all(|key| fields.get(key).is_none()),
    };
    repeated.then_some([("chosen", chosen), ("rejected", rejected)])
}

/// The row's prompt; where both sides are whole conversations, only `prompt` is looked at.
fn prompt(fields: &Fields<'_>) -> Result<Option<Prompt>, RowProblem> {
    let given = source::given_or_hh(fields)?;
    let whole = |key| matches!(fields.get(key), Some(Value::Array(turns)) if turns.len() > 1);
    if given.is_some() || (whole("chosen") && whole("rejected")) {
        return Ok(given);
    }
    for key in ["messages", "conversations"] {
        let turns = fields.messages(key)?.unwrap_or_default();
        if turns.last().is_some_and(|last| last.role == "assistant") {
            return Err(RowProblem::mistyped(
                key,
                "the turns before the answers",
                "a last turn of role `assistant`",
            ));
        }
    }
    source::prompt(fields)
}

/// The prompt's turns and the answer of one side: an answer as text (TRL's standard layout), one
/// assistant turn behind the prompt (this project's and TRL's explicit layout, ShareGPT's), or a
/// whole conversation (the official layout, where a `prompt` in text only repeats a turn).
fn side(
    fields: &Fields<'_>,
    key: &str,
    prompt: Option<&Prompt>,
) -> Result<(Vec<Message>, String), RowProblem> {
    let prompt_turns = || {
        prompt
            .map(|prompt| prompt.messages().into_owned())
            .ok_or_else(|| source::missing(fields, "prompt", NEED))
    };
    let turns = match fields.get(key) {
        None => return Err(source::missing(fields, key, NEED)),
        Some(Value::String(text)) => {
            return Ok((prompt_turns()?, source::answer(fields, text.clone())));
        }
        Some(_) => fields.require(key, NEED, fields.messages(key))?,
    };
    if turns.len() == 1 {
        let mut whole = prompt_turns()?;
        whole.extend(turns);
        return split_conversation(key, whole);
    }
    let (before, answer) = split_conversation(key, turns)?;
    match prompt {
        Some(Prompt::Messages(own)) if *own != before => Err(RowProblem::mistyped(
            key,
            "one assistant turn, or the turns of `prompt` and one assistant turn",
            "other turns before the last",
        )),
        _ => Ok((before, answer)),
    }
}

impl Serialize for PairRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("prompt_id", &self.prompt_id)?;
        match &self.content {
            PairContent::Text {
                prompt,
                chosen,
                rejected,
            } => {
                map.serialize_entry("prompt", prompt)?;
                tools_entry(&mut map, prompt)?;
                map.serialize_entry("chosen", &[turn("assistant", chosen.clone())])?;
                map.serialize_entry("rejected", &[turn("assistant", rejected.clone())])?;
            }
            PairContent::Ids {
                prompt,
                chosen,
                rejected,
            } => {
                map.serialize_entry("prompt_ids", prompt)?;
                map.serialize_entry("chosen_ids", chosen)?;
                map.serialize_entry("rejected_ids", rejected)?;
            }
        }
        if let Some(sampled) = &self.sampled {
            map.serialize_entry("prompt_ids", &sampled.prompt_ids)?;
            map.serialize_entry("chosen_ids", &sampled.chosen_ids)?;
            map.serialize_entry("rejected_ids", &sampled.rejected_ids)?;
            for (key, ended) in [
                ("chosen_ended", sampled.chosen_ended),
                ("rejected_ended", sampled.rejected_ended),
            ] {
                if let Some(ended) = ended {
                    map.serialize_entry(key, &ended)?;
                }
            }
        }
        for key in [
            ProbabilityKey::Chosen,
            ProbabilityKey::Win,
            ProbabilityKey::Lose,
        ] {
            if let Some(value) = self.probability(key) {
                map.serialize_entry(key.name(), &value)?;
            }
        }
        map.end()
    }
}
