//! Llama checkpoints in Hugging Face's layout: names, loading, saving, and a fresh model.

use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

use super::config::{ConfigError, LlamaConfig};
use super::nn::{Linear, RmsNorm};
use super::rope::Rope;
use super::transformer::{Attention, Block, Llama, Mlp};
use crate::checkpoint::{self, Checkpoint, LazyTensor, SafetensorsError};
use crate::tokenizer;

/// Why a Llama folder cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{dir}: {source}")]
    Config { dir: PathBuf, source: ConfigError },
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error("{path} does not fit its config.json:\n  {}", problems.join("\n  "))]
    Mismatch {
        path: PathBuf,
        problems: Vec<String>,
    },
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// The Hugging Face name of the parameter at a module path.
pub fn hf_name(path: &[String]) -> String {
    let path = path.join(".");
    match path.as_str() {
        "lm_head.weight" => path,
        "embed_tokens" => "model.embed_tokens.weight".into(),
        _ => format!("model.{path}"),
    }
}

/// Where a model under construction gets its tensors from.
trait Source<B: Backend> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError>;

    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Param<Tensor<B, D>>, CheckpointError> {
        Ok(Param::from_tensor(self.tensor(name, shape)?))
    }

    fn linear(
        &mut self,
        name: &str,
        [output, input]: [usize; 2],
        bias: bool,
    ) -> Result<Linear<B>, CheckpointError> {
        Ok(Linear {
            weight: self.param(&format!("{name}.weight"), [output, input])?,
            bias: match bias {
                true => Some(self.param(&format!("{name}.bias"), [output])?),
                false => None,
            },
        })
    }

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

struct FromCheckpoint<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    dtype: DType,
    device: &'a B::Device,
}

impl<B: Backend> Source<B> for FromCheckpoint<'_, B> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        // Presence and shape were checked for the whole checkpoint before.
        match self.checkpoint.load(name, self.dtype)? {
            Some(data) => Ok(Tensor::from_data(data, (self.device, self.dtype))),
            None => Err(CheckpointError::Mismatch {
                path: self.checkpoint.path().into(),
                problems: vec![format!("missing: {name} {shape:?}")],
            }),
        }
    }
}

/// Collects names and shapes only.
#[derive(Default)]
struct Expected(Vec<(String, Vec<usize>)>);

impl<B: Backend> Source<B> for Expected {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        self.0.push((name.into(), shape.to_vec()));
        Ok(Tensor::zeros([1; D], &B::Device::default()))
    }
}

struct Fresh<'a, B: Backend> {
    generator: ChaCha12Rng,
    std: f32,
    device: &'a B::Device,
}

impl<B: Backend> Source<B> for Fresh<'_, B> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        let count = shape.iter().product();
        let values: Vec<f32> = if name.ends_with("norm.weight") {
            vec![1.0; count]
        } else if name.ends_with(".bias") {
            vec![0.0; count]
        } else {
            (0..count)
                .map(|_| self.std * normal(&mut self.generator))
                .collect()
        };
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            (self.device, DType::F32),
        ))
    }
}

/// A standard normal number by Box and Muller's transform.
fn normal(generator: &mut ChaCha12Rng) -> f32 {
    use rand::Rng;
    let radius: f64 = 1.0 - generator.random::<f64>();
    let angle: f64 = generator.random();
    ((-2.0 * radius.ln()).sqrt() * (2.0 * std::f64::consts::PI * angle).cos()) as f32
}

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
        if !dir.is_dir() {
            return Err(SafetensorsError::NoFolder { dir: dir.into() }.into());
        }
        let config = LlamaConfig::from_dir(dir).map_err(|source| CheckpointError::Config {
            dir: dir.into(),
            source,
        })?;
        let checkpoint = Checkpoint::open(dir)?;
        check_tensors(&checkpoint, &config, &expected_tensors::<B>(&config)?)?;
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
        let mut collector = Collect::<B> {
            path: Vec::new(),
            dtype,
            tensors: Vec::new(),
            backend: std::marker::PhantomData,
        };
        self.visit(&mut collector);
        checkpoint::write(dir, &collector.tensors, checkpoint::MAX_SHARD_BYTES)?;
        let name = if dtype == DType::BF16 {
            "bfloat16"
        } else {
            "float32"
        };
        let text = format!("{:#}\n", config.to_json(name));
        let write = |path: PathBuf, result: std::io::Result<()>| {
            result.map_err(|source| CheckpointError::Write { path, source })
        };
        let path = dir.join("config.json");
        write(path.clone(), std::fs::write(&path, text))?;
        let mut files = tokenizer::files_to_carry(template);
        files.push(template.join("generation_config.json"));
        for file in files {
            if let Some(name) = file.file_name().filter(|_| file.is_file()) {
                let path = dir.join(name);
                write(path.clone(), std::fs::copy(&file, &path).map(|_| ()))?;
            }
        }
        Ok(())
    }
}

fn check_tensors(
    checkpoint: &Checkpoint,
    config: &LlamaConfig,
    expected: &[(String, Vec<usize>)],
) -> Result<(), CheckpointError> {
    let found: std::collections::BTreeMap<&str, &[usize]> = checkpoint.shapes().collect();
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match found.get(name.as_str()) {
            None => problems.push(format!("missing: {name} {shape:?}")),
            Some(other) if other != shape => {
                problems.push(format!(
                    "wrong shape: {name} is {other:?}, expected {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    for name in found.keys() {
        // Older exports carry the rotary table, tied ones a copy of the embeddings.
        let harmless = name.ends_with("rotary_emb.inv_freq")
            || (config.tie_word_embeddings && *name == "lm_head.weight");
        if !harmless && !expected.iter().any(|(known, _)| known == name) {
            problems.push(format!("unexpected: {name}"));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(CheckpointError::Mismatch {
            path: checkpoint.path().into(),
            problems,
        }),
    }
}

/// Every parameter's id and Hugging Face name, in the order of the module.
pub fn parameter_names<B: Backend>(model: &Llama<B>) -> Vec<(ParamId, String)> {
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
        self.1.push((param.id, hf_name(&self.0)));
    }
}

/// Gathers every parameter of a model under its Hugging Face name.
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
