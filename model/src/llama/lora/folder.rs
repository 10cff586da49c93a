//! Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, backend::Backend};
use serde_json::{Map, Value, json};

use super::{Lora, PEFT_PREFIX, expected_adapter, last_part, targets};
use crate::checkpoint::{Checkpoint, LazyTensor, write_file};
use crate::config_json::ADAPTER_CONFIG;
use crate::llama::hf::{copy_files, lazy_tensors};
use crate::llama::{Llama, LlamaConfig};
use crate::tokenizer;
use crate::weights::{CheckpointError, check_tensors};

const WEIGHTS: &str = "adapter_model.safetensors";

/// Settings of PEFT that change what an adapter computes, and all that is computed here.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("use_dora", &["false"]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["false"]),
    ("lora_bias", &["false"]),
    ("fan_in_fan_out", &["false"]),
    ("bias", &["\"none\""]),
    ("modules_to_save", &["[]"]),
    ("rank_pattern", &["{}"]),
    ("alpha_pattern", &["{}"]),
    ("layers_to_transform", &["[]"]),
    ("exclude_modules", &["[]"]),
    ("layer_replication", &["[]"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("target_parameters", &["[]"]),
    ("alora_invocation_tokens", &["[]"]),
    ("arrow_config", &[]),
    ("kasa_config", &[]),
    ("monteclora_config", &[]),
    // Others change the base's weights before the training.
    (
        "init_lora_weights",
        &["true", "false", "\"gaussian\"", "\"orthogonal\""],
    ),
];

/// Why a folder cannot be used as an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error(
        "{dir} holds no {ADAPTER_CONFIG}; expected an adapter as PEFT saves it, or as `sppo train` with [train.lora] does",
        dir = dir.display()
    )]
    NotAdapter { dir: PathBuf },
    #[error("{dir} holds no {WEIGHTS}; other formats are not read, save the adapter as safetensors", dir = dir.display())]
    NoWeights { dir: PathBuf },
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is no JSON object of settings: {message}", path = path.display())]
    Json { path: PathBuf, message: String },
    #[error("{path}: {key} is {found}; {wanted}", path = path.display())]
    Value {
        path: PathBuf,
        key: &'static str,
        found: String,
        wanted: String,
    },
    #[error("{path}: {key} = {found} is not supported; {hint}", path = path.display())]
    Unsupported {
        path: PathBuf,
        key: &'static str,
        found: String,
        hint: &'static str,
    },
    #[error(
        "{path} does not fit the base model {base}:\n  {}",
        problems.join("\n  "),
        path = path.display(),
        base = base.display()
    )]
    Misfit {
        path: PathBuf,
        base: PathBuf,
        problems: Vec<String>,
    },
}

/// An adapter folder whose settings and tensors fit a base model.
pub struct AdapterFolder {
    pub lora: Lora,
    /// Paths of the layers that it changes, `layers.N.…`.
    pub(super) layers: Vec<String>,
    pub(super) weights: Checkpoint,
}

impl AdapterFolder {
    /// Opens `dir` for the model in the folder `base`, whose configuration is `config`; refuses
    /// what is not computed here and lists every tensor that does not fit.
    pub fn open<B: Backend>(
        dir: &Path,
        base: &Path,
        config: &LlamaConfig,
    ) -> Result<Self, CheckpointError> {
        let path = dir.join(ADAPTER_CONFIG);
        if !path.is_file() {
            return Err(AdapterError::NotAdapter { dir: dir.into() }.into());
        }
        let settings = Settings {
            map: read_object(&path)?,
            path: &path,
        };
        settings.refuse_unsupported()?;
        let file = dir.join(WEIGHTS);
        if !file.is_file() {
            return Err(AdapterError::NoWeights { dir: dir.into() }.into());
        }
        let weights = Checkpoint::open_file(&file)?;
        let mut lora = settings.lora()?;
        let layers = match lora.targets.is_empty() {
            // Targets that are a pattern: the tensors say which layers it met.
            true => layers_in(&weights),
            false => lora.layers(config),
        };
        if lora.targets.is_empty() {
            let met = |target: &&str| layers.iter().any(|path| last_part(path) == *target);
            lora.targets = targets().filter(met).map(String::from).collect();
        }
        let expected = expected_adapter::<B>(config, lora.rank, &layers)?;
        check_tensors(&weights, |_| false, &expected).map_err(|error| match error {
            CheckpointError::Mismatch { path, problems } => AdapterError::Misfit {
                path,
                base: base.into(),
                problems,
            }
            .into(),
            other => other,
        })?;
        Ok(Self {
            lora,
            layers,
            weights,
        })
    }
}

