//! Why training ended.

use std::path::PathBuf;

use sppo_model::llama::CheckpointError;
use sppo_model::ops::DeviceError;

use crate::data::DataError;
use crate::files::{FileError, OutputError};

/// Why training ended.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A model or optimizer state that cannot be loaded or saved.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A row file that is wrong, or cannot be read or written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file or folder that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An output that is not this training's to write, or is damaged.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A checkpoint that does not hold what it should.
    #[error("{path} is damaged: {message}; remove that folder to go on from the one before", path = path.display())]
    Damaged {
        /// Folder of the checkpoint.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A loss or gradient that is NaN or infinite.
    #[error("step {step}: the {what} is not finite (rows {}); {kept}; {advice}", rows.join(", "))]
    NonFinite {
        /// Counted from 1.
        step: usize,
        /// `loss` or `gradient`.
        what: &'static str,
        /// Names of the rows that it comes from.
        rows: Vec<String>,
        /// What is left to go on from.
        kept: &'static str,
        /// What the user can do.
        advice: &'static str,
    },
    /// Weights or optimizer state that are NaN or infinite.
    #[error(
        "weights or optimizer state are not finite behind step {step} and are not saved; {advice}"
    )]
    Broken {
        /// Steps that were taken.
        step: usize,
        /// What the user can do.
        advice: &'static str,
    },
    /// A row that cannot be trained on.
    #[error("row {row}: {message}")]
    BadRow {
        /// Its name.
        row: String,
        /// What is wrong with it.
        message: String,
    },
}
