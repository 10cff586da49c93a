//! metrics.jsonl: one line an optimizer step.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::error::TrainError;
use crate::config::Loss;
use crate::files::{FileError, OutputError, is_same_file};
use crate::learner::TokenSums;
use crate::loss::{LossOutput, PairLogps};
use crate::tensorboard::{self, EventFile};

/// Means over the pairs of a step, named as TRL names them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PairMetrics {
    /// β·(log π − log π_ref) of the chosen responses.
    #[serde(rename = "rewards/chosen")]
    pub rewards_chosen: f64,
    /// β·(log π − log π_ref) of the rejected responses.
    #[serde(rename = "rewards/rejected")]
    pub rewards_rejected: f64,
    /// Part of the pairs whose chosen response has the higher reward.
    #[serde(rename = "rewards/accuracies")]
    pub accuracies: f64,
    /// `rewards_chosen` − `rewards_rejected`.
    #[serde(rename = "rewards/margins")]
    pub margins: f64,
    /// Summed log-probability of the chosen responses under the trained model, in nats.
    #[serde(rename = "logps/chosen")]
    pub logps_chosen: f64,
    /// Summed log-probability of the rejected responses under the trained model, in nats.
    #[serde(rename = "logps/rejected")]
    pub logps_rejected: f64,
    /// |Δ − target| of the chosen responses, in nats; of losses with targets (`sppo` and its like).
    #[serde(
        rename = "target_distance/chosen",
        skip_serializing_if = "Option::is_none"
    )]
    pub target_distance_chosen: Option<f64>,
    /// The same of the rejected responses.
    #[serde(
        rename = "target_distance/rejected",
        skip_serializing_if = "Option::is_none"
    )]
    pub target_distance_rejected: Option<f64>,
    /// The loss of these pairs; in metrics.jsonl only for evaluations.
    #[serde(skip)]
    pub loss: f64,
}

impl PairMetrics {
    /// Of a whole window.
    pub fn new(logps: &PairLogps, output: &LossOutput, loss: Loss, beta: f64) -> Self {
        let (chosen, rejected) = logps.rewards(beta);
        let wins = chosen.iter().zip(&rejected).filter(|(c, r)| c > r).count();
        let count = logps.len() as f64;
        let distances = logps.target_distances(loss, beta);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / count;
        Self {
            rewards_chosen: mean(&chosen),
            rewards_rejected: mean(&rejected),
            accuracies: wins as f64 / count,
            margins: mean(&chosen) - mean(&rejected),
            logps_chosen: mean(&logps.policy_chosen),
            logps_rejected: mean(&logps.policy_rejected),
            target_distance_chosen: distances.map(|[chosen, _]| chosen),
            target_distance_rejected: distances.map(|[_, rejected]| rejected),
            loss: output.mean,
        }
    }
}

/// What the logits of a step's responses tell, as TRL's DPOTrainer and SFTTrainer log it (1.16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TokenMetrics {
    /// Mean over the response tokens of the entropy that each was predicted from, in nats.
    pub entropy: f64,
    /// Part of the response tokens that were the likeliest; of pairs those of the chosen responses.
    pub mean_token_accuracy: f64,
    /// Mean over the chosen responses' tokens of the mean logit; of pairs only.
    #[serde(rename = "logits/chosen", skip_serializing_if = "Option::is_none")]
    pub logits_chosen: Option<f64>,
    /// The same of the rejected responses.
    #[serde(rename = "logits/rejected", skip_serializing_if = "Option::is_none")]
    pub logits_rejected: Option<f64>,
}

impl TokenMetrics {
    /// Of examples: sums over all their response tokens, and how many there are.
    pub(super) fn of_examples(sums: TokenSums, tokens: usize) -> Self {
        Self {
            entropy: sums.entropy / tokens as f64,
            mean_token_accuracy: sums.likeliest / tokens as f64,
            logits_chosen: None,
            logits_rejected: None,
        }
    }

    /// Of pairs: the same of chosen and of rejected responses.
    pub(super) fn of_pairs(chosen: (TokenSums, usize), rejected: (TokenSums, usize)) -> Self {
        let mean = |sum: f64, tokens: usize| sum / tokens as f64;
        let both = chosen.0.entropy + rejected.0.entropy;
        Self {
            entropy: mean(both, chosen.1 + rejected.1),
            mean_token_accuracy: mean(chosen.0.likeliest, chosen.1),
            logits_chosen: Some(mean(chosen.0.logits, chosen.1)),
            logits_rejected: Some(mean(rejected.0.logits, rejected.1)),
        }
    }
}

/// One line of metrics.jsonl.
#[derive(Clone, Debug, Serialize)]
pub struct StepMetrics {
    /// Counted from 1.
    pub step: usize,
    /// Passes over the rows, with the part of the running one.
    pub epoch: f64,
    /// Mean over the rows of the step.
    pub loss: f64,
    /// Of this step.
    pub learning_rate: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// None where the rows are not pairs.
    #[serde(flatten)]
    pub pairs: Option<PairMetrics>,
    /// None unless `logging.token_metrics` asks for them.
    #[serde(flatten)]
    pub token_metrics: Option<TokenMetrics>,
    /// Of prompts and responses, no padding.
    pub tokens: usize,
    /// `tokens` of this and all earlier steps.
    pub num_tokens: usize,
    /// Rows that the length limits cut.
    pub rows_cut: usize,
    /// Tokens that these lost.
    pub tokens_cut: usize,
    /// Responses among them that lost their end.
    pub responses_without_end: usize,
    /// `tokens` / `step_seconds`.
    pub tokens_per_second: f64,
    /// Wall-clock time, without evaluation and checkpoint.
    pub step_seconds: f64,
    /// Of the device where it has its own memory, else of the process; of many, the highest.
    pub peak_memory_bytes: u64,
    /// None where one process trains alone.
    #[serde(flatten)]
    pub ranks: Option<RankMetrics>,
    /// Whether the step was skipped because its loss or gradient was not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// On the held-out pairs, where an evaluation was due.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "eval_line")]
    pub eval: Option<PairMetrics>,
}

