//! AlpacaEval 2's length-controlled win rate (arXiv 2404.04475), as alpaca_eval 0.6.6 computes it.
//!
//! The judge's preference is fitted by tanh of the difference of lengths over its standard
//! deviation, the instruction's difficulty, and which model it is; the win rate is the mean of what
//! the fit says at no difference of lengths. Two baselines that were told to be brief or long take
//! part with a tenth of a row's weight each, so that the coefficient of length is not the model's own.

use serde::Serialize;

use super::annotations::Annotations;
use super::gamed::Gamed;
use super::logistic::{Observation, dot, fit};
use super::moments::{mean, standard_error};
use crate::preference::sigmoid;

/// Parts that the rows are dealt to for cross-validation.
const FOLDS: usize = 5;
/// Weight of a row of the gamed baselines: 0.2, halved as there are two.
const GAMED_WEIGHT: f64 = 0.2 / 2.0;

/// How length was controlled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthControl {
    /// The leaderboard's: with the gamed baselines and the difficulty of `df_gamed.csv`.
    LengthControlledV1,
    /// alpaca_eval's formula of that name, of lengths alone: not the leaderboard's number.
    LengthControlledMinimal,
}

/// What a fit says at equal lengths.
#[derive(Clone, Debug, PartialEq)]
pub struct LengthControlled {
    /// In percent.
    pub win_rate: f64,
    /// Of the mean over instructions, in percentage points; none for one row.
    pub standard_error: Option<f64>,
    /// Of tanh(z), of the difficulty where it is used, of the model.
    pub weights: Vec<f64>,
    /// Inverse strength of the penalty that cross-validation chose; none where nothing was fitted.
    pub c: Option<f64>,
}

/// The leaderboard's number, or why there is none.
pub(super) fn official(
    annotations: &Annotations,
    gamed: &Gamed,
) -> Result<LengthControlled, String> {
    if annotations.is_baseline() {
        return Ok(of_baseline(annotations, 3));
    }
    let lengths = lengths(annotations)?;
    let difficulties = difficulties(annotations, gamed)?;
    let mut rows: Vec<Observation<3>> = gamed.observations(GAMED_WEIGHT);
    let own = annotations.rows.iter().zip(&lengths).zip(&difficulties);
    rows.extend(own.filter_map(|((row, length), difficulty)| {
        Some(Observation {
            x: [length.tanh(), *difficulty, 1.0],
            probability: row.preference? - 1.0,
            weight: 1.0,
        })
    }));
    let (weights, c) = cross_validated(&rows)?;
    let at_no_difference = |difficulty: &f64| sigmoid(dot(&weights, &[0.0, *difficulty, 1.0]));
    let predicted: Vec<f64> = difficulties.iter().map(at_no_difference).collect();
    Ok(summary(&predicted, weights.to_vec(), c))
}

/// The number of alpaca_eval's `length_controlled_minimal`, or why there is none.
pub(super) fn minimal(annotations: &Annotations) -> Result<LengthControlled, String> {
    if annotations.is_baseline() {
        return Ok(of_baseline(annotations, 2));
    }
    let lengths = lengths(annotations)?;
    let own = annotations.rows.iter().zip(&lengths);
    let rows: Vec<Observation<2>> = own
        .filter_map(|(row, length)| {
            Some(Observation {
                x: [length.tanh(), 1.0],
                probability: row.preference? - 1.0,
                weight: 1.0,
            })
        })
        .collect();
    let (weights, c) = cross_validated(&rows)?;
    let predicted = vec![sigmoid(weights[1]); annotations.rows.len()];
    Ok(summary(&predicted, weights.to_vec(), c))
}

fn summary(predicted: &[f64], weights: Vec<f64>, c: f64) -> LengthControlled {
    LengthControlled {
        win_rate: 100.0 * mean(predicted),
        standard_error: standard_error(predicted).map(|error| 100.0 * error),
        weights,
        c: Some(c),
    }
}

/// Against itself a model wins half, by construction.
fn of_baseline(annotations: &Annotations, columns: usize) -> LengthControlled {
    LengthControlled {
        win_rate: 50.0,
        standard_error: (annotations.rows.len() > 1).then_some(0.0),
        weights: vec![0.0; columns],
        c: None,
    }
}

