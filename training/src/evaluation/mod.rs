//! What others' evaluation programs leave behind, as the numbers that are reported: the tables of
//! the Open LLM Leaderboard from lm-evaluation-harness' results, AlpacaEval's win rates from its
//! annotations.

mod annotations;
mod error;
mod gamed;
mod leaderboard;
mod length_controlled;
mod lm_eval;
mod logistic;
mod mersenne;
mod moments;
mod tasks;
#[cfg(test)]
mod tests;
mod win_rate;

pub use annotations::{Annotations, References};
pub use error::EvaluationError;
pub use gamed::{Gamed, find_gamed};
pub use leaderboard::{Cell, GroupValue, Leaderboard, Table, leaderboard};
pub use length_controlled::{LengthControl, LengthControlled};
pub use lm_eval::{LmEvalResults, Replaced};
pub use win_rate::{WinRate, WinRateReport, win_rate_report};
