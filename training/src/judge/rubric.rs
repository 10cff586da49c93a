//! A judge that scores a response by rules written in the config, without any model.
//!
//! Every rule gives a value from 0 to 1; the score is the sum of weight × value over the rules
//! that reward (ending, length, required patterns, similarity), less the same sum over those that
//! punish (repetition, forbidden patterns). A blank response gets the lowest score there is.

use std::collections::{HashMap, HashSet};

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Desk, Judge, JudgeError, Judgement};
use crate::data::{ResponseRow, stable_hash};

/// The rules. A weight of 0 switches a rule off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RubricConfig {
    /// Divides score differences before the sigmoid that makes win probabilities of them.
    pub temperature: f64,
    /// Weight of ending properly: half for a finish reason of `stop`, half for a text that ends in
    /// `.`, `!`, `?`, `…`, their full-width forms, or a code fence; quotes and brackets may follow.
    /// Rows without finish reasons are judged by the text alone.
    pub ending_weight: f64,
    /// Weight of a length near the target: exp(−½·((length − target) / tolerance)²).
    pub length_weight: f64,
    /// The length that is best, in `length_unit`.
    pub length_target: f64,
    /// How far from the target the value has fallen to 0.61; at twice this to 0.14.
    pub length_tolerance: f64,
    /// Words (split at white space) or characters.
    pub length_unit: LengthUnit,
    /// Regular expressions that a response should match somewhere, each with its weight.
    pub required: Vec<WeightedPattern>,
    /// Regular expressions that a response should not match, each with its weight.
    pub forbidden: Vec<WeightedPattern>,
    /// Weight of repetition: the share of word n-grams that occurred before in the response.
    pub repetition_weight: f64,
    /// The n of these n-grams, in words without regard to case.
    pub repetition_ngram: usize,
    /// Weight of similarity to the row's `reference`: F1 of their words, counted with repeats,
    /// without regard to case and to punctuation around words.
    pub similarity_weight: f64,
}

impl Default for RubricConfig {
    fn default() -> Self {
        RubricConfig {
            temperature: 1.0,
            ending_weight: 1.0,
            length_weight: 1.0,
            length_target: 120.0,
            length_tolerance: 80.0,
            length_unit: LengthUnit::Words,
            required: Vec::new(),
            forbidden: Vec::new(),
            repetition_weight: 1.0,
            repetition_ngram: 3,
            similarity_weight: 0.0,
        }
    }
}

/// What the length of a response is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LengthUnit {
    Words,
    Characters,
}

/// A regular expression (the syntax of the `regex` crate) and what a match is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedPattern {
    pub pattern: String,
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// A [`RubricConfig`] made ready to judge.
pub struct Rubric {
    config: RubricConfig,
    required: Vec<(Regex, f64)>,
    forbidden: Vec<(Regex, f64)>,
    description: Value,
}

impl Rubric {
    /// Checks the rules; an error names the key that makes no sense.
    pub fn new(config: RubricConfig) -> Result<Self, JudgeError> {
        check_positive("temperature", config.temperature)?;
        check_positive("length_target", config.length_target)?;
        check_positive("length_tolerance", config.length_tolerance)?;
        let weights = [
            ("ending_weight", config.ending_weight),
            ("length_weight", config.length_weight),
            ("repetition_weight", config.repetition_weight),
            ("similarity_weight", config.similarity_weight),
        ];
        for (key, weight) in weights {
            check_weight(key, weight)?;
        }
        if config.repetition_ngram == 0 {
            return Err(wrong("repetition_ngram", "must be at least 1, found 0"));
        }
        let required = compile("required", &config.required)?;
        let forbidden = compile("forbidden", &config.forbidden)?;
        let patterns = required.iter().chain(&forbidden).map(|(_, weight)| *weight);
        if !weights.iter().map(|w| w.1).chain(patterns).any(|w| w > 0.0) {
            return Err(wrong(
                "ending_weight",
                "all weights are 0, so every response would score the same; give one rule a weight",
            ));
        }
        Ok(Rubric {
            description: json!({ "kind": "rubric", "hash": stable_hash(&config) }),
            config,
            required,
            forbidden,
        })
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
        let hit = |pattern: &Regex| f64::from(u8::from(pattern.is_match(response)));
        let mut score = config.ending_weight * rewarded(ending(response, finish_reason))
            + config.length_weight * rewarded(self.length(response))
            - config.repetition_weight * punished(repetition(response, config.repetition_ngram));
        if let Some(reference) = reference {
            score += config.similarity_weight * rewarded(similarity(response, reference));
        }
        for (pattern, weight) in &self.required {
            score += weight * rewarded(hit(pattern));
        }
        for (pattern, weight) in &self.forbidden {
            score -= weight * punished(hit(pattern));
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

    fn judge(&mut self, rows: &[&ResponseRow], desk: &mut Desk<'_>) -> Result<(), JudgeError> {
        desk.one_by_one(rows, |row| self.judge_row(row))
    }

    fn description(&self) -> Value {
        self.description.clone()
    }
}

fn wrong(key: impl Into<String>, problem: impl Into<String>) -> JudgeError {
    JudgeError::Config {
        key: key.into(),
        problem: problem.into(),
    }
}

pub(super) fn check_positive(key: &str, value: f64) -> Result<(), JudgeError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(wrong(
        key,
        format!("must be a finite number above 0, found {value}"),
    ))
}

fn check_weight(key: &str, weight: f64) -> Result<(), JudgeError> {
    if weight.is_finite() && weight >= 0.0 {
        return Ok(());
    }
    Err(wrong(
        key,
        format!("a weight must be a finite number, 0 or above, found {weight}"),
    ))
}

fn compile(key: &str, patterns: &[WeightedPattern]) -> Result<Vec<(Regex, f64)>, JudgeError> {
    let each = patterns.iter().enumerate().map(|(i, rule)| {
        check_weight(&format!("{key}[{i}].weight"), rule.weight)?;
        let regex = Regex::new(&rule.pattern).map_err(|error| {
            wrong(
                format!("{key}[{i}].pattern"),
                format!("not a regular expression: {error}"),
            )
        })?;
        Ok((regex, rule.weight))
    });
    each.collect()
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
