//! PairRM checkpoints in Hugging Face's layout: names and loading.

use std::path::Path;

use super::config::PairRmConfig;
use super::encoder::{Layer, PairRm};
use super::packing::Packer;
use crate::checkpoint::Checkpoint;
use crate::host;
use crate::nn::{LayerNorm, Linear};
use crate::tokenizer::{self, Tokenizer, TokenizerError};
use crate::weights::{CheckpointError, Expected, FromCheckpoint, Source, check_tensors};
use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};

/// Why a PairRM folder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PairRmError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the folder of a judge: {0}")]
    Tokenizer(#[from] TokenizerError),
}

impl<B: Backend> PairRm<B> {
    /// Loads a folder's weights in `dtype`, and what packs its inputs.
    pub fn load(
        dir: &Path,
        dtype: DType,
        device: &B::Device,
    ) -> Result<(Packer, Self), PairRmError> {
        let checkpoint = Checkpoint::open(dir).map_err(CheckpointError::from)?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let config = PairRmConfig::from_dir(dir, &checkpoint, &tokenizer).map_err(|source| {
            CheckpointError::Config {
                dir: dir.into(),
                source,
            }
        })?;
        let mut expected = Expected::default();
        let _: Parts<B> = parts(&mut expected, &config)?;
        // Saved along by some versions of transformers; it holds 0, 1, 2, …
        let harmless = |name: &str| name.ends_with("embeddings.position_ids");
        check_tensors(&checkpoint, harmless, &expected.0)?;
        let mut source = FromCheckpoint::<B> {
            checkpoint: &checkpoint,
            dtype,
            device,
        };
        let model = parts(&mut source, &config)?.assemble(&config, dtype, device);
        let sep = tokenizer::special_tokens(dir)?.remove("sep_token");
        Ok((Packer::new(tokenizer, config, sep), model))
    }
}

/// What a checkpoint holds.
struct Parts<B: Backend> {
    word_embeddings: Param<Tensor<B, 2>>,
    embeddings_norm: LayerNorm<B>,
    rel_embeddings: Tensor<B, 2>,
    rel_norm: LayerNorm<B>,
    layers: Vec<LayerParts<B>>,
    head_in: Linear<B>,
    head_out: Linear<B>,
}

struct LayerParts<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    attention_out: Linear<B>,
    attention_norm: LayerNorm<B>,
    intermediate: Linear<B>,
    output: Linear<B>,
    output_norm: LayerNorm<B>,
}

fn parts<B: Backend>(
    source: &mut impl Source<B>,
    c: &PairRmConfig,
) -> Result<Parts<B>, CheckpointError> {
    let hidden = c.hidden_size;
    let words = "pretrained_model.embeddings";
    let encoder = "pretrained_model.encoder";
    Ok(Parts {
        word_embeddings: source.param(
            &format!("{words}.word_embeddings.weight"),
            [c.vocab_size, hidden],
        )?,
        embeddings_norm: norm(source, &format!("{words}.LayerNorm"), c)?,
        rel_embeddings: source.tensor(
            &format!("{encoder}.rel_embeddings.weight"),
            [2 * c.position_buckets, hidden],
        )?,
        rel_norm: norm(source, &format!("{encoder}.LayerNorm"), c)?,
        layers: (0..c.num_hidden_layers)
            .map(|i| layer_parts(source, &format!("{encoder}.layer.{i}"), c))
            .collect::<Result<_, _>>()?,
        head_in: source.linear("head_layer.1", [hidden, 2 * hidden], true)?,
        head_out: source.linear("head_layer.4", [1, hidden], true)?,
    })
}

fn layer_parts<B: Backend>(
    source: &mut impl Source<B>,
    name: &str,
    c: &PairRmConfig,
) -> Result<LayerParts<B>, CheckpointError> {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let at = |part: &str| format!("{name}.{part}");
    Ok(LayerParts {
        query: source.linear(&at("attention.self.query_proj"), [hidden, hidden], true)?,
        key: source.linear(&at("attention.self.key_proj"), [hidden, hidden], true)?,
        value: source.linear(&at("attention.self.value_proj"), [hidden, hidden], true)?,
        attention_out: source.linear(&at("attention.output.dense"), [hidden, hidden], true)?,
        attention_norm: norm(source, &at("attention.output.LayerNorm"), c)?,
        intermediate: source.linear(&at("intermediate.dense"), [inner, hidden], true)?,
        output: source.linear(&at("output.dense"), [hidden, inner], true)?,
        output_norm: norm(source, &at("output.LayerNorm"), c)?,
    })
}

fn norm<B: Backend>(
    source: &mut impl Source<B>,
    name: &str,
    c: &PairRmConfig,
) -> Result<LayerNorm<B>, CheckpointError> {
    Ok(LayerNorm {
        weight: source.param(&format!("{name}.weight"), [c.hidden_size])?,
        bias: source.param(&format!("{name}.bias"), [c.hidden_size])?,
        eps: c.layer_norm_eps,
    })
}

impl<B: Backend> Parts<B> {
    /// Puts together what is computed together, and computes what no text changes.
    fn assemble(self, c: &PairRmConfig, dtype: DType, device: &B::Device) -> PairRm<B> {
        let positions = self.rel_norm.forward(self.rel_embeddings);
        let layers = self.layers.into_iter();
        PairRm {
            word_embeddings: self.word_embeddings,
            embeddings_norm: self.embeddings_norm,
            layers: layers.map(|l| l.assemble(&positions, c)).collect(),
            head_in: self.head_in,
            head_out: self.head_out,
            heads: c.num_attention_heads,
            position_buckets: c.position_buckets,
            max_relative_positions: c.max_relative_positions,
            on_host: dtype == DType::F32 && host::is_host::<B>(device),
        }
    }
}

impl<B: Backend> LayerParts<B> {
    fn assemble(self, positions: &Tensor<B, 2>, c: &PairRmConfig) -> Layer<B> {
        let (heads, head) = (c.num_attention_heads, c.hidden_size / c.num_attention_heads);
        // [2 · buckets, hidden] → [heads, head, 2 · buckets]
        let table = |projection: &Linear<B>| {
            let rows = projection.forward(positions.clone());
            rows.reshape([2 * c.position_buckets, heads, head])
                .permute([1, 2, 0])
        };
        Layer {
            position_keys: table(&self.key),
            position_queries: table(&self.query),
            qkv: stacked([self.query, self.key, self.value]),
            attention_out: self.attention_out,
            attention_norm: self.attention_norm,
            intermediate: self.intermediate,
            output: self.output,
            output_norm: self.output_norm,
        }
    }
}

/// One layer that gives the outputs of three beside each other.
fn stacked<B: Backend>(linears: [Linear<B>; 3]) -> Linear<B> {
    let weights = linears.iter().map(|linear| linear.weight.val()).collect();
    let biases = linears.iter().flat_map(|linear| &linear.bias);
    let biases: Vec<_> = biases.map(|bias| bias.val()).collect();
    Linear {
        weight: Param::from_tensor(Tensor::cat(weights, 0)),
        bias: Some(Param::from_tensor(Tensor::cat(biases, 0))),
        adapter: None,
    }
}
