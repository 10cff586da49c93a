//! Llama checkpoints in Hugging Face's layout: loading, saving, and a fresh model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};
use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use super::attention::Attention;
use super::block::{Block, Mlp};
use super::config::LlamaConfig;
use super::model::Llama;
use super::names::use_plain_names;
use super::parameters::{Parameter, ParameterTable, ParameterVisitor, visit_parameters};
use super::rope::inverse_frequencies;
use crate::checkpoint::{self, Checkpoint, LazyTensor, SafetensorsError, Share};
pub use crate::load_error::CheckpointError;
use crate::nn::RmsNorm;
use crate::tokenizer;
use crate::weights::{Fresh, FromCheckpoint, TensorReader, TensorSource, check_tensors};

/// A Llama under construction: takes tensors in the order of the table.
struct Builder<'a, B: Backend, S> {
    reader: TensorReader<'a, B, S>,
    config: &'a LlamaConfig,
}

impl<B: Backend, S: TensorSource> Builder<'_, B, S> {
    fn norm(&mut self) -> Result<RmsNorm<B>, CheckpointError> {
        Ok(RmsNorm {
            weight: self.reader.param()?,
            eps: self.config.rms_norm_eps,
        })
    }

    fn block(&mut self) -> Result<Block<B>, CheckpointError> {
        Ok(Block {
            input_layernorm: self.norm()?,
            self_attn: Attention {
                q_proj: self.reader.linear()?,
                k_proj: self.reader.linear()?,
                v_proj: self.reader.linear()?,
                o_proj: self.reader.linear()?,
                heads: self.config.num_attention_heads,
                kv_heads: self.config.num_key_value_heads,
                head_dim: self.config.head_dim,
            },
            post_attention_layernorm: self.norm()?,
            mlp: Mlp {
                gate_proj: self.reader.linear()?,
                up_proj: self.reader.linear()?,
                down_proj: self.reader.linear()?,
            },
        })
    }
}

impl<B: Backend> Llama<B> {
    /// A model of a configuration with the tensors of `source`.
    pub(crate) fn build(
        config: &LlamaConfig,
        source: impl TensorSource,
        device: &B::Device,
    ) -> Result<Self, CheckpointError> {
        let parameters = ParameterTable::new(config);
        let list = parameters.all().iter().map(Parameter::name_and_shape);
        let mut builder = Builder::<B, _> {
            reader: TensorReader::new(list, source, device),
            config,
        };
        let embed_tokens = builder.reader.param()?;
        let blocks = (0..config.num_hidden_layers).map(|_| builder.block());
        let layers = blocks.collect::<Result<_, _>>()?;
        let norm = builder.norm()?;
        let lm_head = (!config.tie_word_embeddings).then(|| builder.reader.linear());
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head: lm_head.transpose()?,
            rope: inverse_frequencies(config),
            parameters: Arc::new(parameters),
        })
    }

    /// A model with random weights: normal with `initializer_range`, as transformers does.
    pub fn init(
        config: &LlamaConfig,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, CheckpointError> {
        let source = Fresh {
            generator: ChaCha12Rng::seed_from_u64(seed),
            std: config.initializer_range as f32,
        };
        Self::build(config, source, device)
    }

    /// Loads a folder's weights in `dtype`; every misfit is listed in one error.
    pub fn load(
        dir: &Path,
        dtype: DType,
        device: &B::Device,
    ) -> Result<(LlamaConfig, Self), CheckpointError> {
        let (config, checkpoint) = open(dir)?;
        let source = FromCheckpoint {
            checkpoint: &checkpoint,
            dtype,
        };
        let model = Self::build(&config, source, device)?;
        Ok((config, model))
    }

    /// Writes a folder that transformers and vLLM load: weights in `dtype`, config, and the
    /// tokenizer and generation files of `template` unchanged. `dir` must exist.
    pub fn save(
        &self,
        dir: &Path,
        config: &LlamaConfig,
        dtype: DType,
        template: &Path,
    ) -> Result<(), CheckpointError> {
        self.save_share(dir, config, dtype, template, Share::WHOLE)
    }

    /// The same by several processes together, each of which writes its share of the files.
    pub fn save_share(
        &self,
        dir: &Path,
        config: &LlamaConfig,
        dtype: DType,
        template: &Path,
        share: Share,
    ) -> Result<(), CheckpointError> {
        let tensors = lazy_tensors(self, dtype, |_| true);
        write_folder(dir, &tensors, config, dtype, template, share)
    }
}

