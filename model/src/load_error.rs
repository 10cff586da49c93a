//! Why a model folder or an adapter cannot be loaded or saved.

use std::path::PathBuf;

use crate::checkpoint::SafetensorsError;
use crate::config_json::{ADAPTER_CONFIG, ModelConfigError};
use crate::ops::DeviceError;

/// The file of an adapter's tensors.
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

/// Why a model folder cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{dir}: {source}")]
    Config {
        dir: PathBuf,
        source: ModelConfigError,
    },
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("{path} does not fit its config.json:\n  {}", problems.join("\n  "))]
    Mismatch {
        path: PathBuf,
        problems: Vec<String>,
    },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Why a folder cannot be used as an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error(
        "{dir} holds no {ADAPTER_CONFIG}; expected an adapter as PEFT saves it, or as `sppo train` with [train.lora] does",
        dir = dir.display()
    )]
    NotAdapter { dir: PathBuf },
    #[error("{dir} holds no {ADAPTER_WEIGHTS}; other formats are not read, save the adapter as safetensors", dir = dir.display())]
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
