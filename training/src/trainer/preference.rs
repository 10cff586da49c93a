//! Preference pairs as a training objective.

use std::ops::Range;

use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use super::metrics::{PairMetrics, TokenMetrics};
use super::objective::{
    Cut, Objective, WindowReport, backward_parts, lost_of, numbers, of_all_parts, of_numbers, width,
};
use crate::cluster::advance;
use crate::config::Loss;
use crate::cost::Batch;
use crate::learner::{Learner, TokenSums};
use crate::loss::{LossOutput, PairLogps};
use crate::tokenise::{PreferencePair, TokenisedSequence, Truncation};

/// Pairs with their reference log-probabilities.
pub struct PreferenceObjective {
    pairs: Vec<PreferencePair>,
    /// Of chosen and rejected under the reference model, one entry a pair.
    reference: Vec<[f64; 2]>,
    truncations: Vec<Truncation>,
    held_out: Vec<PreferencePair>,
    held_out_reference: Vec<[f64; 2]>,
    loss: Loss,
    beta: f64,
    token_metrics: bool,
}

impl PreferenceObjective {
    /// Trains on `pairs`; `reference` holds the reference log-probabilities of chosen and
    /// rejected, in the same order.
    pub fn new(
        pairs: Vec<PreferencePair>,
        reference: Vec<[f64; 2]>,
        loss: Loss,
        beta: f64,
    ) -> Self {
        Self {
            pairs,
            reference,
            truncations: Vec::new(),
            held_out: Vec::new(),
            held_out_reference: Vec::new(),
            loss,
            beta,
            token_metrics: false,
        }
    }

    /// Asks for what else the logits tell.
    pub fn with_token_metrics(mut self, wanted: bool) -> Self {
        self.token_metrics = wanted;
        self
    }

    /// Adds what the length limits took from each pair.
    pub fn with_truncations(mut self, truncations: Vec<Truncation>) -> Self {
        self.truncations = truncations;
        self
    }

    /// Adds pairs to evaluate on.
    pub fn with_held_out(mut self, pairs: Vec<PreferencePair>, reference: Vec<[f64; 2]>) -> Self {
        self.held_out = pairs;
        self.held_out_reference = reference;
        self
    }

    /// `rows` dealt out to parts: places in `rows`.
    fn parts(pairs: &[PreferencePair], rows: &[usize], cut: &Cut) -> Vec<Vec<usize>> {
        let batch = |part: Range<usize>| Batch::of(&Self::sequences(pairs, &rows[part]));
        cut.deal(rows.len(), batch)
    }

    /// Log-probabilities of `rows`, computed without gradients, each part by its rank. Collective.
    fn logps<B: TrainingOps>(
        learner: &Learner<B>,
        pairs: &[PreferencePair],
        rows: &[usize],
        parts: &[Vec<usize>],
    ) -> Result<Vec<f64>, TrainError> {
        let world = learner.world();
        let mut own = Vec::new();
        for part in parts.iter().skip(world.rank()).step_by(world.size()) {
            let rows: Vec<usize> = part.iter().map(|&at| rows[at]).collect();
            own.extend(learner.logps(&Self::sequences(pairs, &rows))?);
            advance();
        }
        Ok(of_all_parts(world, parts, &own, 2))
    }

    /// The sequences of the rows, pair after pair.
    fn sequences<'a>(pairs: &'a [PreferencePair], rows: &[usize]) -> Vec<&'a TokenisedSequence> {
        let sides = |&i: &usize| pairs[i].pair.sides();
        rows.iter().flat_map(sides).collect()
    }

    /// The batch that the loss sees, given the policy's log-probabilities of `sequences`.
    fn batch(
        pairs: &[PreferencePair],
        reference: &[[f64; 2]],
        rows: &[usize],
        policy: &[f64],
    ) -> PairLogps {
        let side = |number: usize| policy.iter().skip(number).step_by(2).copied().collect();
        PairLogps {
            policy_chosen: side(0),
            policy_rejected: side(1),
            reference_chosen: rows.iter().map(|&i| reference[i][0]).collect(),
            reference_rejected: rows.iter().map(|&i| reference[i][1]).collect(),
            probabilities: rows.iter().map(|&i| pairs[i].pair.probabilities).collect(),
        }
    }

    /// Of a window, given the sums of its sequences, pair after pair; none where there are none.
    fn token_metrics(&self, window: &[usize], sums: &[TokenSums]) -> Option<TokenMetrics> {
        let sequences = Self::sequences(&self.pairs, window);
        let of_side = |side: usize| {
            let tokens = sequences.iter().skip(side).step_by(2);
            let sums = sums.iter().skip(side).step_by(2);
            (
                sums.copied().sum(),
                tokens.map(|s| s.response().len()).sum(),
            )
        };
        (!sums.is_empty()).then(|| TokenMetrics::of_pairs(of_side(0), of_side(1)))
    }

    fn bad_rows(&self, window: &[usize], logps: &PairLogps, output: &LossOutput) -> Vec<String> {
        if output.mean.is_finite() {
            return Vec::new();
        }
        let bad = |at: usize| {
            let loss = output.losses.get(at).copied().unwrap_or(f64::NAN);
            !(loss + logps.policy_chosen[at] + logps.policy_rejected[at]).is_finite()
        };
        let rows = window.iter().enumerate();
        rows.filter(|(at, _)| bad(*at))
            .map(|(_, &i)| self.pairs[i].name.clone())
            .collect()
    }
}

