//! A reward model: every response is scored by itself, as the end of its conversation.

use std::collections::{HashMap, VecDeque};

use burn::tensor::{DType, backend::Backend};
use serde_json::{Value, json};
use sppo_model::chat_template::Message;
use sppo_model::chat_text::ChatText;
use sppo_model::llama::RewardModel;
use sppo_model::ops::ModelOps;

use super::{Estimate, Judge, JudgeError, JudgeSession, Sharing};
use crate::data::ResponseRow;

/// Sequences of so many batches are sorted by length together, which spares padding in attention.
/// An interrupt loses less than that.
const WINDOW: usize = 4;

/// Scores responses with a reward model.
pub struct RewardJudge<B: Backend> {
    model: RewardModel<B>,
    text: ChatText,
    estimate: Estimate,
    batch_tokens: usize,
    description: Value,
}

/// A row whose scores are under way.
struct Open {
    /// For each response the number of its text among the distinct ones.
    texts: Vec<usize>,
    /// Scores of the distinct texts.
    scores: Vec<f64>,
    missing: usize,
}

/// One text that waits for its batch.
struct Task {
    row: usize,
    text: usize,
    ids: Vec<u32>,
}

impl<B: ModelOps> RewardJudge<B> {
    /// `fingerprint` stands for the model's files in the description; a batch holds at most
    /// `batch_tokens` tokens, or one conversation.
    pub fn new(
        model: RewardModel<B>,
        fingerprint: &str,
        text: ChatText,
        estimate: Estimate,
        batch_tokens: usize,
    ) -> Self {
        let mut more = json!({ "model": fingerprint });
        if model.dtype() == DType::BF16 {
            more["precision"] = json!("bf16");
        }
        if text.uses_date() {
            more["date"] = json!(text.date().to_string());
        }
        RewardJudge {
            description: estimate.describe("reward", more),
            model,
            text,
            estimate,
            batch_tokens,
        }
    }

    /// Ids of one conversation, refused where the model cannot read it.
    fn ids(&self, row: &ResponseRow, number: usize) -> Result<Vec<u32>, JudgeError> {
        let mut turns = row.prompt.messages().into_owned();
        turns.push(Message::new("assistant", &*row.responses[number]));
        let ids = self.text.turn_ids(&turns);
        let ids = ids.map_err(|error| JudgeError::row(row, error.to_string()))?;
        let refuse = |problem: String| {
            let problem = format!("response {number}: its conversation {problem}");
            Err(JudgeError::row(row, problem))
        };
        let (most, vocabulary) = (self.model.max_tokens(), self.model.vocab_size());
        if ids.is_empty() {
            return refuse("is empty under the chat template of judge.model".into());
        }
        if ids.len() > most {
            return refuse(format!(
                "is {} tokens long, but the reward model reads at most {most} (max_position_embeddings); leave the row out or shorten its responses",
                ids.len()
            ));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            return refuse(format!(
                "holds token {id}, but the reward model knows {vocabulary} (vocab_size); its tokenizer is another model's"
            ));
        }
        Ok(ids)
    }

    /// The distinct texts of a row, and the tasks that they are.
    fn open(&self, number: usize, row: &ResponseRow) -> Result<(Open, Vec<Task>), JudgeError> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let (mut texts, mut tasks) = (Vec::new(), Vec::new());
        for (i, response) in row.responses.iter().enumerate() {
            let next = seen.len();
            let text = *seen.entry(response).or_insert(next);
            if text == next {
                let ids = self.ids(row, i)?;
                tasks.push(Task {
                    row: number,
                    text,
                    ids,
                });
            }
            texts.push(text);
        }
        let open = Open {
            texts,
            scores: vec![0.0; tasks.len()],
            missing: tasks.len(),
        };
        Ok((open, tasks))
    }
}

impl<B: ModelOps> Judge for RewardJudge<B> {
    fn name(&self) -> &str {
        "reward"
    }

    fn check_row(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        self.estimate.check(row)?;
        self.open(0, row).map(|_| ())
    }

    /// Window after window; a row is handed in once it and all before it are whole.
    fn judge(
        &mut self,
        rows: &[&ResponseRow],
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError> {
        let mut next = 0;
        while next < rows.len() && !session.interrupted() && !session.is_complete() {
            let mut first = next;
            let (mut open, mut waiting) = (VecDeque::new(), Vec::new());
            let mut tokens = 0;
            while next < rows.len() && tokens < WINDOW.saturating_mul(self.batch_tokens) {
                let (mut row, tasks) = self.open(next, rows[next])?;
                if !session.wants(next) {
                    row.missing = 0;
                }
                tokens += tasks.iter().map(|task| task.ids.len()).sum::<usize>();
                open.push_back(row);
                waiting.extend(tasks);
                next += 1;
            }
            waiting.sort_by_key(|task: &Task| task.ids.len());
            let mut waiting = &waiting[..];
            loop {
                while open.front().is_some_and(|row: &Open| row.missing == 0)
                    && let Some(done) = open.pop_front()
                {
                    if session.wants(first) {
                        let scores = done.texts.iter().map(|&text| done.scores[text]);
                        session.hand_in(self.estimate.from_scores(scores.collect()))?;
                    }
                    first += 1;
                }
                if waiting.is_empty() || session.interrupted() {
                    break;
                }
                let (batch, rest) = waiting.split_at(batch_end(waiting, self.batch_tokens));
                waiting = rest;
                if !batch.iter().any(|task| session.wants(task.row)) {
                    continue;
                }
                let ids: Vec<&[u32]> = batch.iter().map(|task| &task.ids[..]).collect();
                let scores = batch.iter().zip(self.model.scores(&ids)?);
                for (task, score) in scores.filter(|(task, _)| session.wants(task.row)) {
                    let row = &mut open[task.row - first];
                    row.scores[task.text] = f64::from(score);
                    row.missing -= 1;
                }
            }
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

/// How many of the first tasks fit into `budget` tokens, one at least.
fn batch_end(waiting: &[Task], budget: usize) -> usize {
    let mut tokens = 0;
    let fits = waiting.iter().take_while(|task| {
        tokens += task.ids.len();
        tokens <= budget
    });
    fits.count().max(1).min(waiting.len())
}
