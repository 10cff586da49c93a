//! A judge that reads scores or comparison logits made elsewhere.

use std::collections::HashMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Judge, JudgeError, Judgement};
use crate::data::{Fields, ResponseRow, Row, RowProblem, read_rows, stable_hash};

/// The scores of one prompt's responses: `rm_scores` `[K]`, or `comparison_logits` `[K][K]` of a
/// judge that compares pairs, or both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExternalScores {
    pub prompt_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rm_scores: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison_logits: Option<Vec<Vec<f64>>>,
}

impl Row for ExternalScores {
    const KIND: &'static str = "scores";
    const KEYS: &'static [&'static str] = &["prompt_id", "rm_scores", "comparison_logits"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let need = "scores are joined to the responses by it";
        let row = ExternalScores {
            prompt_id: fields.require("prompt_id", need, fields.id("prompt_id"))?,
            rm_scores: fields.numbers("rm_scores")?,
            comparison_logits: fields.matrix("comparison_logits")?,
        };
        if row.rm_scores.is_none() && row.comparison_logits.is_none() {
            return Err(RowProblem::Missing {
                key: "rm_scores".to_string(),
                need: "a scores row needs `rm_scores` or `comparison_logits`".to_string(),
            });
        }
        Ok(row)
    }

    fn unique_id(&mut self) -> Option<&mut String> {
        Some(&mut self.prompt_id)
    }
}

/// Joins scores to responses by `prompt_id`.
pub struct ScoresJudge {
    scores: HashMap<String, ExternalScores>,
    file: String,
    temperature: f64,
    description: Value,
}

impl ScoresJudge {
    /// Reads a file of [`ExternalScores`]; `temperature` divides score differences.
    pub fn open(path: &Path, temperature: f64) -> Result<Self, JudgeError> {
        super::rubric::check_positive("temperature", temperature)?;
        let rows: Vec<ExternalScores> = read_rows(path)?;
        let description = json!({ "kind": "scores", "hash": stable_hash(&(temperature, &rows)) });
        let scores = rows.into_iter().map(|row| (row.prompt_id.clone(), row));
        Ok(ScoresJudge {
            scores: scores.collect(),
            file: path.display().to_string(),
            temperature,
            description,
        })
    }
}

impl Judge for ScoresJudge {
    fn name(&self) -> &str {
        "scores"
    }

    fn judge(&mut self, row: &ResponseRow) -> Result<Judgement, JudgeError> {
        let Some(found) = self.scores.get(&row.prompt_id) else {
            let problem = format!("{} has no scores for it", self.file);
            return Err(JudgeError::row(row, problem));
        };
        let check = |key: &str, length: usize| {
            if length == row.responses.len() {
                return Ok(());
            }
            let problem = format!(
                "{}: `{key}` is for {length} responses, but the row has {}",
                self.file,
                row.responses.len()
            );
            Err(JudgeError::row(row, problem))
        };
        if let Some(logits) = &found.comparison_logits {
            check("comparison_logits", logits.len())?;
        }
        match (&found.rm_scores, &found.comparison_logits) {
            (Some(scores), logits) => {
                check("rm_scores", scores.len())?;
                Ok(Judgement {
                    comparison_logits: logits.clone(),
                    ..Judgement::from_scores(scores.clone(), self.temperature)
                })
            }
            (None, logits) => {
                let logits = logits.clone().unwrap_or_default();
                Judgement::from_comparisons(logits, self.temperature)
                    .map_err(|error| JudgeError::row(row, format!("{}: {error}", self.file)))
            }
        }
    }

    fn description(&self) -> Value {
        self.description.clone()
    }
}
