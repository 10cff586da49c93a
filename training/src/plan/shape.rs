//! What is planned: the model's shape, and what a configuration does not tell.

use std::path::PathBuf;

use sppo_model::llama::LlamaConfig;

use super::card::Card;
use crate::config::{Config, ModelSource};
use crate::cost::published;
use crate::stages::StageError;

/// What the plan of a configuration cannot know from it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Assumed {
    /// Whether the device is a CPU.
    pub host: bool,
    /// Memory of the device in bytes, where it is known.
    pub memory: Option<u64>,
    /// Prompts of an iteration, instead of those of the file.
    pub prompts: Option<usize>,
    /// Mean length of a prompt and of a response in tokens, instead of those of the files.
    pub prompt_tokens: Option<usize>,
    /// The same for a response.
    pub response_tokens: Option<usize>,
    /// Processes of the job, each with a device; one unless given.
    pub ranks: Option<usize>,
    /// Machines that they run on; one unless given.
    pub nodes: Option<usize>,
    /// The device, where it is a card that is known.
    pub card: Option<Card>,
    /// Between ranks of a node, in GB/s each way, instead of the card's.
    pub link_gbs: Option<f64>,
    /// From a node to the others, in GB/s each way.
    pub network_gbs: Option<f64>,
    /// Part of the device's nominal rate that is used.
    pub mfu: Option<f64>,
}

impl Assumed {
    /// Memory of the device where it is a GPU with a pool.
    pub(super) fn pool(&self) -> Option<u64> {
        self.memory.filter(|_| !self.host)
    }
}

/// The model of a configuration, without its weights.
pub(super) struct Shape {
    pub name: String,
    pub config: LlamaConfig,
    /// Its folder, where it is here.
    pub folder: Option<PathBuf>,
}

impl Shape {
    /// Of a configuration.
    pub fn of(config: &Config) -> Result<Self, StageError> {
        // A plan is wanted most before gigabytes are downloaded.
        if let Some(name) = &config.model.path
            && let (Err(_), Some(shape)) = (config.model.source(), published(name))
        {
            return Ok(Self {
                name: format!("{name} (not downloaded yet)"),
                config: shape,
                folder: None,
            });
        }
        match config.model.source()? {
            ModelSource::Folder(dir) => Ok(Self {
                name: crate::config::model_name(&dir),
                config: sppo_model::llama::hf::config_in_effect(&dir)?,
                folder: Some(dir),
            }),
            ModelSource::Init(init) => Ok(Self {
                name: "[model.init]".into(),
                config: crate::stages::init_config(init)?,
                folder: Some(init.tokenizer.clone()),
            }),
        }
    }
}
