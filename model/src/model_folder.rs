//! A model's folder in Hugging Face's layout: config, weights, tokenizer, chat template and
//! generation defaults.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use burn::tensor::{DType, backend::Backend};

use crate::chat_template::{NaiveDate, TemplateSource, today};
use crate::chat_text::{ChatText, ChatTextError};
use crate::checkpoint::Checkpoint;
use crate::end_of_turn::EndOfTurn;
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

    /// The same with `date` as what the chat template sees, in place of today's.
    pub fn with_date(mut self, date: NaiveDate) -> Self {
        self.text = self.text.map(|text| text.with_date(date));
        self
    }

    /// The date that the chat template sees.
    pub fn date(&self) -> NaiveDate {
        self.text.as_ref().map_or_else(today, ChatText::date)
    }

    /// Whether the text of a conversation may depend on the date.
    pub fn uses_date(&self) -> bool {
        self.text.as_ref().is_some_and(ChatText::uses_date)
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

    /// What ends an assistant's turn, for whoever samples, trains or scores: what the chat template
    /// writes behind an answer, else the tokenizer's EOS, else the first end token of the configs.
    /// A template and configs that disagree are warned of, once for each folder.
    pub fn end_of_turn(&self) -> Result<EndOfTurn, ModelFolderError> {
        let text = self.require_text()?;
        let defaults = self.generation_defaults()?;
        let first = defaults.stop_ids.first();
        let end = match text.end_of_turn()? {
            Some(end) => Some(end),
            None => first.copied().map(EndOfTurn::of_token),
        };
        let end = end.ok_or_else(|| ChatTextError::NoEndOfTurn {
            folder: self.path.clone(),
        })?;
        let known = |id| defaults.stop_ids.contains(&id);
        if first.is_some() && !end.token().is_some_and(known) && self.is_first_warning() {
            tracing::warn!("{}", self.disagreement(text, &end, &defaults));
        }
        Ok(end)
    }

    /// Ids at which sampling stops: the configs' end tokens, and what ends a turn in the template.
    pub fn stop_ids(&self, end: &EndOfTurn) -> Result<Vec<u32>, ModelFolderError> {
        let mut ids = self.generation_defaults()?.stop_ids;
        ids.extend(end.token().filter(|id| !ids.contains(id)));
        Ok(ids)
    }

    fn is_first_warning(&self) -> bool {
        static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let warned = WARNED.lock();
        warned.is_ok_and(|mut folders| folders.insert(self.path.clone()))
    }

    fn disagreement(
        &self,
        text: &ChatText,
        end: &EndOfTurn,
        defaults: &GenerationDefaults,
    ) -> String {
        let named = |ids: &[u32]| {
            let token = |id: &u32| {
                let token = text.tokenizer().id_to_token(*id);
                format!("{id} ({:?})", token.as_deref().unwrap_or("no token"))
            };
            ids.iter().map(token).collect::<Vec<_>>().join(", ")
        };
        let source = match end.from_template {
            true => "the chat template ends an assistant's turn",
            false => {
                "the chat template writes no end of a turn, so the tokenizer's eos_token is taken: it ends"
            }
        };
        format!(
            "{}: {source} with {}, but {} names {} as eos_token_id; sampling stops at any of them, and training ends a response with {}. If that is wrong, correct the file, or say where sampling stops (generate.stop_token_ids, --stop-token-ids)",
            self.path.display(),
            named(&end.ids[end.lead..]),
            defaults.file,
            named(&defaults.stop_ids),
            named(&end.ids[end.lead..]),
        )
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
