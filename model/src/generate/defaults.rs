//! `generation_config.json`: the stop tokens and sampling settings a model comes with.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config_json::token_ids;
use crate::llama::LlamaConfig;

const NAME: &str = "generation_config.json";

/// Why a `generation_config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GenerationDefaultsError {
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file without an object of usable settings.
    #[error("{path} is no JSON object of settings: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// What `generation_config.json` says; the model's own config where it is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Ids that end a response.
    pub stop_ids: Vec<u32>,
    /// The file that names them.
    pub file: &'static str,
}

impl GenerationDefaults {
    /// Reads a checkpoint folder's file; an absent one leaves the model config's end tokens.
    pub fn from_dir(dir: &Path, config: &LlamaConfig) -> Result<Self, GenerationDefaultsError> {
        let fallback = Self {
            stop_ids: config.eos_token_id.clone(),
            file: "config.json",
        };
        let path = dir.join(NAME);
        if !path.is_file() {
            return Ok(fallback);
        }
        let text =
            std::fs::read_to_string(&path).map_err(|source| GenerationDefaultsError::Read {
                path: path.clone(),
                source,
            })?;
        let malformed = |message: String| GenerationDefaultsError::Malformed {
            path: path.clone(),
            message,
        };
        let value: Value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
        let map = value
            .as_object()
            .ok_or_else(|| malformed("found another JSON value".into()))?;
        let stop_ids = token_ids(map, "eos_token_id").map_err(|e| malformed(e.to_string()))?;
        Ok(match stop_ids.is_empty() {
            true => fallback,
            false => Self {
                stop_ids,
                file: NAME,
            },
        })
    }
}
