//! From scores or comparisons to win probabilities.

use serde::Serialize;
use serde_json::{Value, json};

use super::{JudgeError, Judgement};
use crate::config::Probability;
use crate::data::ResponseRow;
use crate::preference::{PreferenceError, scores_from_comparisons, sigmoid};

/// How win probabilities are estimated; recorded in every judged row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Which logits become probabilities.
    pub probability: Probability,
    /// Divides logits and score differences.
    pub temperature: f64,
    /// Responses, from the first, against which a response's mean win probability is taken; all
    /// of them where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
}

impl Default for Estimate {
    /// As the published pipeline does it.
    fn default() -> Self {
        Estimate {
            probability: Probability::Scores,
            temperature: 1.0,
            samples: None,
        }
    }
}

impl Estimate {
    /// From one score a response: P_ij = σ((s_i − s_j) / temperature).
    pub fn from_scores(&self, rm_scores: Vec<f64>) -> Judgement {
        Judgement::from_scores(rm_scores, self.temperature)
    }

    /// From a `[K][K]` matrix of comparison logits, by way of their aggregated scores, or as the
    /// mean of both orders: P_ij = (σ(M_ij / temperature) + σ(−M_ji / temperature)) / 2.
    pub fn from_comparisons(&self, logits: Vec<Vec<f64>>) -> Result<Judgement, PreferenceError> {
        let scores = scores_from_comparisons(&logits)?;
        let mut judgement = self.from_scores(scores);
        if self.probability == Probability::Comparisons {
            let count = logits.len();
            let won = |i: usize, j: usize| sigmoid(logits[i][j] / self.temperature);
            let mean = |i, j| match i == j {
                true => 0.5,
                false => 0.5 * (won(i, j) + 1.0 - won(j, i)),
            };
            judgement.probability = (0..count)
                .map(|i| (0..count).map(|j| mean(i, j)).collect())
                .collect();
        }
        judgement.comparison_logits = Some(logits);
        Ok(judgement)
    }

    /// Refuses a row that has fewer responses than the estimate takes.
    pub fn check(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        match self.samples {
            Some(samples) if samples > row.responses.len() => Err(JudgeError::row(
                row,
                format!(
                    "judge.samples = {samples}, but the row has {} response(s); sample more or lower the number",
                    row.responses.len()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The same, and a row with nothing to compare.
    pub fn check_pairs(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        match row.responses.len() {
            count @ (0 | 1) => Err(JudgeError::row(
                row,
                format!(
                    "it has {count} response(s), and comparing needs two (sppo generate --samples 2 or more)"
                ),
            )),
            _ => self.check(row),
        }
    }

    /// What a judge of `kind` with this estimate writes beside every row, with what else its
    /// results depend on.
    pub fn describe(&self, kind: &str, more: Value) -> Value {
        let mut description = json!({ "kind": kind });
        for part in [json!(self), more] {
            if let (Value::Object(all), Value::Object(part)) = (&mut description, part) {
                all.extend(part);
            }
        }
        description
    }
}
