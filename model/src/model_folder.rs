//! A model's folder in Hugging Face's layout: config, weights, tokenizer, chat template and
//! generation defaults.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, backend::Backend};

use crate::chat_template::TemplateSource;
use crate::chat_text::{ChatText, ChatTextError};
use crate::checkpoint::Checkpoint;
use crate::generate::{GenerationDefaults, GenerationDefaultsError};
use crate::llama::{CheckpointError, Llama, LlamaConfig, hf};
use crate::tokenizer::Tokenizer;

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
        Self::open_with(path, TemplateSource::Folder)
    }

    /// The same with the template of `source`.
    pub fn open_with(path: &Path, source: TemplateSource<'_>) -> Result<Self, ModelFolderError> {
        let (config, weights) = hf::open(path)?;
        say_what_differs(path, &config, &weights);
        let text = ChatText::find_with(path, source)?;
        if let Some(text) = &text {
            check_vocabulary(path, text.tokenizer(), config.vocab_size)?;
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

/// Warns of what the weights overrule and of tensors that are left out.
fn say_what_differs(folder: &Path, config: &LlamaConfig, weights: &Checkpoint) {
    let folder = folder.display();
    if config.raw.get("tie_word_embeddings") == Some(&true.into()) && !config.tie_word_embeddings {
        tracing::warn!(
            "{folder}: config.json says tie_word_embeddings = true, but lm_head.weight is not the embeddings; it is used, as transformers does"
        );
    }
    if let Some((name, _)) = weights
        .shapes()
        .find(|(name, _)| name.starts_with("v_head."))
    {
        tracing::warn!("{folder}: {name} is not used; a value head changes no token's probability");
    }
}

/// Refuses a tokenizer of another model. Tokens that were added and never got an embedding may be
/// there: text with them is refused where it comes up.
fn check_vocabulary(
    folder: &Path,
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<(), ModelFolderError> {
    if tokenizer.vocab_size() <= vocab_size {
        return Ok(());
    }
    let Some(added) = tokenizer.added_from(vocab_size) else {
        return Err(ModelFolderError::Vocabulary {
            folder: folder.into(),
            tokens: tokenizer.vocab_size(),
            vocab_size,
        });
    };
    tracing::warn!(
        "{}: the model has no embedding for the tokenizer's {} (vocab_size is {vocab_size}); text with such a token is refused",
        folder.display(),
        added.join(", ")
    );
    Ok(())
}