/// Layers that an adapter file holds tensors of.
fn layers_in(weights: &Checkpoint) -> Vec<String> {
    let prefix = format!("{PEFT_PREFIX}model.");
    let layer = |name: &str| {
        let path = name.strip_prefix(&prefix)?.strip_suffix(".lora_A.weight")?;
        Some(path.to_string())
    };
    weights
        .shapes()
        .filter_map(|(name, _)| layer(name))
        .collect()
}

fn read_object(path: &Path) -> Result<Map<String, Value>, AdapterError> {
    let text = std::fs::read_to_string(path).map_err(|source| AdapterError::Read {
        path: path.into(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|error| AdapterError::Json {
        path: path.into(),
        message: error.to_string(),
    })
}

/// A parsed `adapter_config.json`.
struct Settings<'a> {
    map: Map<String, Value>,
    path: &'a Path,
}

impl Settings<'_> {
    fn value(&self, key: &'static str, wanted: String) -> AdapterError {
        AdapterError::Value {
            path: self.path.into(),
            key,
            found: self.map.get(key).unwrap_or(&Value::Null).to_string(),
            wanted,
        }
    }

    fn refuse_unsupported(&self) -> Result<(), AdapterError> {
        let kind = self.map.get("peft_type");
        if kind.and_then(Value::as_str) != Some("LORA") {
            return Err(self.value("peft_type", "only \"LORA\" can be read".into()));
        }
        for (key, neutral) in NEUTRAL {
            if let Some(value) = self.map.get(*key)
                && !value.is_null()
                && !neutral.contains(&value.to_string().as_str())
            {
                return Err(AdapterError::Unsupported {
                    path: self.path.into(),
                    key,
                    found: value.to_string(),
                    hint: "it changes what the adapter computes and this program does not compute it; merge it with PEFT",
                });
            }
        }
        Ok(())
    }

    /// Without targets where they are a pattern.
    fn lora(&self) -> Result<Lora, AdapterError> {
        let rank = self.map.get("r").and_then(Value::as_u64);
        let rank = rank.filter(|rank| (1..=1 << 16).contains(rank));
        let alpha = self.map.get("lora_alpha").and_then(Value::as_f64);
        let rslora = match self.map.get("use_rslora") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(on)) => *on,
            Some(_) => return Err(self.value("use_rslora", "expected true or false".into())),
        };
        Ok(Lora {
            rank: rank.ok_or_else(|| self.value("r", "expected a rank of 1 or more".into()))?
                as usize,
            alpha: alpha.ok_or_else(|| self.value("lora_alpha", "expected a number".into()))?,
            targets: self.targets()?,
            rank_stabilised: rslora,
        })
    }

    fn targets(&self) -> Result<Vec<String>, AdapterError> {
        let known: Vec<&str> = targets().collect();
        let refused = || {
            let known = known.join(", ");
            self.value("target_modules", format!("expected layers out of {known}"))
        };
        match self.map.get("target_modules") {
            Some(Value::String(_)) => Ok(Vec::new()),
            Some(Value::Array(names)) if !names.is_empty() => names
                .iter()
                .map(|name| match name.as_str() {
                    Some(name) if known.contains(&name) => Ok(name.to_string()),
                    _ => Err(refused()),
                })
                .collect(),
            _ => Err(refused()),
        }
    }
}

impl<B: Backend> Llama<B> {
    /// Writes the adapters of this model as PEFT does, with the tokenizer files of `template`.
    /// `base` is the base model's folder or repository id; `dir` must exist.
    pub fn save_adapters(
        &self,
        dir: &Path,
        lora: &Lora,
        base: &str,
        template: &Path,
    ) -> Result<(), CheckpointError> {
        let tensors = lazy_tensors(self, DType::F32);
        let is_adapter = |tensor: &&LazyTensor<'_>| tensor.name.starts_with(PEFT_PREFIX);
        let tensors: Vec<&LazyTensor<'_>> = tensors.iter().filter(is_adapter).collect();
        write_file(&dir.join(WEIGHTS), &tensors)?;
        let path = dir.join(ADAPTER_CONFIG);
        let text = format!("{:#}\n", config_json(lora, base));
        std::fs::write(&path, text).map_err(|source| CheckpointError::Write { path, source })?;
        copy_files(tokenizer::files_to_carry(template), dir)
    }
}

/// The settings as PEFT writes them.
fn config_json(lora: &Lora, base: &str) -> Value {
    let alpha = match lora.alpha.fract() == 0.0 {
        true => json!(lora.alpha as i64),
        false => json!(lora.alpha),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": null,
        "inference_mode": true,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": lora.targets,
        "use_rslora": lora.rank_stabilised,
        "use_dora": false,
        "lora_bias": false,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "layers_to_transform": null,
        "layers_pattern": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}
