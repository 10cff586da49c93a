//! A judge that reads scores or comparison logits made elsewhere.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Estimate, Judge, JudgeError, JudgeSession, Judgement};
use crate::config::Probability;
use crate::data::{Fields, ResponseRow, Row, RowProblem, read_rows, stable_hash};

/// The scores of one prompt's responses: `rm_scores` `[K]`, or `comparison_logits` `[K][K]` of a
/// judge that compares pairs, or both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExternalScores {
    /// Joins the scores to the responses.
    pub prompt_id: String,
    /// `[K]` scores, higher is better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rm_scores: Option<Vec<f64>>,
    /// `[K][K]` logits; the higher `[i][j]`, the likelier i beats j.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison_logits: Option<Vec<Vec<f64>>>,
    /// The responses that were scored, where the file names them: they must be the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub responses: Option<Vec<String>>,
}

impl Row for ExternalScores {
    const KIND: &'static str = "scores";
    const KEYS: &'static [&'static str] =
        &["prompt_id", "rm_scores", "comparison_logits", "responses"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let need = "scores are joined to the responses by it";
        let row = ExternalScores {
            prompt_id: fields.require("prompt_id", need, fields.id("prompt_id"))?,
            rm_scores: fields.numbers("rm_scores")?,
            comparison_logits: fields.matrix("comparison_logits")?,
            responses: fields.strings("responses")?,
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
    estimate: Estimate,
    description: Value,
}

impl ScoresJudge {
    /// Reads a file of [`ExternalScores`].
    pub fn open(path: &Path, estimate: Estimate) -> Result<Self, JudgeError> {
        let rows: Vec<ExternalScores> = read_rows(path)?;
        let description = estimate.describe("scores", json!({ "hash": stable_hash(&rows) }));
        let scores = rows.into_iter().map(|row| (row.prompt_id.clone(), row));
        Ok(ScoresJudge {
            scores: scores.collect(),
            file: path.display().to_string(),
            estimate,
            description,
        })
    }

    /// Judges one row.
    pub fn judge_row(&self, row: &ResponseRow) -> Result<Judgement, JudgeError> {
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
        if let Some(scored) = &found.responses
            && *scored != row.responses
        {
            let problem = format!("{} scores other responses to it", self.file);
            return Err(JudgeError::row(row, problem));
        }
        if let Some(scores) = &found.rm_scores {
            check("rm_scores", scores.len())?;
        }
        let Some(logits) = &found.comparison_logits else {
            let scores = found.rm_scores.clone().unwrap_or_default();
            if self.estimate.probability == Probability::Comparisons {
                let problem = format!(
                    "{} has no `comparison_logits` for it, which judge.probability = \"comparisons\" needs",
                    self.file
                );
                return Err(JudgeError::row(row, problem));
            }
            return Ok(self.estimate.from_scores(scores));
        };
        check("comparison_logits", logits.len())?;
        let compared = self
            .estimate
            .from_comparisons(logits.clone())
            .map_err(|error| JudgeError::row(row, format!("{}: {error}", self.file)))?;
        Ok(match (&found.rm_scores, self.estimate.probability) {
            (None, _) => compared,
            (Some(scores), Probability::Comparisons) => Judgement {
                rm_scores: scores.clone(),
                ..compared
            },
            (Some(scores), Probability::Scores) => Judgement {
                comparison_logits: compared.comparison_logits,
                ..self.estimate.from_scores(scores.clone())
            },
        })
    }
}

impl Judge for ScoresJudge {
    fn name(&self) -> &str {
        "scores"
    }

    fn check_row(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        self.estimate.check(row)?;
        self.judge_row(row).map(|_| ())
    }

    fn check(&self, rows: &[ResponseRow]) -> Result<(), JudgeError> {
        let known: HashSet<&str> = rows.iter().map(|row| row.prompt_id.as_str()).collect();
        rows.iter().try_for_each(|row| self.check_row(row))?;
        let mut strangers = self.scores.keys().filter(|id| !known.contains(id.as_str()));
        match strangers.next() {
            None => Ok(()),
            Some(id) => Err(JudgeError::Row {
                prompt_id: id.clone(),
                problem: format!(
                    "{} has scores for it and {} more, but there are no responses to it; the two files do not belong together",
                    self.file,
                    strangers.count()
                ),
            }),
        }
    }

    fn judge(
        &mut self,
        rows: &[&ResponseRow],
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError> {
        session.one_by_one(rows, |row| self.judge_row(row))
    }

    fn description(&self) -> Value {
        self.description.clone()
    }
}