/// The differences of lengths over their standard deviation, of all rows.
fn lengths(annotations: &Annotations) -> Result<Vec<f64>, String> {
    let mut differences = Vec::with_capacity(annotations.rows.len());
    for (place, row) in annotations.rows.iter().enumerate() {
        let missing = |key: &str, what: &str| {
            format!(
                "row {} has no `{key}`{what}, and its length is needed",
                place + 1
            )
        };
        let first = row.length_1.ok_or_else(|| {
            missing(
                "output_1",
                " (--reference FILE gives the reference outputs)",
            )
        })?;
        let second = row.length_2.ok_or_else(|| missing("output_2", ""))?;
        differences.push(first as f64 - second as f64);
    }
    let Some(error) = standard_error(&differences) else {
        return Err("one row has no spread of lengths".into());
    };
    let deviation = error * (differences.len() as f64).sqrt();
    if deviation == 0.0 {
        return Err(
            "all differences of lengths are the same, so nothing can be told of them".into(),
        );
    }
    Ok(differences.iter().map(|d| d / deviation).collect())
}

/// The difficulty of each row's instruction, which is found by its number.
fn difficulties(annotations: &Annotations, gamed: &Gamed) -> Result<Vec<f64>, String> {
    let rows = annotations.rows.iter().enumerate();
    rows.map(|(place, row)| {
        let number = row.index.unwrap_or(place as u64);
        gamed.difficulty(number).ok_or_else(|| {
            format!(
                "row {} is instruction number {number}, and {} has the difficulty of {}: the rows must be AlpacaEval's instructions in their order",
                place + 1,
                gamed.path.display(),
                gamed.instructions()
            )
        })
    })
    .collect()
}

/// Weights at the penalty that cross-validation chooses.
fn cross_validated<const D: usize>(rows: &[Observation<D>]) -> Result<([f64; D], f64), String> {
    if rows.len() < FOLDS {
        return Err(format!(
            "{} judged rows are fewer than the {FOLDS} parts of the cross-validation",
            rows.len()
        ));
    }
    // scikit-learn's GroupKFold deals groups of equal size from the last to the first.
    let fold = |place: usize| (rows.len() - 1 - place) % FOLDS;
    let mut losses = [0.0; STRENGTHS];
    for part in 0..FOLDS {
        let numbered = || rows.iter().enumerate();
        let training: Vec<Observation<D>> = numbered()
            .filter(|(place, _)| fold(*place) != part)
            .map(|(_, row)| *row)
            .collect();
        let held_out: Vec<&Observation<D>> = numbered()
            .filter(|(place, _)| fold(*place) == part)
            .map(|(_, row)| row)
            .collect();
        for (place, c) in strengths().into_iter().enumerate() {
            losses[place] += log_loss(&held_out, &fit(&training, c, SEEDS[place]));
        }
    }
    let mut best = 0;
    for (place, loss) in losses.iter().enumerate() {
        if *loss < losses[best] {
            best = place;
        }
    }
    let c = strengths()[best];
    Ok((fit(rows, c, SEEDS[0]), c))
}

const STRENGTHS: usize = 10;

/// What scikit-learn draws from alpaca_eval's random state 123, a seed for each penalty of a part,
/// and the first one again for all rows.
const SEEDS: [u32; STRENGTHS] = [
    843828734, 914636141, 1228959102, 1840268610, 974319580, 819844194, 220395238, 941243409,
    942612051, 2109339754,
];

/// Ten values from 1e-4 to 1e4, evenly spaced in their logarithm.
fn strengths() -> [f64; STRENGTHS] {
    std::array::from_fn(|i| 10f64.powf(-4.0 + 8.0 * i as f64 / (STRENGTHS - 1) as f64))
}

/// The plain mean of each row's weight times its loss.
fn log_loss<const D: usize>(rows: &[&Observation<D>], weights: &[f64; D]) -> f64 {
    const LEAST: f64 = 1e-15;
    let loss = |row: &&Observation<D>| {
        let q = sigmoid(dot(weights, &row.x)).clamp(LEAST, 1.0 - LEAST);
        -row.weight * (row.probability * q.ln() + (1.0 - row.probability) * (1.0 - q).ln())
    };
    mean(&rows.iter().map(loss).collect::<Vec<_>>())
}
