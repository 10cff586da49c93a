//! AlpacaEval's numbers from its annotations, in percent as alpaca_eval reports them.

use serde::Serialize;

use super::annotations::Annotations;
use super::gamed::Gamed;
use super::length_controlled::{LengthControl, LengthControlled, minimal, official};
use super::moments::{mean, standard_error};
use crate::data::AnnotationRow;

/// How often the model won.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WinRate {
    /// 100 · mean of (preference − 1) over the rows that have one.
    pub win_rate: f64,
    /// Of that mean, in percentage points (n − 1); none for one row.
    pub standard_error: Option<f64>,
    /// The same of preferences rounded to a win, a loss, or a tie, which counts half.
    pub discrete_win_rate: f64,
    /// Preferences above 1.5.
    pub n_wins: usize,
    /// Preferences below 1.5.
    pub n_wins_base: usize,
    /// Preferences of 1.5.
    pub n_draws: usize,
    /// Rows that have a preference.
    pub n_total: usize,
}

/// All numbers of a file of annotations.
#[derive(Clone, Debug)]
pub struct WinRateReport {
    /// Those that need no lengths.
    pub win_rate: WinRate,
    /// Rows without a preference, which count in no win rate.
    pub missing: usize,
    /// Mean length of the model's outputs in characters, where all are there.
    pub mean_length: Option<f64>,
    /// The same of the baseline's.
    pub mean_length_baseline: Option<f64>,
    /// How length was controlled for.
    pub control: LengthControl,
    /// What that gives, or why it gives nothing.
    pub length_controlled: Result<LengthControlled, String>,
}

/// Computes them; with the gamed baselines the leaderboard's length-controlled win rate, without
/// them another number of another name.
pub fn win_rate_report(annotations: &Annotations, gamed: Option<&Gamed>) -> WinRateReport {
    let rows = &annotations.rows;
    let preferences: Vec<f64> = rows.iter().filter_map(|row| row.preference).collect();
    let (control, length_controlled) = match gamed {
        Some(gamed) => (
            LengthControl::LengthControlledV1,
            official(annotations, gamed),
        ),
        None => (LengthControl::LengthControlledMinimal, minimal(annotations)),
    };
    WinRateReport {
        win_rate: win_rate(&preferences),
        missing: rows.len() - preferences.len(),
        mean_length: mean_length(rows, |row| row.length_2),
        mean_length_baseline: mean_length(rows, |row| row.length_1),
        control,
        length_controlled,
    }
}

fn win_rate(preferences: &[f64]) -> WinRate {
    let wins: Vec<f64> = preferences
        .iter()
        .map(|preference| preference - 1.0)
        .collect();
    let rounded = wins.iter().map(|win| match win - 0.5 {
        d if d > 0.0 => 1.0,
        d if d < 0.0 => 0.0,
        _ => 0.5,
    });
    let rounded: Vec<f64> = rounded.collect();
    let count = |value: f64| rounded.iter().filter(|found| **found == value).count();
    WinRate {
        win_rate: 100.0 * mean(&wins),
        standard_error: standard_error(&wins).map(|error| 100.0 * error),
        discrete_win_rate: 100.0 * mean(&rounded),
        n_wins: count(1.0),
        n_wins_base: count(0.0),
        n_draws: count(0.5),
        n_total: preferences.len(),
    }
}

fn mean_length(
    rows: &[AnnotationRow],
    length: impl Fn(&AnnotationRow) -> Option<usize>,
) -> Option<f64> {
    let lengths: Option<Vec<f64>> = rows
        .iter()
        .map(|row| length(row).map(|n| n as f64))
        .collect();
    lengths.map(|lengths| mean(&lengths))
}
