//! PairRM: every ordered pair of a row's responses is compared by the model.

use std::collections::VecDeque;

use burn::tensor::backend::Backend;
use serde_json::{Value, json};
use sppo_model::ops::ModelOps;
use sppo_model::pairrm::{Packed, Packer, PairRm};
use sppo_model::tokenizer::TokenizerError;

use super::open_rows::OpenRows;
use super::prompt_text::PromptText;
use super::{Comparisons, Estimate, Judge, JudgeError, JudgeSession, Sharing};
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

/// One comparison that waits for its batch.
struct Task {
    row: usize,
    pair: usize,
    packed: Packed,
}

impl Task {
    fn tokens(&self) -> usize {
        self.packed.ids.len()
    }
}

impl<B: ModelOps> PairRmJudge<B> {
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
        if let Some(date) = prompts.date() {
            more["date"] = json!(date.to_string());
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

    /// Opens a row, `wanted` or not; the tasks that it makes.
    fn open(
        &self,
        row: &ResponseRow,
        wanted: bool,
        open: &mut OpenRows,
    ) -> Result<Vec<Task>, JudgeError> {
        let failed = |error: TokenizerError| JudgeError::row(row, error.to_string());
        let source = self.packer.source(&self.prompts.render(row)?);
        let source = source.map_err(failed)?;
        let candidates = row.responses.iter();
        let candidates = candidates
            .map(|response| self.packer.candidate(response, &source))
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let comparisons = Comparisons::new(&row.responses);
        let pairs = comparisons.pairs().to_vec();
        let number = open.open(Some(comparisons).filter(|_| wanted));
        let tasks = pairs.into_iter().enumerate();
        let tasks = tasks.map(|(pair, (left, right))| Task {
            row: number,
            pair,
            packed: Packed::new(&source, &candidates[left], &candidates[right]),
        });
        Ok(tasks.collect())
    }
}

impl<B: ModelOps> Judge for PairRmJudge<B> {
    fn name(&self) -> &str {
        "pairrm"
    }

    fn check_row(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        self.estimate.check_pairs(row)?;
        self.prompts.render(row).map(|_| ())
    }

    /// Batches are filled from row after row; a row is handed in with its last comparison.
    fn judge(
        &mut self,
        rows: &[&ResponseRow],
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError> {
        let mut open = OpenRows::default();
        let mut waiting = VecDeque::new();
        let mut left = rows.iter().enumerate();
        while !session.interrupted() && !session.is_complete() {
            let mut tokens: usize = waiting.iter().map(Task::tokens).sum();
            while tokens < self.batch_tokens
                && let Some((number, row)) = left.next()
            {
                let tasks = self.open(row, session.wants(number), &mut open)?;
                tokens += tasks.iter().map(Task::tokens).sum::<usize>();
                waiting.extend(tasks);
            }
            if waiting.is_empty() {
                break;
            }
            let batch = take_batch(&mut waiting, self.batch_tokens);
            if batch.iter().any(|task| session.wants(task.row)) {
                let packed: Vec<&Packed> = batch.iter().map(|task| &task.packed).collect();
                let logits = self.model.compare(&packed)?;
                let logits = batch.iter().zip(logits);
                for (task, logit) in logits.filter(|(task, _)| session.wants(task.row)) {
                    open.set(task.row, task.pair, f64::from(logit));
                }
            }
            open.hand_in(rows, &self.estimate, session)?;
        }
        Ok(())
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    fn sharing(&self) -> Sharing {
        Sharing::Batches
    }
}

/// The next tasks that fit into `budget` tokens, one at least.
fn take_batch(waiting: &mut VecDeque<Task>, budget: usize) -> Vec<Task> {
    let mut batch: Vec<Task> = Vec::new();
    let mut tokens = 0;
    while let Some(task) = waiting.front() {
        tokens += task.tokens();
        if !batch.is_empty() && tokens > budget {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    batch
}
