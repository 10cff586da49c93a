//! What the operating system refused, and why an output cannot be written.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
        path_is_at_fault(self.action, &self.source)
    }
}

/// Whether a path was at fault rather than the disk. What is written has its folders made for it, so
/// one that is missing then was taken away from a running command.
pub(crate) fn path_is_at_fault(action: &str, error: &io::Error) -> bool {
    use io::ErrorKind::*;
    let reads = action.starts_with("read") || action.starts_with("open");
    if error.kind() == NotFound {
        return reads;
    }
    matches!(
        error.kind(),
        PermissionDenied | IsADirectory | NotADirectory | AlreadyExists | InvalidFilename
    )
}

/// Who works on an output; what a second process is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// The machine's name.
    pub host: String,
    /// When it began, in UTC.
    pub since: String,
}

/// One thing that is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Name of the setting or input.
    pub name: String,
    /// What the output was made from.
    pub before: String,
    /// What is given now.
    pub now: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: was {}, is {}", self.name, self.before, self.now)
    }
}

/// A file that is not what it was when it was finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// Why an output cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Something stands there that this program did not make.
    #[error(
        "{path} is there and is not this program's ({mark} would say so); it stays as it is: move it away or write elsewhere",
        path = path.display(), mark = mark.display()
    )]
    Foreign {
        /// What stands there.
        path: PathBuf,
        /// The mark that it lacks.
        mark: PathBuf,
    },
    /// What is read would be replaced by what is made of it.
    #[error("{path} is read by this command and cannot be its output too; write elsewhere", path = path.display())]
    Input {
        /// The file or folder.
        path: PathBuf,
    },
    /// It was made from other things.
    #[error(
        "{path} was made from something else:\n{}\ngive --overwrite to replace it, or write elsewhere",
        lines(differences), path = path.display()
    )]
    Different {
        /// The output.
        path: PathBuf,
        /// Each with its old and its new value.
        differences: Vec<Difference>,
    },
    /// A file that is not what it was.
    #[error("{path} {problem}; give --overwrite to make it anew, or put back what was there", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process writes it.
    #[error("{output} is being written by {}; wait for it, or write elsewhere", holder_text(holder), output = output.display())]
    Locked {
        /// File or folder.
        output: PathBuf,
        /// Who it is.
        holder: Option<Holder>,
    },
    /// Somebody removed or changed it while it was written.
    #[error("{path} {problem} while this process was writing it; nothing more is written", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What happened.
        problem: &'static str,
    },
    /// A file or folder that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl OutputError {
    /// Whether the user has to change something before it can go on.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Changed { .. } => false,
            // What is read of an output was there a moment ago.
            Self::File(error) => error.source.kind() != io::ErrorKind::NotFound && error.is_input(),
            _ => true,
        }
    }
}

impl From<Damage> for OutputError {
    fn from(damage: Damage) -> Self {
        Self::Damaged {
            path: damage.path,
            problem: damage.problem,
        }
    }
}

pub(super) fn lines(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(|d| format!("  {d}")).collect();
    lines.join("\n")
}

fn holder_text(holder: &Option<Holder>) -> String {
    match holder {
        Some(Holder { pid, host, since }) => {
            format!("process {pid} on {host}, which began at {since}")
        }
        None => "another process".into(),
    }
}
