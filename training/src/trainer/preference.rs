//! Preference pairs as a training objective.

use std::ops::Range;

use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use super::metrics::PairMetrics;
use super::objective::{Cut, Objective, WindowReport, lost_of};
use crate::config::Loss;
use crate::cost::Batch;
use crate::learner::Learner;
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
        }
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

    /// `rows` cut into batches.
    fn parts(pairs: &[PreferencePair], rows: &[usize], cut: &Cut) -> Vec<Range<usize>> {
        let batch = |part: Range<usize>| Batch::of(&Self::sequences(pairs, &rows[part]));
        cut.parts(rows.len(), batch)
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

    fn accumulate(
        &mut self,
        learner: &mut Learner<B>,
        window: &[usize],
        cut: &Cut,
    ) -> Result<WindowReport, TrainError> {
        let (loss, beta) = (self.loss, self.beta);
        let parts = Self::parts(&self.pairs, window, cut);
        // A loss that couples rows needs all log-probabilities before the first gradient.
        let whole = match loss.couples_rows() && parts.len() > 1 {
            true => {
                let mut all = PairLogps::default();
                for part in &parts {
                    let rows = &window[part.clone()];
                    let policy = learner.logps(&Self::sequences(&self.pairs, rows))?;
                    all.extend(Self::batch(&self.pairs, &self.reference, rows, &policy));
                }
                Some(all.loss(loss, beta))
            }
            false => None,
        };
        let mut all = PairLogps::default();
        let mut tokens = 0;
        for part in parts {
            let rows = &window[part.clone()];
            let sequences = Self::sequences(&self.pairs, rows);
            tokens += sequences.iter().map(|s| s.ids.len()).sum::<usize>();
            let share = rows.len() as f64 / window.len() as f64;
            let policy = learner.backward(&sequences, |policy| match &whole {
                Some(output) => {
                    let chosen = &output.grad_chosen[part.clone()];
                    by_pair(chosen, &output.grad_rejected[part], 1.0)
                }
                None => {
                    let batch = Self::batch(&self.pairs, &self.reference, rows, policy);
                    let output = batch.loss(loss, beta);
                    by_pair(&output.grad_chosen, &output.grad_rejected, share)
                }
            })?;
            all.extend(Self::batch(&self.pairs, &self.reference, rows, &policy));
        }
        let output = all.loss(loss, beta);
        Ok(WindowReport {
            loss: output.mean,
            tokens,
            truncation: lost_of(&self.truncations, window),
            bad_rows: self.bad_rows(window, &all, &output),
            pairs: Some(PairMetrics::new(&all, &output, beta)),
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
        let mut all = PairLogps::default();
        for part in Self::parts(&self.held_out, &rows, cut) {
            let rows = &rows[part];
            let policy = learner.logps(&Self::sequences(&self.held_out, rows))?;
            let reference = &self.held_out_reference;
            all.extend(Self::batch(&self.held_out, reference, rows, &policy));
        }
        let output = all.loss(self.loss, self.beta);
        Ok(Some(PairMetrics::new(&all, &output, self.beta)))
    }
}
