//! Why a stage ended.

use std::path::PathBuf;

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
use crate::files::{FileError, OutputError, path_is_at_fault};
use crate::judge::JudgeError;
use crate::preference::PreferenceError;
use crate::tokenise::{BadRows, TokeniseError};
use crate::trainer::TrainError;

/// Why a stage ended.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A configuration that is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model folder that cannot be loaded or saved.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A model folder that cannot be used.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// Tokenizer files that cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Text that cannot become token ids, or the other way round.
    #[error(transparent)]
    Text(#[from] ChatTextError),
    /// Prompts that cannot be answered.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A row file that is wrong, or cannot be read or written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Judging failed.
    #[error(transparent)]
    Judge(#[from] JudgeError),
    /// A PairRM folder that cannot be loaded.
    #[error(transparent)]
    PairRm(#[from] PairRmError),
    /// Judged rows of which no pair can be chosen.
    #[error(transparent)]
    Preference(#[from] PreferenceError),
    /// A tokenizer, template or limit with which no rows can be made.
    #[error(transparent)]
    Tokenise(#[from] TokeniseError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Anything else that the user has to change, in words.
    #[error("{0}")]
    Input(String),
    /// A file or folder that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An output that is not this command's to write, or is damaged.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Rows that cannot become token ids, or that the model cannot take.
    #[error(transparent)]
    Row(#[from] BadRows),
    /// A model that gives NaN or infinity.
    #[error("row {row}: its log-probability under {model} is not finite; are the weights sound?", model = model.display())]
    NotFinite {
        /// Folder of the model.
        model: PathBuf,
        /// Name of the row.
        row: String,
    },
    /// Prompts for which the model gives nothing; the others are answered.
    #[error(
        "{}: no responses to {rows}\nThe others are there; the same command tries these again", out.display()
    )]
    NotAnswered {
        /// The file of responses.
        out: PathBuf,
        /// The prompts.
        rows: BadRows,
    },
    /// A page that its own templates cannot make.
    #[error("the page cannot be made: {0}; please report this")]
    Page(String),
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
            Self::Generate(error) => !matches!(
                error,
                GenerateError::Device(_) | GenerateError::NonFinite { .. }
            ),
            Self::Data(error) => data_is_input(error),
            Self::Judge(error) => match error {
                JudgeError::Data(error) => data_is_input(error),
                other => other.is_input(),
            },
            Self::Train(error) => match error {
                TrainError::BadRow { .. } => true,
                TrainError::Data(error) => data_is_input(error),
                TrainError::Output(error) => error.is_input(),
                _ => false,
            },
            Self::File(error) => error.is_input(),
            Self::Output(error) => error.is_input(),
            Self::Device(_)
            | Self::Page(_)
            | Self::NotFinite { .. }
            | Self::NotAnswered { .. }
            | Self::Interrupted => false,
        }
    }
}

fn data_is_input(error: &DataError) -> bool {
    match error {
        DataError::Io { action, source, .. } => path_is_at_fault(action, source),
        DataError::Output(error) => error.is_input(),
        DataError::Hub(error) => error.is_input(),
        _ => true,
    }
}
