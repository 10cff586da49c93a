//! Adapter folders in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::{DType, backend::Backend};
use serde_json::{Map, Value, json};

use super::Lora;
use super::targets::{last_part, targets};
use crate::checkpoint::{Checkpoint, LazyTensor, write_file};
use crate::config_json::ADAPTER_CONFIG;
use crate::llama::config::LlamaConfig;
use crate::llama::hf::{copy_files, lazy_tensors};
use crate::llama::model::Llama;
use crate::llama::parameters::{Parameter, ParameterTable, peft_name};
use crate::load_error::{ADAPTER_WEIGHTS, AdapterError, CheckpointError};
use crate::tokenizer;
use crate::weights::check_tensors;

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

/// An adapter folder whose settings and tensors fit a base model.
pub struct AdapterFolder {
    /// Shape and place of its adapters; a pattern of targets is resolved to names.
    pub lora: Lora,
    /// The base's parameters and its own.
    pub(super) parameters: ParameterTable,
    pub(super) weights: Checkpoint,
}

impl AdapterFolder {
    /// Opens `dir` for the model in the folder `base`, whose configuration is `config`; refuses
    /// what is not computed here and lists every tensor that does not fit.
    pub fn open(dir: &Path, base: &Path, config: &LlamaConfig) -> Result<Self, CheckpointError> {
        let path = dir.join(ADAPTER_CONFIG);
        if !path.is_file() {
            return Err(AdapterError::NotAdapter { dir: dir.into() }.into());
        }
        let settings = Settings {
            map: read_object(&path)?,
            path: &path,
        };
        settings.refuse_unsupported()?;
        let file = dir.join(ADAPTER_WEIGHTS);
        if !file.is_file() {
            return Err(AdapterError::NoWeights { dir: dir.into() }.into());
        }
        let weights = Checkpoint::open_file(&file)?;
        let mut lora = settings.lora()?;
        let parameters = match lora.targets.is_empty() {
            // Targets that are a pattern: the tensors say which layers it met.
            true => met_by_pattern(config, &lora, &weights),
            false => lora.parameters(config),
        };
        let adapters = || parameters.all().iter().filter(|p| p.is_adapter());
        if lora.targets.is_empty() {
            let met = |target: &&str| adapters().any(|p| p.layer.map(last_part) == Some(*target));
            lora.targets = targets().filter(met).map(String::from).collect();
        }
        let expected = adapters().map(Parameter::name_and_shape);
        check_tensors(&weights, |_| false, expected).map_err(|error| match error {
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
            parameters,
            weights,
        })
    }
}

/// The parameters of a model with an adapter at each layer that the file holds one for.
fn met_by_pattern(config: &LlamaConfig, lora: &Lora, weights: &Checkpoint) -> ParameterTable {
    let names: HashSet<&str> = weights.shapes().map(|(name, _)| name).collect();
    ParameterTable::with_adapters(config, lora.rank, |block, layer| {
        names.contains(peft_name(block, layer, 'A').as_str())
    })
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
        let tensors = lazy_tensors(self, DType::F32, Parameter::is_adapter);
        let tensors: Vec<&LazyTensor<'_>> = tensors.iter().collect();
        write_file(&dir.join(ADAPTER_WEIGHTS), &tensors)?;
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
