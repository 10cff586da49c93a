//! Why an adapter cannot be used.

use std::path::PathBuf;

use crate::config_json::ADAPTER_CONFIG;

/// The file of an adapter's tensors.
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";

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
