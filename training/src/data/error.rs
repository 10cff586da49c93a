//! What can be wrong with a row file.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::fields::RowProblem;
use crate::files::{FileError, OutputError};
use crate::hub::HubError;

/// Where a row lies in its file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a `.jsonl` file.
    Line(usize),
    /// A row of a `.parquet` file or of a table in memory.
    Row(usize),
    /// An element of a `.json` array.
    Element {
        /// Its number in the array.
        row: usize,
        /// The line on which it begins.
        line: usize,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Row(row) => write!(f, "row {row}"),
            Place::Element { row, line } => write!(f, "row {row} (line {line})"),
        }
    }
}

/// What can be wrong with a row file.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An output that is not this command's to write, or is damaged.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Rows of the Hub that are not in its cache.
    #[error(transparent)]
    Hub(#[from] HubError),
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
    /// The extension is none of the known ones.
    #[error("{path}: unknown kind of row file: the name must end in .jsonl or .parquet{hint}", path = path.display())]
    Extension {
        /// The file.
        path: PathBuf,
        /// What to do with a file of this kind.
        hint: &'static str,
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
    #[error("{path}, {place}: not a JSON object: {detail}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where it lies.
        place: Place,
        /// What the JSON reader said.
        detail: String,
    },
    /// A `.json` file whose array is broken.
    #[error("{path}, line {line}: {detail}", path = path.display())]
    Array {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// A `.json` file that holds something else than rows.
    #[error("{path}: {detail}", path = path.display())]
    NotRows {
        /// The file.
        path: PathBuf,
        /// What it holds, and what to do.
        detail: String,
    },
    /// Several rows that cannot be used.
    #[error("{}", several(path, first, *count))]
    Several {
        /// The file.
        path: PathBuf,
        /// What is wrong with the first of them.
        first: Vec<DataError>,
        /// How many there are.
        count: usize,
    },
    /// The same of a file whose bad rows the user may leave out.
    #[error("{0}\non_bad_row = \"skip\" (--on-bad-row skip) leaves out rows that cannot be used")]
    MayBeSkipped(Box<DataError>),
    /// A row whose keys do not fit.
    #[error("{path}, {place}: {problem}", path = path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Where the row lies.
        place: Place,
        /// What is wrong with it.
        problem: Box<RowProblem>,
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

/// Bad rows that are listed; further ones are counted.
pub(super) const LISTED: usize = 10;

/// One line for each of the first bad rows, without the file's name, and the number of the others.
fn several(path: &Path, first: &[DataError], count: usize) -> String {
    let path = path.display().to_string();
    let mut text = format!("{path}: {count} rows cannot be used:");
    for error in first {
        let line = error.to_string();
        let line = line.strip_prefix(&path).unwrap_or(&line);
        text.push_str("\n  ");
        text.push_str(line.trim_start_matches([',', ':', ' ']));
    }
    if count > first.len() {
        text.push_str(&format!("\n  and {} more", count - first.len()));
    }
    text
}

/// The bad rows of a file as they are found.
#[derive(Debug, Default)]
pub(super) struct BadRows {
    first: Vec<DataError>,
    count: usize,
}

impl BadRows {
    /// Keeps what is wrong with one row; anything else than a row's fault is given back.
    pub fn add(&mut self, error: DataError) -> Result<(), DataError> {
        match error {
            DataError::Row { .. } | DataError::Syntax { .. } | DataError::Duplicate { .. } => {
                self.count += 1;
                if self.first.len() < LISTED {
                    self.first.push(error);
                }
                Ok(())
            }
            other => Err(other),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Says which of `all` rows are left out, if any.
    pub fn warn(self, path: &Path, all: usize) {
        let count = self.count;
        if let Err(error) = self.into_result(path) {
            tracing::warn!("{count} of {all} rows are left out (on_bad_row = skip): {error}");
        }
    }

    /// An error that names them, if there are any.
    pub fn into_result(mut self, path: &Path) -> Result<(), DataError> {
        match (self.count, self.first.pop()) {
            (0, _) | (_, None) => Ok(()),
            (1, Some(only)) => Err(only),
            (count, Some(last)) => {
                self.first.push(last);
                Err(DataError::Several {
                    path: path.to_path_buf(),
                    first: self.first,
                    count,
                })
            }
        }
    }
}

impl DataError {
    /// Bad rows with what to do about them; anything else as it is.
    pub(super) fn with_advice(self) -> Self {
        match self {
            DataError::Row { .. }
            | DataError::Syntax { .. }
            | DataError::Duplicate { .. }
            | DataError::Several { .. } => DataError::MayBeSkipped(Box::new(self)),
            other => other,
        }
    }

    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        DataError::Io {
            path: path.to_path_buf(),
            action,
            source,
        }
    }
}
