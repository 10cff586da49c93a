//! PairRM checkpoints in Hugging Face's layout: names and loading.

use std::path::Path;

use super::config::PairRmConfig;
use super::encoder::{Layer, PairRm};
use super::packing::Packer;
use crate::checkpoint::Checkpoint;
use crate::load_error::CheckpointError;
use crate::nn::{LayerNorm, Linear};
use crate::ops::ModelOps;
use crate::tokenizer::{self, Tokenizer, TokenizerError};
use crate::weights::{FromCheckpoint, NamesAndShapes, TensorReader, TensorSource, check_tensors};
use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};

/// Why a PairRM folder cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PairRmError {
    /// A config or weights that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tokenizer that cannot be used.
    #[error("the folder of a judge: {0}")]
    Tokenizer(#[from] TokenizerError),
}

impl<B: ModelOps> PairRm<B> {
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
        let tensors = tensors(&config);
        let list = || tensors.iter().map(|(name, shape)| (&name[..], &shape[..]));
        // Saved along by some versions of transformers; it holds 0, 1, 2, …
        let harmless = |name: &str| name.ends_with("embeddings.position_ids");
        check_tensors(&checkpoint, harmless, list())?;
        let source = FromCheckpoint {
            checkpoint: &checkpoint,
            dtype,
        };
        let reader = TensorReader::new(list(), source, device);
        let model = parts(reader, &config)?.assemble(&config);
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

/// Names and shapes of a checkpoint's tensors, in the order in which [`parts`] takes them.
fn tensors(c: &PairRmConfig) -> NamesAndShapes {
    let (hidden, inner) = (c.hidden_size, c.intermediate_size);
    let words = "pretrained_model.embeddings";
    let encoder = "pretrained_model.encoder";
    let mut list = Vec::new();
    let mut add = |name: String, shape: &[usize]| list.push((name, shape.to_vec()));
    add(
        format!("{words}.word_embeddings.weight"),
        &[c.vocab_size, hidden],
    );
    for part in ["weight", "bias"] {
        add(format!("{words}.LayerNorm.{part}"), &[hidden]);
    }
    add(
        format!("{encoder}.rel_embeddings.weight"),
        &[2 * c.position_buckets, hidden],
    );
    for part in ["weight", "bias"] {
        add(format!("{encoder}.LayerNorm.{part}"), &[hidden]);
    }
    let of_layer: [(&str, &[usize]); 8] = [
        ("attention.self.query_proj", &[hidden, hidden]),
        ("attention.self.key_proj", &[hidden, hidden]),
        ("attention.self.value_proj", &[hidden, hidden]),
        ("attention.output.dense", &[hidden, hidden]),
        ("attention.output.LayerNorm", &[hidden]),
        ("intermediate.dense", &[inner, hidden]),
        ("output.dense", &[hidden, inner]),
        ("output.LayerNorm", &[hidden]),
    ];
    for i in 0..c.num_hidden_layers {
        for (name, shape) in of_layer {
            add(format!("{encoder}.layer.{i}.{name}.weight"), shape);
            add(format!("{encoder}.layer.{i}.{name}.bias"), &shape[..1]);
        }
    }
    for (name, shape) in [
        ("head_layer.1", [hidden, 2 * hidden]),
        ("head_layer.4", [1, hidden]),
    ] {
        add(format!("{name}.weight"), &shape);
        add(format!("{name}.bias"), &shape[..1]);
    }
    list
}

fn parts<B: Backend, S: TensorSource>(
    mut reader: TensorReader<'_, B, S>,
    c: &PairRmConfig,
) -> Result<Parts<B>, CheckpointError> {
    Ok(Parts {
        word_embeddings: reader.param()?,
        embeddings_norm: norm(&mut reader, c)?,
        rel_embeddings: reader.tensor()?,
        rel_norm: norm(&mut reader, c)?,
        layers: (0..c.num_hidden_layers)
            .map(|_| layer_parts(&mut reader, c))
            .collect::<Result<_, _>>()?,
        head_in: reader.linear()?,
        head_out: reader.linear()?,
    })
}

fn layer_parts<B: Backend, S: TensorSource>(
    reader: &mut TensorReader<'_, B, S>,
    c: &PairRmConfig,
) -> Result<LayerParts<B>, CheckpointError> {
    Ok(LayerParts {
        query: reader.linear()?,
        key: reader.linear()?,
        value: reader.linear()?,
        attention_out: reader.linear()?,
        attention_norm: norm(reader, c)?,
        intermediate: reader.linear()?,
        output: reader.linear()?,
        output_norm: norm(reader, c)?,
    })
}

fn norm<B: Backend, S: TensorSource>(
    reader: &mut TensorReader<'_, B, S>,
    c: &PairRmConfig,
) -> Result<LayerNorm<B>, CheckpointError> {
    Ok(LayerNorm {
        weight: reader.param()?,
        bias: reader.param()?,
        eps: c.layer_norm_eps,
    })
}

impl<B: ModelOps> Parts<B> {
    /// Puts together what is computed together, and computes what no text changes.
    fn assemble(self, c: &PairRmConfig) -> PairRm<B> {
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
        }
    }
}

impl<B: ModelOps> LayerParts<B> {
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
        packed: None,
        adapter: None,
    }
}
