//! Two models' answers to the same prompts → win rate.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::StageError;
use super::judge::{Judging, judge_responses};
use crate::cluster::{self, lead};
use crate::config::OnBadRow;
use crate::data::{JudgedRow, ResponseRow, read_rows, rows_fingerprint, write_rows};
use crate::files::{Existing, MadeFrom};
use crate::judge::Judge;
use crate::monitor::Monitor;

/// How often one model's answers beat another's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Prompts compared.
    pub prompts: usize,
    /// Part of the prompts won, in 0..1; a tie counts one half.
    pub win_rate: f64,
    /// Standard error of `win_rate`: standard deviation (n − 1) of the prompts' means over √n.
    pub win_rate_se: f64,
    /// Win rate at equal length, in 0..1: σ(θ) of the fit p = σ(θ + φ·tanh(z)), where z is the
    /// difference of lengths over its standard deviation (AlpacaEval's form without its
    /// per-instruction term).
    pub length_controlled_win_rate: f64,
    /// Mean of the judge's probability that the model's answer is the better one.
    pub mean_preference: f64,
    /// Mean length of the model's answers in characters.
    pub mean_length: f64,
    /// Mean length of the other's answers in characters.
    pub mean_length_against: f64,
    /// Who judged, as judged rows say it: kind, model and template of the question.
    #[serde(default)]
    pub judge: Value,
    /// Which length control `length_controlled_win_rate` is.
    #[serde(default)]
    pub length_control: String,
}

/// Not AlpacaEval's, which knows how difficult each instruction is.
const LENGTH_CONTROL: &str = "logit p = phi tanh(z) + theta at z = 0, fitted on these answers";

impl Evaluation {
    /// Who judged, in one line.
    pub fn judged_by(&self) -> String {
        format!(
            "Judged by {}; length-controlled: {}.",
            self.judge, self.length_control
        )
    }
}

/// The files of one comparison.
#[derive(Clone, Copy, Debug)]
pub struct Comparison<'a> {
    /// Answers of the model that is measured.
    pub answers: &'a Path,
    /// Answers of the model it is compared with.
    pub against: &'a Path,
    /// Receives both answers of each prompt; `judged` their judgement.
    pub both: &'a Path,
    /// Receives the judgement of `both`.
    pub judged: &'a Path,
    /// What becomes of rows that the judge cannot judge.
    pub on_bad_row: OnBadRow,
    /// Leaves out prompts that only one of the models answers; otherwise they are refused.
    pub skip_unanswered: bool,
    /// What becomes of outputs that were made from something else.
    pub existing: Existing<'a>,
}

/// Judges the answers of `files.answers` against those of `files.against`, sample by sample.
pub fn compare_answers(
    files: Comparison<'_>,
    judge: &mut dyn Judge,
    monitor: &dyn Monitor,
) -> Result<Evaluation, StageError> {
    let own = read_rows::<ResponseRow>(files.answers)?;
    let other = read_rows::<ResponseRow>(files.against)?;
    let made_from = MadeFrom::new("side by side")
        .input("answers", files.answers, rows_fingerprint(&own))
        .input("against", files.against, rows_fingerprint(&other));
    let other: HashMap<&str, &ResponseRow> = other
        .iter()
        .map(|row| (row.prompt_id.as_str(), row))
        .collect();
    let mut rows = Vec::with_capacity(own.len());
    for row in &own {
        let Some(against) = other.get(row.prompt_id.as_str()) else {
            if files.skip_unanswered {
                continue;
            }
            return Err(StageError::Input(format!(
                "{} has no answer to prompt_id {}, which {} answers",
                files.against.display(),
                row.prompt_id,
                files.answers.display()
            )));
        };
        rows.push(side_by_side(row, against));
    }
    let alone = own.len() + other.len() - 2 * rows.len();
    if alone > 0 {
        tracing::warn!("{alone} prompts are answered by one of the models only and are left out");
    }
    if rows.is_empty() {
        return Err(StageError::Input(format!(
            "{} and {} answer no prompt in common",
            files.answers.display(),
            files.against.display()
        )));
    }
    lead(cluster::world(), || {
        write_rows(files.both, &rows, made_from, files.existing)
    })?;
    let job = Judging {
        responses: files.both,
        out: files.judged,
        part: None,
        label: "judging held-out answers",
        on_bad_row: files.on_bad_row,
        existing: files.existing,
    };
    judge_responses(job, judge, monitor)?;
    let judged = read_rows::<JudgedRow>(files.judged)?;
    Ok(Evaluation {
        judge: judge.description(),
        ..summarise(&judged.iter().map(games).collect::<Vec<_>>())
    })
}

/// One prompt's answers of both models: first all of the one, then all of the other.
fn side_by_side(own: &ResponseRow, other: &ResponseRow) -> ResponseRow {
    let join =
        |a: &Option<Vec<String>>, b: &Option<Vec<String>>| Some([a.clone()?, b.clone()?].concat());
    ResponseRow {
        prompt_id: own.prompt_id.clone(),
        prompt: own.prompt.clone(),
        reference: own.reference.clone(),
        responses: [own.responses.clone(), other.responses.clone()].concat(),
        finish_reasons: join(&own.finish_reasons, &other.finish_reasons),
        tokens: None,
        logprobs: None,
        prompt_ids: None,
        response_ids: None,
    }
}

/// One answer against one answer.
#[derive(Clone, Copy, Debug)]
struct Game {
    preference: f64,
    length: f64,
    length_against: f64,
}

fn games(row: &JudgedRow) -> Vec<Game> {
    let answers = &row.responses.responses;
    let half = answers.len() / 2;
    (0..half)
        .map(|i| Game {
            preference: row.probability[i][half + i],
            length: answers[i].chars().count() as f64,
            length_against: answers[half + i].chars().count() as f64,
        })
        .collect()
}

