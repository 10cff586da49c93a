//! PairRM: every ordered pair of a row's responses is compared by the model.

use std::collections::VecDeque;

use burn::tensor::backend::Backend;
use serde_json::{Value, json};
use sppo_model::pairrm::{Packed, Packer, PairRm};
use sppo_model::tokenizer::TokenizerError;

use super::prompt_text::PromptText;
use super::{Comparisons, Desk, Estimate, Judge, JudgeError};
use crate::data::ResponseRow;

/// Compares responses with a PairRM.
pub struct PairRmJudge<B: Backend> {
    packer: Packer,
    model: PairRm<B>,
    prompts: PromptText,
    estimate: Estimate,
    batch_tokens: usize,
    description: Value,
}

/// A row whose comparisons are under way.
struct Open {
    comparisons: Comparisons,
    logits: Vec<f64>,
    missing: usize,
}

/// One comparison that waits for its batch.
struct Task {
    row: usize,
    pair: usize,
    packed: Packed,
}

impl<B: Backend> PairRmJudge<B> {
    /// `fingerprint` stands for the model's files in the description; a batch holds at most
    /// `batch_tokens` tokens, or one comparison.
    pub fn new(
        (packer, model): (Packer, PairRm<B>),
        fingerprint: &str,
        prompts: PromptText,
        estimate: Estimate,
        batch_tokens: usize,
    ) -> Self {
        let mut more = json!({ "model": fingerprint, "precision": model.precision() });
        if let Some(template) = prompts.fingerprint() {
            more["chat_template"] = json!(template);
        }
        PairRmJudge {
            description: estimate.describe("pairrm", more),
            packer,
            model,
            prompts,
            estimate,
            batch_tokens,
        }
    }

    /// The comparisons of a row, and the tasks that they are.
    fn open(&self, number: usize, row: &ResponseRow) -> Result<(Open, Vec<Task>), JudgeError> {
        let failed = |error: TokenizerError| JudgeError::row(row, error.to_string());
        let source = self
            .packer
            .source(&self.prompts.render(row)?)
            .map_err(failed)?;
        let candidates = row.responses.iter();
        let candidates = candidates
            .map(|response| self.packer.candidate(response, &source))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let comparisons = Comparisons::new(&row.responses);
        let tasks = comparisons.pairs().iter().enumerate();
        let tasks = tasks.map(|(pair, &(left, right))| Task {
            row: number,
            pair,
            packed: Packed::new(&source, &candidates[left], &candidates[right]),
        });
        let tasks: Vec<Task> = tasks.collect();
        let open = Open {
            logits: vec![0.0; tasks.len()],
            missing: tasks.len(),
            comparisons,
        };
        Ok((open, tasks))
    }
}

impl<B: Backend> Judge for PairRmJudge<B> {
    fn name(&self) -> &str {
        "pairrm"
    }

    fn check(&self, rows: &[ResponseRow]) -> Result<(), JudgeError> {
        for row in rows {
            self.estimate.check_pairs(row)?;
            self.prompts.render(row)?;
        }
        Ok(())
    }

    /// Batches are filled from row after row; a row is handed in with its last comparison.
    fn judge(&mut self, rows: &[&ResponseRow], desk: &mut Desk<'_>) -> Result<(), JudgeError> {
        let mut open = VecDeque::new();
        let mut waiting = VecDeque::new();
        let (mut first_open, mut next) = (0, 0);
        while !desk.interrupted() {
            let mut tokens: usize = waiting
                .iter()
                .map(|task: &Task| task.packed.ids.len())
                .sum();
            while tokens < self.batch_tokens && next < rows.len() {
                let (row, tasks) = self.open(next, rows[next])?;
                tokens += tasks
                    .iter()
                    .map(|task| task.packed.ids.len())
                    .sum::<usize>();
                open.push_back(row);
                waiting.extend(tasks);
                next += 1;
            }
            if waiting.is_empty() {
                break;
            }
            let batch = take_batch(&mut waiting, self.batch_tokens);
            let packed: Vec<&Packed> = batch.iter().map(|task| &task.packed).collect();
            for (task, logit) in batch.iter().zip(self.model.compare(&packed)) {
                let row: &mut Open = &mut open[task.row - first_open];
                row.logits[task.pair] = f64::from(logit);
                row.missing -= 1;
            }
            while open.front().is_some_and(|row| row.missing == 0)
                && let Some(done) = open.pop_front()
            {
                let matrix = done.comparisons.matrix(&done.logits);
                let judgement = self
                    .estimate
                    .from_comparisons(matrix)
                    .map_err(|error| JudgeError::row(rows[first_open], error.to_string()))?;
                desk.hand_in(judgement)?;
                first_open += 1;
            }
        }
        Ok(())
    }

    fn description(&self) -> Value {
        self.description.clone()
    }
}

/// The next tasks that fit into `budget` tokens, one at least.
fn take_batch(waiting: &mut VecDeque<Task>, budget: usize) -> Vec<Task> {
    let mut batch: Vec<Task> = Vec::new();
    let mut tokens = 0;
    while let Some(task) = waiting.front() {
        tokens += task.packed.ids.len();
        if !batch.is_empty() && tokens > budget {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    batch
}
