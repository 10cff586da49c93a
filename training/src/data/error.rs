//! What can be wrong with a row file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::fields::RowProblem;
use crate::files::{FileError, OutputError};

/// Where a row lies in its file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a `.jsonl` file.
    Line(usize),
    /// A row of a `.parquet` file or of a table in memory.
    Row(usize),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
        }
    }
}

/// What can be wrong with a row file.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An output that is not this command's to write, or is damaged.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The operating system refused something.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, like `read`.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The extension is neither of the two known ones.
    #[error("{path}: unknown kind of row file: the name must end in .jsonl or .parquet", path = path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// An input without rows.
    #[error("{path}: holds no rows ({kind} expected)", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// The kind of rows that was expected.
        kind: &'static str,
    },
    /// A line that is not a JSON object.
    #[error("{path}, line {line}: not a JSON object: {detail}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the JSON reader said.
        detail: String,
    },
    /// A row whose keys do not fit.
    #[error("{path}, {place}: {problem}", path = path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where the row lies.
        place: Place,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A `prompt_id` that two rows carry.
    #[error("{path}: prompt_id `{id}` stands at {first} and again at {second}; ids must be unique", path = path.display())]
    Duplicate {
        /// The file.
        path: PathBuf,
        /// The `prompt_id`.
        id: String,
        /// Where it stands first.
        first: Place,
        /// Where it stands again.
        second: Place,
    },
    /// A Parquet file that cannot be read or written.
    #[error("{path}: {detail}", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A row that does not fit the columns of the rows before it.
    #[error(
        "{path}: column `{column}` holds {before} and now {now}, but a Parquet column has one type; write to a .jsonl file instead",
        path = path.display()
    )]
    MixedColumn {
        /// The file.
        path: PathBuf,
        /// Name of the column.
        column: String,
        /// Its type in the rows before.
        before: &'static str,
        /// Its type in the new row.
        now: &'static str,
    },
}

impl From<FileError> for DataError {
    fn from(error: FileError) -> Self {
        Self::Output(error.into())
    }
}

impl DataError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        DataError::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    }
}
