//! What a trainer maximises.

use std::cmp::Reverse;
use std::ops::Range;

use sppo_model::ops::{DeviceError, TrainingOps};

use super::error::TrainError;
use super::metrics::{PairMetrics, TokenMetrics};
use crate::cluster::gather_f64;
use crate::cost::Batch;
use crate::cost::memory::Training;
use crate::learner::{Learner, TokenSums, World};
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
    /// None unless they were asked for.
    pub token_metrics: Option<TokenMetrics>,
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

    /// Deals the rows of a step, a batch each, out to parts that go through the model one by one;
    /// gives the rows of each part in their order.
    ///
    /// By tokens, so that ranks that compute a part each finish together; with a bound on the memory
    /// in the order of the rows. Neither depends on the number of ranks.
    pub fn deal(&self, count: usize, batch: impl Fn(Range<usize>) -> Batch) -> Vec<Vec<usize>> {
        if self.memory_budget.is_some() {
            let parts = self.parts(count, batch).into_iter();
            return parts.map(Iterator::collect).collect();
        }
        let tokens: Vec<usize> = (0..count)
            .map(|row| batch(row..row + 1).packed.tokens)
            .collect();
        let mut longest_first: Vec<usize> = (0..count).collect();
        longest_first.sort_by_key(|&row| Reverse(tokens[row]));
        let mut parts = vec![(0, Vec::new()); count.div_ceil(self.batch_size)];
        for row in longest_first {
            let open = parts.iter_mut();
            let open = open.filter(|(_, rows)| rows.len() < self.batch_size);
            if let Some((sum, rows)) = open.min_by_key(|(sum, _)| *sum) {
                *sum += tokens[row];
                rows.push(row);
            }
        }
        let parts = parts.into_iter().map(|(_, mut rows)| {
            rows.sort_unstable();
            rows
        });
        parts.collect()
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

/// Takes the parts of a step in rounds of one a rank: `backward` computes a part (places in the
/// window) and gives `width` numbers for each of its rows. Gives those of all rows in the order of
/// the window. Collective.
pub(super) fn backward_parts<B: TrainingOps>(
    learner: &mut Learner<B>,
    parts: &[Vec<usize>],
    width: usize,
    mut backward: impl FnMut(&mut Learner<B>, &[usize]) -> Result<Vec<f64>, DeviceError>,
) -> Result<Vec<f64>, DeviceError> {
    let world = learner.world();
    let mut own = Vec::new();
    for round in parts.chunks(world.size()) {
        learner.begin_round(round.len());
        match round.get(world.rank()) {
            Some(part) => own.extend(backward(learner, part)?),
            None => learner.idle(),
        }
    }
    Ok(of_all_parts(world, parts, &own, width))
}

/// Numbers that ranks computed for their parts, part p on rank p mod n: `own` are those of this
/// rank's rows, `width` a row. Gives those of all rows in the order of the rows. Collective.
pub(super) fn of_all_parts(
    world: World,
    parts: &[Vec<usize>],
    own: &[f64],
    width: usize,
) -> Vec<f64> {
    let rows: usize = parts.iter().map(Vec::len).sum();
    let mut all = vec![f64::NAN; rows * width];
    let mut of_ranks: Vec<_> = gather_f64(world, own)
        .into_iter()
        .map(Vec::into_iter)
        .collect();
    for (number, part) in parts.iter().enumerate() {
        let values = &mut of_ranks[number % world.size()];
        for &row in part {
            for place in &mut all[row * width..(row + 1) * width] {
                *place = values.next().unwrap_or(f64::NAN);
            }
        }
    }
    all
}

/// A part's log-probabilities, one a sequence, as numbers for [`backward_parts`]: with the token sums
/// behind each, where they were asked for.
pub(super) fn numbers((logps, sums): (Vec<f64>, Option<Vec<TokenSums>>)) -> Vec<f64> {
    match sums {
        None => logps,
        Some(sums) => {
            let both = logps.iter().zip(&sums);
            both.flat_map(|(logp, sums)| [*logp, sums.entropy, sums.logits, sums.likeliest])
                .collect()
        }
    }
}

/// Numbers of a sequence: with and without token sums.
pub(super) fn width(measured: bool) -> usize {
    if measured { 4 } else { 1 }
}

/// The log-probabilities and the token sums of the numbers of all sequences.
pub(super) fn of_numbers(numbers: &[f64], measured: bool) -> (Vec<f64>, Vec<TokenSums>) {
    let sequences = numbers.chunks_exact(width(measured));
    let logps = sequences.clone().map(|numbers| numbers[0]).collect();
    let sums = sequences.filter_map(|numbers| match *numbers {
        [_, entropy, logits, likeliest] => Some(TokenSums {
            entropy,
            logits,
            likeliest,
        }),
        _ => None,
    });
    (logps, sums.collect())
}

/// Rows and the loss they are trained with.
pub trait Objective<B: TrainingOps> {
    /// Number of rows.
    fn rows(&self) -> usize;

    /// A row's name for messages.
    fn row_name(&self, index: usize) -> String;

    /// Tokens of some rows, prompts and responses.
    fn tokens(&self, rows: &[usize]) -> usize;

    /// Adds the gradient of the mean loss over the rows `window`, part after part, part p on rank
    /// p mod n. Collective: all ranks get the same report.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenise::TokenisedSequence;
    use rand::rngs::ChaCha12Rng;
    use rand::{RngExt, SeedableRng};

    fn row(tokens: usize) -> TokenisedSequence {
        TokenisedSequence {
            ids: vec![0; tokens],
            response_start: 1,
        }
    }

    fn deal(tokens: &[usize], batch_size: usize) -> Vec<Vec<usize>> {
        let rows: Vec<TokenisedSequence> = tokens.iter().map(|&n| row(n)).collect();
        let batch = |range: Range<usize>| Batch::of(&rows[range].iter().collect::<Vec<_>>());
        Cut::rows(batch_size).deal(tokens.len(), batch)
    }

    #[test]
    fn parts_are_of_equal_tokens_and_hold_every_row_once() {
        assert_eq!(deal(&[9, 2, 8, 3], 2), [[0, 1], [2, 3]]);
        assert_eq!(deal(&[5, 5, 5], 4), [[0, 1, 2]]);
        assert_eq!(deal(&[4, 4, 4, 4, 4], 2), [vec![0, 3], vec![1, 4], vec![2]]);
        assert!(deal(&[], 3).is_empty());
        let mut random = ChaCha12Rng::seed_from_u64(1);
        let mut worst = 0f64;
        for _ in 0..50 {
            let tokens: Vec<usize> = (0..64).map(|_| random.random_range(100..1000)).collect();
            let parts = deal(&tokens, 8);
            let mut all = parts.concat();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..64));
            let sums = parts
                .iter()
                .map(|rows| rows.iter().map(|&r| tokens[r]).sum::<usize>());
            let mean = tokens.iter().sum::<usize>() as f64 / 8.0;
            worst = worst.max(sums.max().unwrap_or(0) as f64 / mean);
        }
        // In the order of the file the slowest is 1.28 times the mean.
        assert!(worst < 1.05, "{worst}");
    }
}
