//! Supervised fine-tuning as a training objective: cross-entropy of the response tokens.

use std::ops::Range;

use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use super::metrics::{PairMetrics, TokenMetrics};
use super::objective::{
    Cut, Objective, WindowReport, backward_parts, lost_of, numbers, of_numbers, width,
};
use crate::cost::Batch;
use crate::learner::Learner;
use crate::tokenise::{TokenisedSequence, Truncation};

/// Examples whose responses are to become likely.
pub struct SupervisedObjective {
    examples: Vec<TokenisedSequence>,
    truncations: Vec<Truncation>,
    token_metrics: bool,
}

impl SupervisedObjective {
    /// Trains on `examples`.
    pub fn new(examples: Vec<TokenisedSequence>) -> Self {
        Self {
            examples,
            truncations: Vec::new(),
            token_metrics: false,
        }
    }

    /// Asks for what else the logits tell.
    pub fn with_token_metrics(mut self, wanted: bool) -> Self {
        self.token_metrics = wanted;
        self
    }

    /// Adds what the length limits took from each example.
    pub fn with_truncations(mut self, truncations: Vec<Truncation>) -> Self {
        self.truncations = truncations;
        self
    }
}

impl<B: TrainingOps> Objective<B> for SupervisedObjective {
    fn rows(&self) -> usize {
        self.examples.len()
    }

    fn row_name(&self, index: usize) -> String {
        (index + 1).to_string()
    }

    fn tokens(&self, rows: &[usize]) -> usize {
        rows.iter().map(|&i| self.examples[i].ids.len()).sum()
    }

    /// The mean runs over the response tokens of the window, as in transformers.
    fn accumulate(
        &mut self,
        learner: &mut Learner<B>,
        window: &[usize],
        cut: &Cut,
    ) -> Result<WindowReport, TrainError> {
        let responses = |rows: &[usize]| -> usize {
            let lengths = rows.iter().map(|&i| self.examples[i].response().len());
            lengths.sum()
        };
        let count = responses(window);
        let share = 1.0 / count as f64;
        let mut report = WindowReport {
            truncation: lost_of(&self.truncations, window),
            ..WindowReport::default()
        };
        let sequences =
            |rows: &[usize]| rows.iter().map(|&i| &self.examples[i]).collect::<Vec<_>>();
        let batch = |part: Range<usize>| Batch::of(&sequences(&window[part]));
        let parts = cut.deal(window.len(), batch);
        let measure = self.token_metrics;
        let found = backward_parts(learner, &parts, width(measure), |learner, part| {
            let rows: Vec<usize> = part.iter().map(|&at| window[at]).collect();
            let weights = |logps: &[f64]| vec![-share; logps.len()];
            let found = learner.backward_with_tokens(&sequences(&rows), weights, measure);
            found.map(numbers)
        })?;
        let (logps, sums) = of_numbers(&found, measure);
        report.tokens = Objective::<B>::tokens(self, window);
        report.token_metrics =
            measure.then(|| TokenMetrics::of_examples(sums.into_iter().sum(), count));
        report.loss = -logps.iter().sum::<f64>() * share;
        let bad = window.iter().zip(&logps);
        let bad = bad.filter(|(_, logp)| !logp.is_finite());
        report.bad_rows = bad.map(|(i, _)| (i + 1).to_string()).collect();
        Ok(report)
    }

    fn evaluate(
        &mut self,
        _learner: &Learner<B>,
        _cut: &Cut,
    ) -> Result<Option<PairMetrics>, TrainError> {
        Ok(None)
    }
}