/// The vocabulary projection's weight.
const HEAD: &str = "lm_head.weight";
const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// Opens a folder whose weights fit its configuration; every misfit is listed in one error.
pub(crate) fn open(dir: &Path) -> Result<(LlamaConfig, Checkpoint), CheckpointError> {
    if !dir.is_dir() {
        return Err(SafetensorsError::NoFolder { dir: dir.into() }.into());
    }
    let mut config = LlamaConfig::from_dir(dir).map_err(|source| CheckpointError::Config {
        dir: dir.into(),
        source,
    })?;
    let checkpoint = open_weights(dir, &mut config)?;
    let harmless = |name: &str| is_unused(name) || (config.tie_word_embeddings && name == HEAD);
    let table = ParameterTable::new(&config);
    let expected = table.all().iter().map(Parameter::name_and_shape);
    check_tensors(&checkpoint, harmless, expected)?;
    Ok((config, checkpoint))
}

/// The configuration of a folder as its weights make it: a projection of its own is used although
/// the file says that it is tied. The weights need not be there, nor whole: plans are made before.
pub fn config_in_effect(dir: &Path) -> Result<LlamaConfig, CheckpointError> {
    let mut config = LlamaConfig::from_dir(dir).map_err(|source| CheckpointError::Config {
        dir: dir.into(),
        source,
    })?;
    if config.tie_word_embeddings {
        open_weights(dir, &mut config).ok();
    }
    Ok(config)
}

/// The weights by their plain names. Where the configuration ties projection and embeddings, what
/// transformers makes of the file decides: a projection with other values is used, and the only
/// one of the two is taken for both.
fn open_weights(dir: &Path, config: &mut LlamaConfig) -> Result<Checkpoint, CheckpointError> {
    let mut checkpoint = Checkpoint::open(dir)?;
    use_plain_names(&mut checkpoint)?;
    if config.tie_word_embeddings {
        let has = |wanted| checkpoint.shapes().any(|(name, _)| name == wanted);
        match (has(EMBEDDINGS), has(HEAD)) {
            (true, true) => config.tie_word_embeddings = checkpoint.same(EMBEDDINGS, HEAD)?,
            (false, true) => checkpoint.rename(|name| match name {
                HEAD => EMBEDDINGS.into(),
                other => other.into(),
            })?,
            _ => {}
        }
    }
    Ok(checkpoint)
}

/// Tensors on which no logit depends: rotary tables of older exports, and a value head that
/// reinforcement learning left.
pub(super) fn is_unused(name: &str) -> bool {
    let rotary = ["inv_freq", "original_inv_freq", "cos_cached", "sin_cached"];
    let last = name.rsplit_once("rotary_emb.").map(|(_, last)| last);
    last.is_some_and(|last| rotary.contains(&last)) || name.starts_with("v_head.")
}

/// Writes weights, which are in `dtype`, config, and the tokenizer and generation files of
/// `template` into `dir`, which must exist.
pub(super) fn write_folder(
    dir: &Path,
    tensors: &[LazyTensor<'_>],
    config: &LlamaConfig,
    dtype: DType,
    template: &Path,
    share: Share,
) -> Result<(), CheckpointError> {
    checkpoint::write(dir, tensors, checkpoint::MAX_SHARD_BYTES, share)?;
    if share.index > 0 {
        return Ok(());
    }
    let name = if dtype == DType::BF16 {
        "bfloat16"
    } else {
        "float32"
    };
    let text = format!("{:#}\n", config.to_json(name));
    let path = dir.join("config.json");
    std::fs::write(&path, text).map_err(|source| CheckpointError::Write { path, source })?;
    let mut files = tokenizer::files_to_carry(template);
    files.push(template.join("generation_config.json"));
    copy_files(files, dir)
}

/// Copies those of `files` that are there into `dir`.
pub(super) fn copy_files(files: Vec<PathBuf>, dir: &Path) -> Result<(), CheckpointError> {
    for file in files {
        if let Some(name) = file.file_name().filter(|_| file.is_file()) {
            let path = dir.join(name);
            std::fs::copy(&file, &path)
                .map_err(|source| CheckpointError::Write { path, source })?;
        }
    }
    Ok(())
}

/// The parameters of a model for which `wanted` holds, to be written in `dtype`.
pub(super) fn lazy_tensors<'a, B: Backend>(
    model: &Llama<B>,
    dtype: DType,
    wanted: impl Fn(&Parameter) -> bool,
) -> Vec<LazyTensor<'a>> {
    let mut collected = Collect {
        table: &model.parameters,
        wanted,
        dtype,
        tensors: Vec::new(),
    };
    visit_parameters(model, 0, &mut collected);
    collected.tensors
}

struct Collect<'t, 'a, W> {
    table: &'t ParameterTable,
    wanted: W,
    dtype: DType,
    tensors: Vec<LazyTensor<'a>>,
}

impl<B: Backend, W: Fn(&Parameter) -> bool> ParameterVisitor<B> for Collect<'_, '_, W> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>) {
        let entry = &self.table.all()[index];
        if (self.wanted)(entry) {
            let tensor = parameter.val();
            self.tensors.push(LazyTensor {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                dtype: self.dtype,
                fetch: Box::new(move || tensor.clone().into_data()),
            });
        }
    }
}
