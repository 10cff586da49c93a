//! What a trainer maximises.

use std::ops::Range;

use sppo_model::ops::TrainingOps;

use super::error::TrainError;
use super::metrics::PairMetrics;
use crate::cost::Batch;
use crate::cost::memory::Training;
use crate::learner::Learner;
use crate::tokenise::Truncation;

/// What the rows of one optimizer step came to.
#[derive(Clone, Debug, Default)]
pub struct WindowReport {
    /// Mean over the rows of the step.
    pub loss: f64,
    /// Tokens of prompts and responses, no padding.
    pub tokens: usize,
    /// None where the rows are not pairs.
    pub pairs: Option<PairMetrics>,
    /// What the length limits took from its rows.
    pub truncation: Truncation,
    /// Names of rows whose loss is not finite.
    pub bad_rows: Vec<String>,
}

/// How rows are cut into batches that go through the model together.
#[derive(Clone, Debug)]
pub struct Cut {
    /// Most rows of a batch.
    pub batch_size: usize,
    /// A bound on the memory, beside that.
    pub memory_budget: Option<MemoryBudget>,
}

/// A bound on a training's memory.
#[derive(Clone, Debug)]
pub struct MemoryBudget {
    /// What the memory is reckoned for.
    pub training: Training,
    /// Highest peak that is allowed.
    pub bytes: u64,
}

impl MemoryBudget {
    /// Whether a batch's training stays within the bound.
    pub fn holds(&self, batch: &Batch) -> bool {
        self.training.memory(batch).peak <= self.bytes
    }
}

impl Cut {
    /// At most `batch_size` rows at a time.
    pub fn rows(batch_size: usize) -> Self {
        Self {
            batch_size,
            memory_budget: None,
        }
    }

    /// Cuts `count` rows in their order; `batch` tells what a range of them comes to. A row that
    /// does not fit by itself goes by itself.
    pub fn parts(&self, count: usize, batch: impl Fn(Range<usize>) -> Batch) -> Vec<Range<usize>> {
        let mut parts = Vec::new();
        let mut start = 0;
        while start < count {
            let most = (start + self.batch_size).min(count);
            let fits = |end: &usize| {
                let memory_budget = self.memory_budget.as_ref();
                memory_budget.is_none_or(|memory_budget| memory_budget.holds(&batch(start..*end)))
            };
            let end = (start + 2..=most).take_while(fits).last();
            let end = end.unwrap_or(start + 1);
            parts.push(start..end);
            start = end;
        }
        parts
    }
}

/// Rows and the loss they are trained with.
pub trait Objective<B: TrainingOps> {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// A row's name for messages.
    fn row_name(&self, index: usize) -> String;

    /// Adds the gradient of the mean loss over the rows `window`, part after part; the sum does not
    /// depend on how the window is cut.
    fn accumulate(
        &mut self,
        learner: &mut Learner<B>,
        window: &[usize],
        cut: &Cut,
    ) -> Result<WindowReport, TrainError>;

    /// The loss on held-out rows, where the objective has some.
    fn evaluate(
        &mut self,
        learner: &Learner<B>,
        cut: &Cut,
    ) -> Result<Option<PairMetrics>, TrainError>;
}

/// What the length limits took from some rows, where it was counted.
pub(super) fn lost_of(truncations: &[Truncation], rows: &[usize]) -> Truncation {
    let lost = rows.iter().filter_map(|&row| truncations.get(row));
    lost.copied().sum()
}
