//! The stages of the recipe as resumable jobs from files to files: what the commands and the
//! self-play loop have in common.

mod bench;
mod evaluate;
mod fine_tune;
mod generate;
mod init;
mod join;
mod judge;
mod learning;
mod merge;
mod score;
mod train;

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use sppo_model::chat_template::{ChatTemplate, TemplateError};
use sppo_model::checkpoint::SafetensorsError;
use sppo_model::generate::{GenerateError, GenerationDefaultsError};
use sppo_model::llama::{CheckpointError, Llama, LlamaConfig};
use sppo_model::pairrm::PairRmError;
use sppo_model::tokenizer::{Tokenizer, TokenizerError};

pub use bench::{Bench, BenchReport, Half, bench};
pub use evaluate::{Comparison, Evaluation, compare_answers};
pub use fine_tune::{FineTuning, fine_tune};
pub use generate::{Generation, Sampling, generate};
pub use init::{init_config, init_model, start_model};
pub use join::join_responses;
pub use judge::{Part, build_judge, dry_run, judge_responses, make_pairs};
pub use merge::{Merging, merge_adapters};
pub use score::{Scoring, score};
pub use train::{PairTraining, train_pairs};

use crate::config::{ConfigError, Rows};
use crate::data::DataError;
use crate::judge::JudgeError;
use crate::preference::PreferenceError;
use crate::tokenise::{RowTokeniser, TokeniseError};
use crate::trainer::TrainError;
use sppo_model::ops::DeviceError;

/// Why a stage ended.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    GenerationDefaults(#[from] GenerationDefaultsError),
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Judge(#[from] JudgeError),
    #[error(transparent)]
    PairRm(#[from] PairRmError),
    #[error(transparent)]
    Preference(#[from] PreferenceError),
    #[error("prompt {prompt_id}: {source}")]
    Prompt {
        prompt_id: String,
        source: TokeniseError,
    },
    #[error(transparent)]
    Tokenise(#[from] TokeniseError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("{0}")]
    Input(String),
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The user asked to stop; everything done so far is on disk.
    #[error("interrupted")]
    Interrupted,
}

impl StageError {
    /// Whether the user's input is at fault (exit code 2) rather than the run (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::Tokenizer(_)
            | Self::Template(_)
            | Self::GenerationDefaults(_)
            | Self::Preference(_)
            | Self::Prompt { .. }
            | Self::Tokenise(_)
            | Self::PairRm(_)
            | Self::Input(_) => true,
            Self::Checkpoint(error) => !matches!(
                error,
                CheckpointError::Write { .. }
                    | CheckpointError::Weights(SafetensorsError::Write { .. })
            ),
            Self::Generate(error) => !matches!(error, GenerateError::Device(_)),
            Self::Data(error) => data_is_input(error),
            Self::Judge(error) => match error {
                JudgeError::Data(error) => data_is_input(error),
                other => other.is_input(),
            },
            Self::Train(error) => match error {
                TrainError::Row { .. } | TrainError::BadRow { .. } => true,
                TrainError::Data(error) => data_is_input(error),
                TrainError::Io { source, .. } => io_is_input(source),
                _ => false,
            },
            Self::Io { source, .. } => io_is_input(source),
            Self::Device(_) | Self::Interrupted => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn data_is_input(error: &DataError) -> bool {
    match error {
        DataError::Io { source, .. } => io_is_input(source),
        _ => true,
    }
}

/// Whether a path was at fault rather than the disk.
fn io_is_input(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::*;
    matches!(
        error.kind(),
        NotFound
            | PermissionDenied
            | IsADirectory
            | NotADirectory
            | AlreadyExists
            | InvalidFilename
    )
}

/// A model folder, loaded: weights, config, tokenizer and chat template.
pub struct Policy<B: Backend> {
    pub dir: PathBuf,
    pub config: LlamaConfig,
    pub model: Llama<B>,
    pub text: Option<Text>,
}

/// What turns conversations into token ids and back.
pub struct Text {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
}

impl Text {
    /// Of a model folder; `None` where it has no tokenizer or no chat template.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, StageError> {
        if !dir.join("tokenizer.json").exists() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::from_dir(dir)?;
        Ok(ChatTemplate::from_dir(dir)?.map(|template| Self {
            tokenizer,
            template,
        }))
    }
}

impl<B: Backend> Policy<B> {
    /// Loads a folder's weights in `dtype`; the tokenizer must not know more tokens than the model.
    pub fn load(dir: &Path, dtype: DType, device: &B::Device) -> Result<Self, StageError> {
        let (config, model) = Llama::load(dir, dtype, device)?;
        let text = Text::from_dir(dir)?;
        if let Some(text) = &text
            && text.tokenizer.vocab_size() > config.vocab_size
        {
            return Err(StageError::Input(format!(
                "{}: the tokenizer knows {} tokens, but the model's vocab_size is {}; they do not belong together",
                dir.display(),
                text.tokenizer.vocab_size(),
                config.vocab_size
            )));
        }
        Ok(Self {
            dir: dir.into(),
            config,
            model,
            text,
        })
    }

    /// Makes rows of text; `None` where the folder cannot (no tokenizer or template).
    pub fn row_tokeniser(
        &self,
        rows: Rows,
        max_length: usize,
        max_prompt_length: usize,
    ) -> Result<Option<RowTokeniser>, StageError> {
        let Some(text) = &self.text else {
            return Ok(None);
        };
        let (tokenizer, template) = (text.tokenizer.clone(), text.template.clone());
        // A response that filled the context still gets its end of turn.
        let max_length = max_length.min(self.config.max_position_embeddings);
        let max_prompt_length = max_prompt_length.min(max_length.saturating_sub(1));
        let tokeniser =
            RowTokeniser::new(tokenizer, template, rows, max_length, max_prompt_length)?;
        Ok(Some(tokeniser))
    }

    /// Tokenizer and template, or an error that says what is missing.
    pub fn require_text(&self) -> Result<&Text, StageError> {
        self.text.as_ref().ok_or_else(|| {
            StageError::Input(format!(
                "{}: text needs tokenizer.json and a chat template (chat_template.jinja, or chat_template in tokenizer_config.json)",
                self.dir.display()
            ))
        })
    }
}
