//! A Llama that gives a text one score (transformers' `LlamaForSequenceClassification`).

use std::path::Path;

use burn::tensor::{DType, Tensor, backend::Backend};
use serde_json::{Map, Value};

use super::config::LlamaConfig;
use super::hf::is_unused;
use super::model::Llama;
use super::names::use_plain_names;
use super::parameters::{Parameter, ParameterTable};
use crate::checkpoint::{Checkpoint, SafetensorsError};
use crate::config_json::{ModelConfigError, read_config, size};
use crate::load_error::CheckpointError;
use crate::nn::Linear;
use crate::ops::{DeviceError, ModelOps, ints, to_f32, to_host};
use crate::packed_batch::PackedBatch;
use crate::weights::{FromCheckpoint, TensorReader, check_tensors};

const ARCHITECTURE: &str = "LlamaForSequenceClassification";
/// The head's weight.
const SCORE: &str = "score.weight";

/// A Llama's body with a head of one score.
pub struct RewardModel<B: Backend> {
    body: Llama<B>,
    /// f32 `[1, hidden]`.
    score: Linear<B>,
    config: LlamaConfig,
}

impl<B: ModelOps> RewardModel<B> {
    /// Loads a folder, its body in `dtype`; every misfit of the weights is listed in one error.
    pub fn load(dir: &Path, dtype: DType, device: &B::Device) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(SafetensorsError::NoFolder { dir: dir.into() }.into());
        }
        let config = reward_config(dir).map_err(|source| CheckpointError::Config {
            dir: dir.into(),
            source,
        })?;
        let mut checkpoint = Checkpoint::open(dir)?;
        use_plain_names(&mut checkpoint)?;
        let table = ParameterTable::new(&config);
        let shape = [1, config.hidden_size];
        let score = [(SCORE, &shape[..])];
        let expected = table.all().iter().map(Parameter::name_and_shape);
        check_tensors(&checkpoint, is_unused, expected.chain(score))?;
        let source = |dtype| FromCheckpoint {
            checkpoint: &checkpoint,
            dtype,
        };
        let body = Llama::build(&config, source(dtype), device)?;
        let score = TensorReader::new(score, source(DType::F32), device).linear()?;
        Ok(RewardModel {
            body,
            score,
            config,
        })
    }

    /// The dtype of the body's weights and activations.
    pub fn dtype(&self) -> DType {
        self.body.dtype()
    }

    /// Longest sequence in tokens.
    pub fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Number of token ids that the embeddings know.
    pub fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    /// Tokens of a sequence that its score depends on: up to the last that is not `pad_token_id`,
    /// where transformers reads the score, or the first one where all are.
    pub fn scored_length(&self, ids: &[u32]) -> usize {
        match self.config.pad_token_id {
            None => ids.len(),
            Some(pad) => ids.iter().rposition(|&id| id != pad).unwrap_or(0) + 1,
        }
    }

    /// One score a sequence of token ids; none may be empty.
    pub fn scores(&self, sequences: &[&[u32]]) -> Result<Vec<f32>, DeviceError> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let device = self.body.device();
        // Attention is causal: what stands behind the scored token changes nothing.
        let cut: Vec<&[u32]> = sequences
            .iter()
            .map(|ids| &ids[..self.scored_length(ids)])
            .collect();
        let batch = PackedBatch::new(&cut);
        let last = batch.places.iter().zip(&cut);
        let last = last.map(|(places, ids)| places.at(ids.len() - 1) as i64);
        let last = ints::<B>(last.collect(), &device);
        let hidden: Tensor<B, 2> = self.body.forward_blocks(&batch).select(0, last);
        let hidden = to_f32(self.body.norm.forward(hidden));
        to_host(self.score.forward(hidden))
    }
}

/// The configuration of a reward model's body; what is no reward model is refused.
fn reward_config(dir: &Path) -> Result<LlamaConfig, ModelConfigError> {
    let raw = read_config(dir)?;
    refuse_other_kinds(&raw)?;
    let labels = match raw.get("id2label") {
        Some(Value::Object(labels)) if !labels.is_empty() => labels.len(),
        // transformers' own default.
        _ => 2,
    };
    let labels = size(&raw, "num_labels", Some(labels))?;
    if labels != 1 {
        return Err(ModelConfigError::Unsupported {
            key: "num_labels".into(),
            found: labels.to_string(),
            hint: "a reward model has one label (num_labels 1, or one entry in id2label; transformers takes 2 where both are missing)".into(),
        });
    }
    let config = LlamaConfig::from_map(raw)?;
    Ok(LlamaConfig {
        // There is no vocabulary projection, tied or not.
        tie_word_embeddings: true,
        ..config
    })
}

fn refuse_other_kinds(raw: &Map<String, Value>) -> Result<(), ModelConfigError> {
    let known = raw.get("architectures").and_then(Value::as_array);
    if known.is_some_and(|all| all.iter().any(|one| one == ARCHITECTURE)) {
        return Ok(());
    }
    let hint = format!(
        "a reward judge is a {ARCHITECTURE} (model.* and score.weight, made with num_labels 1)"
    );
    match raw.get("architectures") {
        Some(found) => Err(ModelConfigError::Unsupported {
            key: "architectures".into(),
            found: found.to_string(),
            hint,
        }),
        None => Err(ModelConfigError::Missing {
            key: "architectures".into(),
            wanted: hint,
        }),
    }
}
