//! Why no number can be made of a file.

use std::path::{Path, PathBuf};

use crate::data::DataError;
use crate::files::FileError;

/// Why no number can be made of a file; always the input's fault.
#[derive(Debug, thiserror::Error)]
pub enum EvaluationError {
    /// A file of rows or of one object that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file or folder that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that holds something else than it should.
    #[error("{path}: {problem}", path = path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// Where in it, what was found, and what to do.
        problem: String,
    },
}

impl EvaluationError {
    pub(super) fn content(path: &Path, problem: impl Into<String>) -> Self {
        Self::Content {
            path: path.into(),
            problem: problem.into(),
        }
    }
}
