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

use sppo_model::chat_text::ChatTextError;
use sppo_model::checkpoint::SafetensorsError;
use sppo_model::generate::GenerateError;
use sppo_model::llama::CheckpointError;
use sppo_model::model_folder::ModelFolderError;
use sppo_model::pairrm::PairRmError;
use sppo_model::tokenizer::TokenizerError;

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

use crate::config::ConfigError;
use crate::data::DataError;
use crate::judge::JudgeError;
use crate::preference::PreferenceError;
use crate::tokenise::TokeniseError;
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
            | Self::Text(_)
            | Self::Preference(_)
            | Self::Prompt { .. }
            | Self::Tokenise(_)
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
