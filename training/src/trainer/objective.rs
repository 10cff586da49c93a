//! What a trainer maximises.

use burn::tensor::backend::AutodiffBackend;

use super::TrainError;
use super::metrics::PairMetrics;
use crate::learner::Learner;

/// What the rows of one optimizer step came to.
#[derive(Clone, Debug, Default)]
pub struct WindowReport {
    /// Mean over the rows of the step.
    pub loss: f64,
    /// Tokens of prompts and responses, no padding.
    pub tokens: usize,
    pub pairs: Option<PairMetrics>,
    /// Names of rows whose loss is not finite.
    pub bad_rows: Vec<String>,
}

/// Rows and the loss they are trained with.
pub trait Objective<B: AutodiffBackend> {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// A row's name for messages.
    fn row_name(&self, index: usize) -> String;

    /// Adds the gradient of the mean loss over the rows `window`, at most `batch_size` at a time;
    /// the sum does not depend on how the window is cut.
    fn accumulate(
        &mut self,
        learner: &mut Learner<B>,
        window: &[usize],
        batch_size: usize,
    ) -> Result<WindowReport, TrainError>;

    /// The loss on held-out rows, where the objective has some.
    fn evaluate(
        &mut self,
        learner: &Learner<B>,
        batch_size: usize,
    ) -> Result<Option<PairMetrics>, TrainError>;
}
