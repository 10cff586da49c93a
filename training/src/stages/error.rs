//! Why a stage ended.

use sppo_model::chat_text::ChatTextError;
use sppo_model::checkpoint::SafetensorsError;
use sppo_model::generate::GenerateError;
use sppo_model::llama::CheckpointError;
use sppo_model::model_folder::ModelFolderError;
use sppo_model::ops::DeviceError;
use sppo_model::pairrm::PairRmError;
use sppo_model::tokenizer::TokenizerError;

use crate::config::ConfigError;
use crate::data::DataError;
use crate::files::{FileError, path_is_at_fault};
use crate::judge::JudgeError;
use crate::preference::PreferenceError;
use crate::tokenise::{RowError, TokeniseError};
use crate::trainer::TrainError;

/// Why a stage ended.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Text(#[from] ChatTextError),
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
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Row(#[from] RowError),
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
            | Self::Text(_)
            | Self::Preference(_)
            | Self::Prompt { .. }
            | Self::Tokenise(_)
            | Self::Row(_)
            | Self::PairRm(_)
            | Self::Input(_) => true,
            Self::Checkpoint(error) | Self::Folder(ModelFolderError::Checkpoint(error)) => {
                !matches!(
                    error,
                    CheckpointError::Write { .. }
                        | CheckpointError::Weights(SafetensorsError::Write { .. })
                )
            }
            Self::Folder(_) => true,
            Self::Generate(error) => !matches!(error, GenerateError::Device(_)),
            Self::Data(error) => data_is_input(error),
            Self::Judge(error) => match error {
                JudgeError::Data(error) => data_is_input(error),
                other => other.is_input(),
            },
            Self::Train(error) => match error {
                TrainError::BadRow { .. } => true,
                TrainError::Data(error) => data_is_input(error),
                TrainError::File(error) => error.is_input(),
                _ => false,
            },
            Self::File(error) => error.is_input(),
            Self::Device(_) | Self::Interrupted => false,
        }
    }
}

fn data_is_input(error: &DataError) -> bool {
    match error {
        DataError::Io { source, .. } => path_is_at_fault(source),
        _ => true,
    }
}
