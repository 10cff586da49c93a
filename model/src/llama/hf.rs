//! Llama checkpoints in Hugging Face's layout: names, loading, saving, and a fresh model.

use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Tensor, backend::Backend};
use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;

use super::config::LlamaConfig;
use super::lora::peft_name_of_parameter;
use super::rope::Rope;
use super::transformer::{Attention, Block, Llama, Mlp};
use crate::checkpoint::{self, Checkpoint, LazyTensor, SafetensorsError};
use crate::nn::RmsNorm;
use crate::tokenizer;
pub use crate::weights::CheckpointError;
use crate::weights::{Expected, Fresh, FromCheckpoint, Source, check_tensors};

/// The Hugging Face name of the parameter at a module path; an adapter's is PEFT's.
pub fn hf_name(path: &[String]) -> String {
    let path = path.join(".");
    if let Some(name) = peft_name_of_parameter(&path) {
        return name;
    }
    match path.as_str() {
        "lm_head.weight" => path,
        "embed_tokens" => "model.embed_tokens.weight".into(),
        _ => format!("model.{path}"),
    }
}

/// The parts of a Llama under construction.
pub(crate) trait LlamaSource<B: Backend>: Source<B> {
    fn norm(&mut self, name: &str, config: &LlamaConfig) -> Result<RmsNorm<B>, CheckpointError> {
        Ok(RmsNorm {
            weight: self.param(&format!("{name}.weight"), [config.hidden_size])?,
            eps: config.rms_norm_eps,
        })
    }

    fn block(&mut self, index: usize, c: &LlamaConfig) -> Result<Block<B>, CheckpointError> {
        let at = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, ffn) = (c.hidden_size, c.intermediate_size);
        let q_width = c.num_attention_heads * c.head_dim;
        let kv_width = c.num_key_value_heads * c.head_dim;
        let bias = c.attention_bias;
        Ok(Block {
            input_layernorm: self.norm(&at("input_layernorm"), c)?,
            self_attn: Attention {
                q_proj: self.linear(&at("self_attn.q_proj"), [q_width, hidden], bias)?,
                k_proj: self.linear(&at("self_attn.k_proj"), [kv_width, hidden], bias)?,
                v_proj: self.linear(&at("self_attn.v_proj"), [kv_width, hidden], bias)?,
                o_proj: self.linear(&at("self_attn.o_proj"), [hidden, q_width], bias)?,
                heads: c.num_attention_heads,
                kv_heads: c.num_key_value_heads,
                head_dim: c.head_dim,
            },
            post_attention_layernorm: self.norm(&at("post_attention_layernorm"), c)?,
            mlp: Mlp {
                gate_proj: self.linear(&at("mlp.gate_proj"), [ffn, hidden], c.mlp_bias)?,
                up_proj: self.linear(&at("mlp.up_proj"), [ffn, hidden], c.mlp_bias)?,
                down_proj: self.linear(&at("mlp.down_proj"), [hidden, ffn], c.mlp_bias)?,
            },
        })
    }

    fn llama(&mut self, c: &LlamaConfig, device: &B::Device) -> Result<Llama<B>, CheckpointError> {
        let vocabulary = [c.vocab_size, c.hidden_size];
        Ok(Llama {
            embed_tokens: self.param("model.embed_tokens.weight", vocabulary)?,
            layers: (0..c.num_hidden_layers)
                .map(|i| self.block(i, c))
                .collect::<Result<_, _>>()?,
            norm: self.norm("model.norm", c)?,
            lm_head: match c.tie_word_embeddings {
                true => None,
                false => Some(self.linear("lm_head", vocabulary, false)?),
            },
            rope: Rope::new(c, device),
        })
    }
}

impl<B: Backend, S: Source<B>> LlamaSource<B> for S {}