/// Chosen and rejected by turns, scaled.
fn by_pair(chosen: &[f64], rejected: &[f64], scale: f64) -> Vec<f64> {
    let pairs = chosen.iter().zip(rejected);
    pairs.flat_map(|(c, r)| [c * scale, r * scale]).collect()
}

impl<B: TrainingOps> Objective<B> for PreferenceObjective {
    fn rows(&self) -> usize {
        self.pairs.len()
    }

    fn row_name(&self, index: usize) -> String {
        self.pairs[index].name.clone()
    }

    fn tokens(&self, rows: &[usize]) -> usize {
        let sequences = Self::sequences(&self.pairs, rows);
        sequences.iter().map(|s| s.ids.len()).sum()
    }

    fn accumulate(
        &mut self,
        learner: &mut Learner<B>,
        window: &[usize],
        cut: &Cut,
    ) -> Result<WindowReport, TrainError> {
        let (loss, beta) = (self.loss, self.beta);
        let parts = Self::parts(&self.pairs, window, cut);
        let batch = |rows: &[usize], policy: &[f64]| {
            Self::batch(&self.pairs, &self.reference, rows, policy)
        };
        // A loss that couples rows needs all log-probabilities before the first gradient.
        let whole = match loss.couples_rows() && parts.len() > 1 {
            true => {
                let policy = Self::logps(learner, &self.pairs, window, &parts)?;
                Some(batch(window, &policy).loss(loss, beta))
            }
            false => None,
        };
        let measure = self.token_metrics;
        let found = backward_parts(learner, &parts, 2 * width(measure), |learner, part| {
            let rows: Vec<usize> = part.iter().map(|&at| window[at]).collect();
            let sequences = Self::sequences(&self.pairs, &rows);
            let share = rows.len() as f64 / window.len() as f64;
            let weights = |policy: &[f64]| match &whole {
                Some(output) => {
                    let of_part =
                        |grad: &[f64]| part.iter().map(|&at| grad[at]).collect::<Vec<_>>();
                    let chosen = of_part(&output.grad_chosen);
                    by_pair(&chosen, &of_part(&output.grad_rejected), 1.0)
                }
                None => {
                    let output = batch(&rows, policy).loss(loss, beta);
                    by_pair(&output.grad_chosen, &output.grad_rejected, share)
                }
            };
            let found = learner.backward_with_tokens(&sequences, weights, measure);
            found.map(numbers)
        })?;
        let (policy, sums) = of_numbers(&found, measure);
        let all = batch(window, &policy);
        let output = all.loss(loss, beta);
        Ok(WindowReport {
            loss: output.mean,
            tokens: Objective::<B>::tokens(self, window),
            token_metrics: self.token_metrics(window, &sums),
            truncation: lost_of(&self.truncations, window),
            bad_rows: self.bad_rows(window, &all, &output),
            pairs: Some(PairMetrics::new(&all, &output, loss, beta)),
        })
    }

    fn evaluate(
        &mut self,
        learner: &Learner<B>,
        cut: &Cut,
    ) -> Result<Option<PairMetrics>, TrainError> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let rows: Vec<usize> = (0..self.held_out.len()).collect();
        let parts = Self::parts(&self.held_out, &rows, cut);
        let policy = Self::logps(learner, &self.held_out, &rows, &parts)?;
        let all = Self::batch(&self.held_out, &self.held_out_reference, &rows, &policy);
        let output = all.loss(self.loss, self.beta);
        Ok(Some(PairMetrics::new(&all, &output, self.loss, self.beta)))
    }
}
