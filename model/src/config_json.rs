//! Reading `config.json` of a model folder: typed fields, each refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::other_formats::{and, other_weights};

/// PEFT's file of settings, which an adapter folder has instead of a `config.json`.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelConfigError {
    /// The folder of an adapter, where a whole model is needed.
    #[error(
        "this is a LoRA adapter, not a whole model; merge it into its base and use the result: sppo merge --model {base} --adapter {dir} --out MERGED",
        dir = dir.display()
    )]
    Adapter {
        /// The base model that the adapter names.
        base: String,
        /// The adapter's folder.
        dir: PathBuf,
    },
    /// A file that cannot be read.
    #[error(
        "cannot read {path}: {source}; a model folder needs a config.json{}",
        and(hint)
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
        /// What lies there instead, and what to do with it.
        hint: Option<String>,
    },
    /// A file that is not valid JSON.
    #[error("{path} is not valid JSON: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A key whose value makes no sense.
    #[error("config.json: {key} is {found}; {wanted}")]
    Value {
        /// The key.
        key: String,
        /// Its value as JSON.
        found: String,
        /// What is expected instead.
        wanted: String,
    },
    /// A key that is needed and absent.
    #[error("config.json: {key} is missing; {wanted}")]
    Missing {
        /// The key.
        key: String,
        /// What is expected there.
        wanted: String,
    },
    /// A value that transformers knows and this crate does not compute.
    #[error("config.json: {key} = {found} is not supported; {hint}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What is supported, or what to do.
        hint: String,
    },
}

/// The object in `config.json` of a folder.
pub(crate) fn read_config(dir: &Path) -> Result<Map<String, Value>, ModelConfigError> {
    let path = dir.join("config.json");
    if !path.exists() && dir.join(ADAPTER_CONFIG).is_file() {
        return Err(ModelConfigError::Adapter {
            base: base_of_adapter(dir).unwrap_or("BASE".into()),
            dir: dir.into(),
        });
    }
    let text = std::fs::read_to_string(&path).map_err(|source| ModelConfigError::Read {
        path: path.clone(),
        source,
        hint: other_weights(dir),
    })?;
    let value: Value =
        serde_json::from_str(&text).map_err(|source| ModelConfigError::Json { path, source })?;
    let Value::Object(map) = value else {
        return Err(ModelConfigError::Value {
            key: "the file".into(),
            found: "no JSON object".into(),
            wanted: "expected an object of settings".into(),
        });
    };
    Ok(map)
}

/// The base model that an adapter folder names.
fn base_of_adapter(dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(dir.join(ADAPTER_CONFIG)).ok()?;
    let settings: Value = serde_json::from_str(&text).ok()?;
    let base = settings.get("base_model_name_or_path")?.as_str()?;
    Some(base.into())
}

pub(crate) fn is_absent(value: Option<&Value>) -> bool {
    value.is_none_or(Value::is_null)
}

/// A whole number, also where it is written as a float (`64.0`).
pub(crate) fn whole(value: &Value) -> Option<i64> {
    // Above this not every whole number is a float.
    const EXACT: f64 = (1u64 << 53) as f64;
    let float = || {
        value
            .as_f64()
            .filter(|x| x.fract() == 0.0 && x.abs() <= EXACT)
    };
    value.as_i64().or_else(|| float().map(|x| x as i64))
}

/// Whether a value is one of `allowed`, which write whole numbers without a fraction.
pub(crate) fn is_one_of(value: &Value, allowed: &[&str]) -> bool {
    let number = value.is_number().then(|| whole(value)).flatten();
    let text = number.map_or_else(|| value.to_string(), |n| n.to_string());
    allowed.contains(&text.as_str())
}

/// Sizes far beyond any such model would exhaust the memory before the weights are looked at.
pub(crate) fn refuse_absurd(raw: &Map<String, Value>) -> Result<(), ModelConfigError> {
    const MOST: [(&str, i64); 8] = [
        ("hidden_size", 1 << 20),
        ("intermediate_size", 1 << 22),
        ("num_hidden_layers", 1 << 12),
        ("num_attention_heads", 1 << 14),
        ("num_key_value_heads", 1 << 14),
        ("head_dim", 1 << 14),
        ("vocab_size", 1 << 24),
        // Nothing is allocated by it: tables follow the sequences in use.
        ("max_position_embeddings", u32::MAX as i64),
    ];
    for (key, most) in MOST {
        if let Some(found) = raw.get(key).and_then(whole)
            && found > most
        {
            return Err(ModelConfigError::Value {
                key: key.into(),
                found: found.to_string(),
                wanted: format!("expected at most {most}"),
            });
        }
    }
    Ok(())
}

/// A whole number above 0.
pub(crate) fn size(
    map: &Map<String, Value>,
    key: &str,
    default: Option<usize>,
) -> Result<usize, ModelConfigError> {
    let wanted = "expected a whole number above 0";
    match (map.get(key), default) {
        (None | Some(Value::Null), Some(default)) => Ok(default),
        (None, None) => Err(ModelConfigError::Missing {
            key: key.into(),
            wanted: wanted.into(),
        }),
        (Some(value), _) => whole(value)
            .filter(|&n| n > 0 && n < (1 << 40))
            .map(|n| n as usize)
            .ok_or_else(|| ModelConfigError::Value {
                key: key.into(),
                found: value.to_string(),
                wanted: wanted.into(),
            }),
    }
}

/// A number above 0.
pub(crate) fn number(
    map: &Map<String, Value>,
    key: &str,
    default: Option<f64>,
) -> Result<f64, ModelConfigError> {
    let wanted = "expected a number above 0";
    match (map.get(key), default) {
        (None | Some(Value::Null), Some(default)) => Ok(default),
        (None, None) => Err(ModelConfigError::Missing {
            key: key.into(),
            wanted: wanted.into(),
        }),
        (Some(value), _) => value
            .as_f64()
            .filter(|x| x.is_finite() && *x > 0.0)
            .ok_or_else(|| ModelConfigError::Value {
                key: key.into(),
                found: value.to_string(),
                wanted: wanted.into(),
            }),
    }
}

/// True or false; false where absent.
pub(crate) fn flag(map: &Map<String, Value>, key: &str) -> Result<bool, ModelConfigError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(other) => Err(ModelConfigError::Value {
            key: key.into(),
            found: other.to_string(),
            wanted: "expected true or false".into(),
        }),
    }
}

/// Token ids given as one number, a list, or null. A negative one stands for none, as
/// transformers' older configs write it.
pub(crate) fn token_ids(map: &Map<String, Value>, key: &str) -> Result<Vec<u32>, ModelConfigError> {
    let error = |found: &Value| ModelConfigError::Value {
        key: key.into(),
        found: found.to_string(),
        wanted: "expected a token id or a list of them".into(),
    };
    let id = |value: &Value| match whole(value) {
        Some(n) if n < 0 => Ok(None),
        Some(n) => u32::try_from(n).map(Some).map_err(|_| error(value)),
        None => Err(error(value)),
    };
    let found: Vec<Option<u32>> = match map.get(key) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.iter().map(id).collect::<Result<_, _>>()?,
        Some(value) => vec![id(value)?],
    };
    Ok(found.into_iter().flatten().collect())
}