/// Names and shapes of all tensors that a checkpoint of `config` holds.
pub fn expected_tensors<B: Backend>(
    config: &LlamaConfig,
) -> Result<Vec<(String, Vec<usize>)>, CheckpointError> {
    let mut expected = Expected::default();
    // One position is enough where only names are wanted.
    let small = LlamaConfig {
        max_position_embeddings: 1,
        ..config.clone()
    };
    let _: Llama<B> = expected.llama(&small, &B::Device::default())?;
    Ok(expected.0)
}

impl<B: Backend> Llama<B> {
    /// A model with random weights: normal with `initializer_range`, as transformers does.
    pub fn init(
        config: &LlamaConfig,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, CheckpointError> {
        Fresh {
            generator: ChaCha12Rng::seed_from_u64(seed),
            std: config.initializer_range as f32,
            device,
        }
        .llama(config, device)
    }

    /// Loads a folder's weights in `dtype`; every misfit is listed in one error.
    pub fn load(
        dir: &Path,
        dtype: DType,
        device: &B::Device,
    ) -> Result<(LlamaConfig, Self), CheckpointError> {
        let (config, checkpoint) = open::<B>(dir)?;
        let mut source = FromCheckpoint::<B> {
            checkpoint: &checkpoint,
            dtype,
            device,
        };
        let model = source.llama(&config, device)?;
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
        write_folder(dir, &lazy_tensors(self, dtype), config, dtype, template)
    }
}

/// Opens a folder whose weights fit its configuration; every misfit is listed in one error.
pub(super) fn open<B: Backend>(dir: &Path) -> Result<(LlamaConfig, Checkpoint), CheckpointError> {
    if !dir.is_dir() {
        return Err(SafetensorsError::NoFolder { dir: dir.into() }.into());
    }
    let config = LlamaConfig::from_dir(dir).map_err(|source| CheckpointError::Config {
        dir: dir.into(),
        source,
    })?;
    let checkpoint = Checkpoint::open(dir)?;
    // Older exports carry the rotary table, tied ones a copy of the embeddings.
    let harmless = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    check_tensors(&checkpoint, harmless, &expected_tensors::<B>(&config)?)?;
    Ok((config, checkpoint))
}

/// Writes weights, which are in `dtype`, config, and the tokenizer and generation files of
/// `template` into `dir`, which must exist.
pub(super) fn write_folder(
    dir: &Path,
    tensors: &[LazyTensor<'_>],
    config: &LlamaConfig,
    dtype: DType,
    template: &Path,
) -> Result<(), CheckpointError> {
    checkpoint::write(dir, tensors, checkpoint::MAX_SHARD_BYTES)?;
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

/// Id and Hugging Face name of every parameter that is trained, in the order of the module.
pub fn trained_parameters<B: Backend>(model: &Llama<B>) -> Vec<(ParamId, String)> {
    let mut names = Names(Vec::new(), Vec::new());
    model.visit(&mut names);
    names.1
}

/// The path so far, and what was found.
struct Names(Vec<String>, Vec<(ParamId, String)>);

impl<B: Backend> ModuleVisitor<B> for Names {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.0.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.0.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if param.is_require_grad() {
            self.1.push((param.id, hf_name(&self.0)));
        }
    }
}

/// Every parameter of a model under its Hugging Face name, to be written in `dtype`; adapters under
/// PEFT's.
pub(super) fn lazy_tensors<'a, B: Backend>(model: &Llama<B>, dtype: DType) -> Vec<LazyTensor<'a>> {
    let mut collector = Collect::<B> {
        path: Vec::new(),
        dtype,
        tensors: Vec::new(),
        backend: std::marker::PhantomData,
    };
    model.visit(&mut collector);
    collector.tensors
}

struct Collect<'a, B: Backend> {
    path: Vec<String>,
    dtype: DType,
    tensors: Vec<LazyTensor<'a>>,
    backend: std::marker::PhantomData<B>,
}

impl<B: Backend> ModuleVisitor<B> for Collect<'_, B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        self.tensors.push(LazyTensor {
            name: hf_name(&self.path),
            shape: tensor.dims().to_vec(),
            dtype: self.dtype,
            fetch: Box::new(move || tensor.clone().into_data()),
        });
    }
}
