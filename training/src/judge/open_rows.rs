//! Rows whose comparisons are under way, handed in whole and in order.

use std::collections::VecDeque;

use super::{Comparisons, Estimate, JudgeError, JudgeSession};
use crate::data::ResponseRow;

/// Rows from the first that is not whole.
#[derive(Default)]
pub(super) struct OpenRows {
    first: usize,
    rows: VecDeque<Open>,
}

struct Open {
    /// Of a row that is to be judged.
    comparisons: Option<Comparisons>,
    logits: Vec<f64>,
    missing: usize,
}

impl OpenRows {
    /// Opens the next row; gives its number. One without comparisons is passed over.
    pub fn open(&mut self, comparisons: Option<Comparisons>) -> usize {
        let count = comparisons.as_ref().map_or(0, |c| c.pairs().len());
        self.rows.push_back(Open {
            comparisons,
            logits: vec![0.0; count],
            missing: count,
        });
        self.first + self.rows.len() - 1
    }

    /// The logit of one comparison of a row that has comparisons.
    pub fn set(&mut self, row: usize, pair: usize, logit: f64) {
        let row = &mut self.rows[row - self.first];
        row.logits[pair] = logit;
        row.missing -= 1;
    }

    /// Hands in every row that is whole and has none before it that is not.
    pub fn hand_in(
        &mut self,
        rows: &[&ResponseRow],
        estimate: &Estimate,
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError> {
        while self.rows.front().is_some_and(|row| row.missing == 0)
            && let Some(done) = self.rows.pop_front()
        {
            if let Some(comparisons) = done.comparisons {
                let matrix = comparisons.matrix(&done.logits);
                let judgement = estimate
                    .from_comparisons(matrix)
                    .map_err(|error| JudgeError::row(rows[self.first], error.to_string()))?;
                session.hand_in(judgement)?;
            }
            self.first += 1;
        }
        Ok(())
    }
}
