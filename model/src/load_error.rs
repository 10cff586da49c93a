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
    /// A `config.json` that cannot be used.
    #[error("{dir}: {source}")]
    Config {
        /// The model's folder.
        dir: PathBuf,
        /// What is wrong with it.
        source: ModelConfigError,
    },
    /// A file of weights that cannot be read or written.
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    /// A folder that cannot be used as an adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// Tensors that are not those that the config asks for.
    #[error("{path} does not fit its config.json:\n  {}", problems.join("\n  "))]
    Mismatch {
        /// The checkpoint's folder or file.
        path: PathBuf,
        /// One line for each tensor at fault.
        problems: Vec<String>,
    },
    /// A tensor that cannot be read from the device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A file beside the weights that cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

/// Why a folder cannot be used as an adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A folder without an adapter's settings.
    #[error(
        "{dir} holds no {ADAPTER_CONFIG}; expected an adapter as PEFT saves it, or as `sppo train` with [train.lora] does",
        dir = dir.display()
    )]
    NotAdapter {
        /// The folder.
        dir: PathBuf,
    },
    /// A folder without an adapter's tensors as safetensors.
    #[error("{dir} holds no {ADAPTER_WEIGHTS}; other formats are not read, save the adapter as safetensors", dir = dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that is no JSON object.
    #[error("{path} is no JSON object of settings: {message}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// A key that is missing, or whose value makes no sense.
    #[error("{path}: {key} is {found}; {wanted}", path = path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// PEFT's name of the setting.
        key: &'static str,
        /// Its value as JSON; `null` where it is missing.
        found: String,
        /// What is expected instead.
        wanted: String,
    },
    /// A value that PEFT knows and this crate does not compute.
    #[error("{path}: {key} = {found} is not supported; {hint}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// PEFT's name of the setting.
        key: &'static str,
        /// Its value as JSON.
        found: String,
        /// Why it is refused, and what to do.
        hint: &'static str,
    },
    /// Tensors that do not fit the base model.
    #[error(
        "{path} does not fit the base model {base}:\n  {}",
        problems.join("\n  "),
        path = path.display(),
        base = base.display()
    )]
    Misfit {
        /// The adapter's file of tensors.
        path: PathBuf,
        /// The base model's folder.
        base: PathBuf,
        /// One line for each tensor at fault.
        problems: Vec<String>,
    },
}
