//! What lies in a run's folder, as far as the page shows it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::Table;

use super::super::curves::{Step, targets};
use super::super::progress::Progress;
use super::super::report::Report;
use crate::config::Loss;
use crate::data::{JudgedRow, PairProbabilities, PairRow, Prompt, Row, read_each_numbered};
use crate::files::{FileError, Mark, config_in_effect, read_mark};
use crate::stages::StageError;

/// Prompts whose answers are kept for the page, of those that a file holds.
const SPACED: usize = 8;
/// The same of those that were won and of those that were lost most clearly.
const CLEAR: usize = 4;

/// A run, read from its files.
pub(super) struct RunFolder {
    pub dir: PathBuf,
    /// When it was begun, and by which version.
    pub mark: Option<Mark>,
    pub report: Report,
    /// The resolved configuration, as text and as values.
    pub config_text: String,
    pub config: Table,
    /// Of the fine-tuning.
    pub sft: Vec<Step>,
    /// In their order, as far as there is anything of them.
    pub iterations: Vec<Iteration>,
    pub progress: Option<Progress>,
}

/// What one iteration left.
#[derive(Default)]
pub(super) struct Iteration {
    pub steps: Vec<Step>,
    /// What the judge made of each pair that was trained on.
    pub pairs: Vec<PairProbabilities>,
    /// The judgement of its responses.
    pub judged: Judged,
    /// The judgement of held-out answers against the first model's.
    pub against_first: Judged,
    /// Lengths of the model's held-out answers in characters, ascending.
    pub lengths: Vec<f64>,
    /// The same of the first model's.
    pub first_lengths: Vec<f64>,
    /// By prompt id, one held-out answer of each prompt against one of the first model.
    pub answers: BTreeMap<String, Answer>,
    /// Prompt ids in the order of the file.
    pub order: Vec<String>,
}

/// An answer to a held-out prompt beside the first model's.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub prompt: String,
    pub reference: Option<String>,
    pub text: String,
    /// Whether the length ended it.
    pub is_cut: bool,
    pub first_text: String,
    pub first_is_cut: bool,
    /// The judge's probability that it beats the first model's.
    pub wins: f64,
}

/// What a judge said of comparisons, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Judged {
    pub prompts: usize,
    /// Pairs of different responses.
    pub pairs: usize,
    /// Of these: equal for the judge.
    pub ties: usize,
    /// Within 0.1 of one half, ties among them.
    pub close: usize,
    /// Won by the longer response, of `unequal` that are no ties and of different length.
    pub longer_won: usize,
    pub unequal: usize,
    /// Pairs that a judge of pairs saw in both orders.
    pub both_orders: usize,
    /// Of these: another response won in the other order.
    pub order_decides: usize,
    /// Triples of responses in which each beats another.
    pub triples: usize,
    /// Of these: in a circle.
    pub circles: usize,
}

impl RunFolder {
    /// Reads the files of a run, whole or under way.
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let Some(config_text) = text(&config_in_effect(dir))? else {
            return Err(StageError::Input(format!(
                "{} is no folder of a run: it has no config.toml; give the output_dir of sppo run",
                dir.display()
            )));
        };
        let config = config_text.parse().map_err(|error| {
            let path = config_in_effect(dir);
            StageError::Input(format!("{} is no TOML: {error}", path.display()))
        })?;
        let report = match text(&dir.join("report.json"))? {
            None => Report::default(),
            Some(json) => serde_json::from_str(&json).map_err(|error| {
                let path = dir.join("report.json");
                StageError::Input(format!("{} is no report of a run: {error}", path.display()))
            })?,
        };
        let count = report.iterations.len();
        let mut iterations = Vec::new();
        // One more may be under way.
        for number in 1..=count + 1 {
            let folder = dir.join(format!("iteration-{number}"));
            if number <= count || folder.join("metrics.jsonl").is_file() {
                iterations.push(Iteration::read(&folder, number <= count)?);
            }
        }
        Ok(Self {
            dir: dir.into(),
            mark: read_mark(&dir.join("run.sppo.json"))?,
            report,
            config_text,
            config,
            sft: steps(&dir.join("sft/metrics.jsonl"))?,
            iterations,
            progress: Progress::read(dir)?,
        })
    }

    /// A value of the configuration, by its path.
    pub fn setting(&self, path: &str) -> Option<&toml::Value> {
        let (section, key) = path.split_once('.')?;
        self.config.get(section)?.get(key)
    }

    /// What Δ of a pair's better and worse response is to become in each iteration; `None` for losses
    /// without such a target.
    pub fn targets(&self) -> Option<Vec<(f64, f64)>> {
        let loss: Loss = self.setting("train.loss")?.as_str()?.parse().ok()?;
        let beta = self.beta()?;
        let all = self.iterations.iter();
        let all = all.map(|iteration| targets(loss, beta, iteration.pairs.iter().copied()));
        let all: Vec<_> = all.collect();
        let unknown = (f64::NAN, f64::NAN);
        let is_known = all.iter().any(Option::is_some);
        is_known.then(|| {
            all.into_iter()
                .map(|found| found.unwrap_or(unknown))
                .collect()
        })
    }

    /// 1/η.
    pub fn beta(&self) -> Option<f64> {
        let beta = self.setting("train.beta")?.as_float()?;
        Some(beta).filter(|beta| *beta > 0.0)
    }
}

