//! A model's folder in Hugging Face's layout: config, weights, tokenizer, chat template and
//! generation defaults.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, backend::Backend};

use crate::chat_text::{ChatText, ChatTextError};
use crate::generate::{GenerationDefaults, GenerationDefaultsError};
use crate::llama::{CheckpointError, Llama, LlamaConfig, hf};

/// Why a model's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelFolderError {
    /// A config or weights that cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tokenizer or chat template that cannot be used.
    #[error(transparent)]
    Text(#[from] ChatTextError),
    /// A `generation_config.json` that cannot be used.
    #[error(transparent)]
    GenerationDefaults(#[from] GenerationDefaultsError),
    /// A tokenizer with ids that the model does not have.
    #[error(
        "{folder}: the tokenizer knows {tokens} tokens, but the model's vocab_size is {vocab_size}; they do not belong together",
        folder = folder.display()
    )]
    Vocabulary {
        /// The model's folder.
        folder: PathBuf,
        /// The tokenizer's highest id + 1.
        tokens: usize,
        /// The model's, from its config.
        vocab_size: usize,
    },
}

/// An opened folder, without its weights.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: LlamaConfig,
    text: Option<ChatText>,
}

impl ModelFolder {
    /// Reads config, tokenizer and chat template, and compares the list of weights with the config.
    /// Tokenizer and template may be missing; the tokenizer must not know more tokens than the
    /// model.
    pub fn open(path: &Path) -> Result<Self, ModelFolderError> {
        let (config, _) = hf::open(path)?;
        let text = ChatText::find(path)?;
        if let Some(text) = &text
            && text.tokenizer().vocab_size() > config.vocab_size
        {
            return Err(ModelFolderError::Vocabulary {
                folder: path.into(),
                tokens: text.tokenizer().vocab_size(),
                vocab_size: config.vocab_size,
            });
        }
        Ok(Self {
            path: path.into(),
            config,
            text,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The shape of the model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Its tokenizer and chat template, where it has both.
    pub fn text(&self) -> Option<&ChatText> {
        self.text.as_ref()
    }

    /// The same, or an error that says what is missing.
    pub fn require_text(&self) -> Result<&ChatText, ModelFolderError> {
        let missing = || ChatTextError::missing(&self.path).into();
        self.text.as_ref().ok_or_else(missing)
    }

    /// Stop tokens and sampling settings that the model comes with.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults, ModelFolderError> {
        Ok(GenerationDefaults::from_dir(&self.path, &self.config)?)
    }

    /// The weights in `dtype`.
    pub fn load<B: Backend>(
        &self,
        dtype: DType,
        device: &B::Device,
    ) -> Result<Llama<B>, ModelFolderError> {
        Ok(Llama::load(&self.path, dtype, device)?.1)
    }
}
