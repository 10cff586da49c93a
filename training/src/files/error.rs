//! What the operating system refused.

use std::io;
use std::path::{Path, PathBuf};

/// A file or folder that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct FileError {
    /// What was tried, like `read`.
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl FileError {
    /// For `map_err`: what was tried on what.
    pub fn new(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| Self {
            action,
            path,
            source,
        }
    }

    /// Whether a path was at fault rather than the disk.
    pub fn is_input(&self) -> bool {
        path_is_at_fault(&self.source)
    }
}

/// Whether a path was at fault rather than the disk.
pub(crate) fn path_is_at_fault(error: &io::Error) -> bool {
    use io::ErrorKind::*;
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
