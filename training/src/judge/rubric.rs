//! A judge that scores a response by rules written in the config, without any model.
//!
//! Every rule gives a value from 0 to 1; the score is the sum of weight × value over the rules
//! that reward (ending, length, required patterns, similarity), less the same sum over those that
//! punish (repetition, forbidden patterns). A blank response gets the lowest score there is.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::{Judge, JudgeError, JudgeSession, Judgement};
use crate::config::{LengthUnit, RubricConfig, Section, WeightedPattern};
use crate::data::{ResponseRow, stable_hash};

/// Judges by the rules of a [`RubricConfig`].
pub struct Rubric {
    config: RubricConfig,
    description: Value,
}

impl Rubric {
    /// With mean win probabilities over all responses.
    pub fn new(config: RubricConfig) -> Self {
        let rules = config.effective();
        Rubric {
            description: json!({ "kind": "rubric", "hash": stable_hash(&rules) }),
            config,
        }
    }

    /// With mean win probabilities estimated against the first `samples` responses.
    pub fn with_samples(mut self, samples: Option<usize>) -> Self {
        if let Some(samples) = samples {
            self.description["samples"] = json!(samples);
        }
        self
    }

    /// The score of one response. `finish_reason` and `reference` may be unknown; without a
    /// reference the similarity counts as 0.
    pub fn score(
        &self,
        response: &str,
        finish_reason: Option<&str>,
        reference: Option<&str>,
    ) -> f64 {
        let config = &self.config;
        let blank = response.trim().is_empty();
        // A blank response earns nothing and is punished by every rule that can.
        let rewarded = |value: f64| if blank { 0.0 } else { value };
        let punished = |value: f64| if blank { 1.0 } else { value };
        let hit = |rule: &WeightedPattern| {
            let pattern = rule.pattern.as_ref();
            f64::from(u8::from(pattern.is_some_and(|p| p.0.is_match(response))))
        };
        let mut score = config.ending_weight * rewarded(ending(response, finish_reason))
            + config.length_weight * rewarded(self.length(response))
            - config.repetition_weight * punished(repetition(response, config.repetition_ngram));
        if let Some(reference) = reference {
            score += config.similarity_weight * rewarded(similarity(response, reference));
        }
        for rule in &config.required {
            score += rule.weight * rewarded(hit(rule));
        }
        for rule in &config.forbidden {
            score -= rule.weight * punished(hit(rule));
        }
        score
    }

    fn length(&self, response: &str) -> f64 {
        let length = match self.config.length_unit {
            LengthUnit::Words => response.split_whitespace().count(),
            LengthUnit::Characters => response.trim().chars().count(),
        };
        let off = (length as f64 - self.config.length_target) / self.config.length_tolerance;
        (-0.5 * off * off).exp()
    }
}

impl Rubric {
    /// Judges all responses of a row.
    pub fn judge_row(&self, row: &ResponseRow) -> Result<Judgement, JudgeError> {
        if self.config.similarity_weight > 0.0 && row.reference.is_none() {
            return Err(JudgeError::row(
                row,
                "similarity_weight is above 0, but the row has no `reference`; add references to the prompts or set the weight to 0",
            ));
        }
        let scores = row.responses.iter().enumerate().map(|(i, response)| {
            let reasons = row.finish_reasons.as_ref();
            let reason = reasons.and_then(|reasons| reasons.get(i));
            self.score(
                response,
                reason.map(String::as_str),
                row.reference.as_deref(),
            )
        });
        Ok(Judgement::from_scores(
            scores.collect(),
            self.config.temperature,
        ))
    }
}

impl Judge for Rubric {
    fn name(&self) -> &str {
        "rubric"
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

/// Half for stopping by itself, half for the last character.
fn ending(response: &str, finish_reason: Option<&str>) -> f64 {
    let closers = ['"', '\'', '”', '’', '»', ')', ']', '*', '_', '」', '）'];
    let text = response.trim_end();
    let last = text.trim_end_matches(closers).chars().last();
    let full_stop = matches!(last, Some('.' | '!' | '?' | '…' | '。' | '！' | '？'));
    let by_text = f64::from(u8::from(full_stop || text.ends_with("```")));
    match finish_reason {
        None => by_text,
        Some(reason) => 0.5 * by_text + 0.5 * f64::from(u8::from(reason == "stop")),
    }
}

/// The share of n-grams that are not the first of their kind; 0 for texts of fewer words.
fn repetition(response: &str, n: usize) -> f64 {
    let words: Vec<String> = response.split_whitespace().map(str::to_lowercase).collect();
    let total = words.windows(n).len();
    if total == 0 {
        return 0.0;
    }
    let distinct: HashSet<&[String]> = words.windows(n).collect();
    1.0 - distinct.len() as f64 / total as f64
}

/// F1 of the words that both texts hold.
fn similarity(response: &str, reference: &str) -> f64 {
    let (response, reference) = (bare_words(response), bare_words(reference));
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in &reference {
        *counts.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in &response {
        if let Some(count) = counts.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    2.0 * f64::from(common) / (response.len() + reference.len()) as f64
}

/// Lower-case words without the punctuation around them; a minus before a digit stays.
fn bare_words(text: &str) -> Vec<String> {
    let bare = |word: &str| {
        let end = word.trim_end_matches(|c: char| !c.is_alphanumeric());
        let start = end.trim_start_matches(|c: char| !c.is_alphanumeric());
        let before = &end[..end.len() - start.len()];
        let negative = before.ends_with('-') && start.starts_with(|c: char| c.is_numeric());
        let sign = if negative { "-" } else { "" };
        format!("{sign}{}", start.to_lowercase())
    };
    text.split_whitespace()
        .map(bare)
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
mod tests;