impl Iteration {
    fn read(folder: &Path, finished: bool) -> Result<Self, StageError> {
        let mut iteration = Self {
            steps: steps(&folder.join("metrics.jsonl"))?,
            ..Self::default()
        };
        // Of a training that goes on, nothing else is sure to be whole.
        if !finished {
            return Ok(iteration);
        }
        each(&folder.join("pairs.jsonl"), |pair: PairRow| {
            iteration.pairs.push(pair.probabilities);
        })?;
        each(&folder.join("judged.jsonl"), |row: JudgedRow| {
            let count = row.responses.responses.len();
            iteration.judged.add(&row, &all_pairs(count));
        })?;
        let file = folder.join("heldout-vs-first-judged.jsonl");
        each(&file, |row: JudgedRow| iteration.held_out(row))?;
        iteration.lengths.sort_by(f64::total_cmp);
        iteration.first_lengths.sort_by(f64::total_cmp);
        Ok(iteration)
    }

    /// Counts a row of both models' answers, and keeps the first of each.
    fn held_out(&mut self, row: JudgedRow) {
        let texts = &row.responses.responses;
        let half = texts.len() / 2;
        if half == 0 {
            return;
        }
        let games: Vec<_> = (0..half).map(|i| (i, half + i)).collect();
        self.against_first.add(&row, &games);
        let length = |text: &String| text.chars().count() as f64;
        self.lengths.extend(texts[..half].iter().map(length));
        self.first_lengths.extend(texts[half..].iter().map(length));
        let is_cut = |i: usize| {
            let reasons = row.responses.finish_reasons.as_ref();
            reasons
                .and_then(|r| r.get(i))
                .is_some_and(|r| r == "length")
        };
        let answer = Answer {
            prompt: prompt_text(&row.responses.prompt),
            reference: row.responses.reference.clone(),
            text: texts[0].clone(),
            is_cut: is_cut(0),
            first_text: texts[half].clone(),
            first_is_cut: is_cut(half),
            wins: at(&row.probability, 0, half),
        };
        let id = row.responses.prompt_id;
        self.order.push(id.clone());
        self.answers.insert(id, answer);
    }
}

/// The prompts to show, by id, with why: some from all over the file, and those that the last
/// model won and lost most clearly.
pub(super) fn chosen_prompts(last: &Iteration) -> Vec<(String, &'static str)> {
    let ids = &last.order;
    let step = ids.len().div_ceil(SPACED).max(1);
    let spaced = ids.iter().step_by(step);
    let mut chosen: Vec<_> = spaced
        .map(|id| (id.clone(), "from all over the file"))
        .collect();
    let mut by_wins: Vec<(&String, f64)> = ids
        .iter()
        .filter(|id| !chosen.iter().any(|(chosen, _)| chosen == *id))
        .filter_map(|id| Some((id, last.answers.get(id)?.wins)))
        .collect();
    by_wins.sort_by(|a, b| a.1.total_cmp(&b.1));
    let won = by_wins.iter().rev().filter(|(_, wins)| *wins > 0.5);
    let lost = by_wins.iter().filter(|(_, wins)| *wins < 0.5);
    chosen.extend(
        won.take(CLEAR)
            .map(|(id, _)| ((*id).clone(), "won clearly")),
    );
    chosen.extend(
        lost.take(CLEAR)
            .map(|(id, _)| ((*id).clone(), "lost clearly")),
    );
    chosen
}

