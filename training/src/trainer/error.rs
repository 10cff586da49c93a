//! Why training ended.

use std::path::PathBuf;

use sppo_model::llama::CheckpointError;
use sppo_model::ops::DeviceError;

use crate::data::DataError;
use crate::files::FileError;

/// Why training ended.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} is damaged: {message}; remove that folder to go on from the one before", path = path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("step {step}: the {what} is not finite (rows {}); {kept}; {advice}", rows.join(", "))]
    NonFinite {
        step: usize,
        what: &'static str,
        rows: Vec<String>,
        /// What is left to go on from.
        kept: &'static str,
        advice: &'static str,
    },
    #[error(
        "weights or optimizer state are not finite behind step {step} and are not saved; {advice}"
    )]
    Broken { step: usize, advice: &'static str },
    #[error("row {row}: {message}")]
    BadRow { row: String, message: String },
}