/// What a step of many processes took for being one.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RankMetrics {
    /// Spent by rank 0 in exchanges of gradients and weights; waiting for slower ranks is part of it.
    pub communication_seconds: f64,
    /// Sent by rank 0 to others.
    pub communication_bytes: u64,
    /// Of the slowest rank's computation: `step_seconds` without it is the exchange alone.
    pub slowest_rank_seconds: f64,
}

impl StepMetrics {
    /// What a progress bar shows beside its numbers.
    pub fn note(&self) -> String {
        format!(
            "loss {:.4}, {:.0} tokens/s",
            self.loss, self.tokens_per_second
        )
    }

    /// The numbers of the line by the tags that transformers' TensorBoard callback gives them:
    /// `train/…`, those of an evaluation `eval/…`.
    fn scalars(&self) -> Vec<(String, f64)> {
        let line = serde_json::to_value(self).unwrap_or_default();
        let numbers = |prefix: &str, fields: &Value| -> Vec<(String, f64)> {
            let fields = fields.as_object().into_iter().flatten();
            let numbers = fields.filter(|(key, _)| *key != "step");
            numbers
                .filter_map(|(key, value)| Some((format!("{prefix}/{key}"), value.as_f64()?)))
                .collect()
        };
        [numbers("train", &line), numbers("eval", &line["eval"])].concat()
    }
}

fn eval_line<S: serde::Serializer>(
    eval: &Option<PairMetrics>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let with_loss = eval.as_ref().map(|metrics| {
        let mut value = serde_json::to_value(metrics).unwrap_or_default();
        value["loss"] = metrics.loss.into();
        value
    });
    with_loss.serialize(serializer)
}

/// All that is logged of a training: metrics.jsonl, and TensorBoard's file of it where it is wanted.
pub(super) struct StepLog {
    metrics: MetricsFile,
    events: Option<EventFile>,
}

impl StepLog {
    /// Opens what is logged in `dir` behind its first `steps` steps: a resumed run writes those
    /// behind its checkpoint again.
    pub fn open(dir: &Path, steps: usize, tensorboard: bool) -> Result<Self, TrainError> {
        let folder = dir.join(tensorboard::FOLDER);
        Ok(Self {
            metrics: MetricsFile::open(dir, steps)?,
            events: match tensorboard {
                true => EventFile::open(&folder, steps)
                    .inspect_err(without_events)
                    .ok(),
                false => None,
            },
        })
    }

    /// Appends one line and hands it to the operating system.
    pub fn append(&mut self, line: &StepMetrics) -> Result<(), TrainError> {
        self.metrics.append(line)?;
        if let Some(events) = &mut self.events
            && let Err(error) = events.scalars(line.step, &line.scalars())
        {
            without_events(&error);
            // A torn record would hide all behind it.
            self.events = None;
        }
        Ok(())
    }

    /// Waits until all of it is on the disk.
    pub fn sync(&self) -> Result<(), TrainError> {
        self.metrics.sync()?;
        if let Some(Err(error)) = self.events.as_ref().map(EventFile::sync) {
            without_events(&error);
        }
        Ok(())
    }
}

/// What only shows a training is no reason to end it.
fn without_events(error: &impl std::fmt::Display) {
    tracing::warn!(
        "TensorBoard's file of this training is not whole: {error}; the training goes on"
    );
}

/// The open metrics.jsonl.
struct MetricsFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl MetricsFile {
    /// Opens `<dir>/metrics.jsonl` and keeps its first `lines` lines: a resumed run writes the
    /// steps behind its checkpoint again.
    fn open(dir: &Path, lines: usize) -> Result<Self, TrainError> {
        let path = dir.join("metrics.jsonl");
        let failed = |action| FileError::new(action, &path);
        std::fs::create_dir_all(dir).map_err(failed("make the folder of"))?;
        let old = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(failed("read")(e).into()),
        };
        let kept: usize = old
            .split_inclusive(|&b| b == b'\n')
            .take(lines)
            .map(<[u8]>::len)
            .sum();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed("open"))?;
        file.set_len(kept as u64).map_err(failed("cut"))?;
        Ok(Self {
            path,
            file,
            size: kept as u64,
        })
    }

    /// Appends one line and hands it to the operating system.
    fn append(&mut self, line: &StepMetrics) -> Result<(), TrainError> {
        // Values that JSON cannot hold (NaN) become null.
        let text = serde_json::to_string(line).map_err(std::io::Error::other);
        let text = text.map_err(|source| self.failed(source))? + "\n";
        self.check()?;
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|source| self.failed(source))?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// That nobody else removed or changed it.
    fn check(&self) -> Result<(), TrainError> {
        let here = self.file.metadata().map_err(|e| self.failed(e))?;
        let problem = match std::fs::metadata(&self.path) {
            Err(_) => "was removed",
            Ok(there) if is_same_file(&here, &there) && there.len() == self.size => return Ok(()),
            Ok(_) => "was changed",
        };
        let path = self.path.clone();
        Err(OutputError::Changed { path, problem }.into())
    }

    /// Waits until all lines are on the disk.
    fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_all().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> TrainError {
        FileError::new("write", &self.path)(source).into()
    }
}