/// Every pair of `count` responses once.
fn all_pairs(count: usize) -> Vec<(usize, usize)> {
    (0..count)
        .flat_map(|i| (i + 1..count).map(move |j| (i, j)))
        .collect()
}

impl Judged {
    fn add(&mut self, row: &JudgedRow, pairs: &[(usize, usize)]) {
        let texts = &row.responses.responses;
        let wins = |i: usize, j: usize| at(&row.probability, i, j) - 0.5;
        self.prompts += 1;
        for &(i, j) in pairs.iter().filter(|(i, j)| texts[*i] != texts[*j]) {
            let margin = wins(i, j);
            let is_tie = margin.abs() < 1e-9;
            self.pairs += 1;
            self.ties += usize::from(is_tie);
            self.close += usize::from(margin.abs() < 0.1);
            let (a, b) = (texts[i].chars().count(), texts[j].chars().count());
            if !is_tie && a != b {
                self.unequal += 1;
                self.longer_won += usize::from((margin > 0.0) == (a > b));
            }
            if let Some(logits) = &row.comparison_logits {
                self.both_orders += 1;
                // Each is for the response that is named first.
                let both = at(logits, i, j) * at(logits, j, i);
                self.order_decides += usize::from(both > 0.0);
            }
        }
        if row.comparison_logits.is_none() {
            return;
        }
        let count = texts.len();
        for (i, j) in all_pairs(count) {
            for k in j + 1..count {
                let (a, b, c) = (wins(i, j), wins(j, k), wins(k, i));
                if [a, b, c].iter().any(|margin| margin.abs() < 1e-9) {
                    continue;
                }
                self.triples += 1;
                self.circles += usize::from((a > 0.0) == (b > 0.0) && (b > 0.0) == (c > 0.0));
            }
        }
    }
}

/// An entry of a square matrix; NaN where a row is too short.
fn at(matrix: &[Vec<f64>], i: usize, j: usize) -> f64 {
    let row = matrix.get(i);
    row.and_then(|row| row.get(j)).copied().unwrap_or(f64::NAN)
}

/// A prompt as a person reads it: its turns, named where there are several.
fn prompt_text(prompt: &Prompt) -> String {
    let turns = prompt.messages();
    let text = |content: &Option<String>| content.clone().unwrap_or_default();
    match turns.as_ref() {
        [turn] => text(&turn.content),
        turns => {
            let turns = turns.iter();
            let turns = turns.map(|turn| format!("{}: {}", turn.role, text(&turn.content)));
            turns.collect::<Vec<_>>().join("\n")
        }
    }
}

/// Every row of a file; none where it is not there.
fn each<T: Row>(path: &Path, mut take: impl FnMut(T)) -> Result<(), StageError> {
    if path.is_file() && path.metadata().is_ok_and(|meta| meta.len() > 0) {
        read_each_numbered(path, false, |_, row| take(row))?;
    }
    Ok(())
}

/// The steps of a metrics.jsonl; one that is being written may end in half a line.
fn steps(path: &Path) -> Result<Vec<Step>, StageError> {
    let lines = text(path)?.unwrap_or_default();
    Ok(lines.lines().filter_map(Step::parse).collect())
}

/// A file's text; `None` where it is not there.
fn text(path: &Path) -> Result<Option<String>, StageError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(FileError::new("read", path)(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_once() {
        assert_eq!(all_pairs(3), [(0, 1), (0, 2), (1, 2)]);
        assert!(all_pairs(1).is_empty());
    }

    #[test]
    fn prompts_are_spaced_then_clear() {
        let mut last = Iteration::default();
        for i in 0..40 {
            let id = format!("p{i}");
            let answer = Answer {
                prompt: String::new(),
                reference: None,
                text: String::new(),
                is_cut: false,
                first_text: String::new(),
                first_is_cut: false,
                wins: f64::from(i) / 39.0,
            };
            last.order.push(id.clone());
            last.answers.insert(id, answer);
        }
        let chosen = chosen_prompts(&last);
        let ids: Vec<&str> = chosen.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "p0", "p5", "p10", "p15", "p20", "p25", "p30", "p35", "p39", "p38", "p37", "p36",
                "p1", "p2", "p3", "p4"
            ]
        );
        assert!(chosen_prompts(&Iteration::default()).is_empty());
    }
}