/// Samples of one prompt are not independent, so the error is that of the prompts' means.
fn summarise(prompts: &[Vec<Game>]) -> Evaluation {
    let count = prompts.len() as f64;
    let games: Vec<Game> = prompts.iter().flatten().copied().collect();
    let mean =
        |value: &dyn Fn(&Game) -> f64| games.iter().map(value).sum::<f64>() / games.len() as f64;
    // Scores that differ by rounding only are a tie.
    let win = |game: &Game| match game.preference - 0.5 {
        d if d.abs() < 1e-9 => 0.5,
        d if d > 0.0 => 1.0,
        _ => 0.0,
    };
    let win_rate = mean(&win);
    let squares = prompts.iter().map(|games| {
        let wins: f64 = games.iter().map(win).sum();
        (wins / games.len() as f64 - win_rate).powi(2)
    });
    let deviation = (squares.sum::<f64>() / (count - 1.0).max(1.0)).sqrt();
    Evaluation {
        prompts: prompts.len(),
        win_rate,
        win_rate_se: deviation / count.sqrt(),
        length_controlled_win_rate: length_controlled(&games, win),
        mean_preference: mean(&|g| g.preference),
        mean_length: mean(&|g| g.length),
        mean_length_against: mean(&|g| g.length_against),
        judge: Value::Null,
        length_control: LENGTH_CONTROL.into(),
    }
}

/// σ(θ) of the logistic fit of wins by tanh(z), by Newton's method with a light ridge on φ that
/// keeps it finite where length decides every game.
fn length_controlled(games: &[Game], win: impl Fn(&Game) -> f64) -> f64 {
    let count = games.len() as f64;
    let gaps: Vec<f64> = games.iter().map(|g| g.length - g.length_against).collect();
    let mean = gaps.iter().sum::<f64>() / count;
    let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let scale = variance.sqrt().max(1e-9);
    let (mut theta, mut phi) = (0.0f64, 0.0f64);
    const RIDGE: f64 = 1e-2;
    for _ in 0..50 {
        let mut gradient = [RIDGE * theta, RIDGE * phi];
        let mut hessian = [[RIDGE, 0.0], [0.0, RIDGE]];
        for (game, gap) in games.iter().zip(&gaps) {
            let x = (gap / scale).tanh();
            let p = 1.0 / (1.0 + (-(theta + phi * x)).exp());
            let (error, weight) = (p - win(game), p * (1.0 - p));
            gradient[0] += error;
            gradient[1] += error * x;
            hessian[0][0] += weight;
            hessian[0][1] += weight * x;
            hessian[1][1] += weight * x * x;
        }
        let determinant = hessian[0][0] * hessian[1][1] - hessian[0][1] * hessian[0][1];
        let step_theta = (hessian[1][1] * gradient[0] - hessian[0][1] * gradient[1]) / determinant;
        let step_phi = (hessian[0][0] * gradient[1] - hessian[0][1] * gradient[0]) / determinant;
        // Long steps overshoot where the fit saturates.
        theta -= step_theta.clamp(-2.0, 2.0);
        phi -= step_phi.clamp(-2.0, 2.0);
    }
    1.0 / (1.0 + (-theta).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn game(preference: f64, length: f64, length_against: f64) -> Game {
        Game {
            preference,
            length,
            length_against,
        }
    }

    /// One game a prompt.
    fn alone(games: &[Game]) -> Vec<Vec<Game>> {
        games.iter().map(|game| vec![*game]).collect()
    }

    #[test]
    fn more_samples_of_a_prompt_do_not_shrink_the_error() {
        let (won, lost) = (game(0.9, 5.0, 5.0), game(0.1, 5.0, 5.0));
        let one = summarise(&[vec![won], vec![lost], vec![won]]);
        let three = summarise(&[vec![won; 3], vec![lost; 3], vec![won; 3]]);
        assert_eq!(one.win_rate, three.win_rate);
        assert!((one.win_rate_se - three.win_rate_se).abs() < 1e-12);
    }

    #[test]
    fn ties_count_half_and_the_error_is_that_of_a_mean() {
        let games = [
            game(0.9, 10.0, 10.0),
            game(0.5, 10.0, 10.0),
            game(0.2, 10.0, 10.0),
            game(0.8, 10.0, 10.0),
        ];
        let found = summarise(&alone(&games));
        assert_eq!(found.win_rate, 0.625);
        let deviation =
            (((1.0f64 - 0.625).powi(2) * 2.0 + 0.125f64.powi(2) + 0.625f64.powi(2)) / 3.0).sqrt();
        assert!((found.win_rate_se - deviation / 2.0).abs() < 1e-12);
        assert_eq!(found.mean_length, 10.0);
    }

    #[test]
    fn length_control_takes_away_what_length_explains() {
        // The longer answer wins four times in five; the model's is more often the longer one.
        let mut games = vec![game(0.9, 30.0, 10.0); 24];
        games.extend(vec![game(0.1, 30.0, 10.0); 6]);
        games.extend(vec![game(0.9, 10.0, 30.0); 2]);
        games.extend(vec![game(0.1, 10.0, 30.0); 8]);
        let found = summarise(&alone(&games));
        assert_eq!(found.win_rate, 0.65);
        assert!(
            (found.length_controlled_win_rate - 0.5).abs() < 0.01,
            "{found:?}"
        );
        let even = vec![
            game(0.9, 10.0, 10.0),
            game(0.9, 10.0, 10.0),
            game(0.1, 10.0, 10.0),
        ];
        let found = summarise(&alone(&even));
        assert!((found.length_controlled_win_rate - 2.0 / 3.0).abs() < 0.01);
    }
}
