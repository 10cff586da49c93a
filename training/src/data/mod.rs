//! Row files: prompts, responses, judged rows, pairs, sft rows and log-probabilities as `.jsonl`
//! or `.parquet`, chosen by the file's extension.
//!
//! [`read_rows`] reads a whole file; [`RowWriter`] appends whole rows, and opening it on a file
//! that an earlier run left gives that run's rows back, so that the rest can be done.

mod fields;
mod jsonl;
mod parquet;
mod parquet_writer;
mod rows;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use fields::{Fields, RowProblem};
pub use rows::{
    JudgedRow, LogpRow, PairContent, PairRow, ProbabilityKey, Prompt, PromptRow, ResponseRow, Row,
    SftRow, check_probabilities, stable_hash,
};
pub use writer::RowWriter;

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
    /// The operating system refused something.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    /// The extension is neither of the two known ones.
    #[error("{path}: unknown kind of row file: the name must end in .jsonl or .parquet", path = path.display())]
    Extension { path: PathBuf },
    /// An input without rows.
    #[error("{path}: holds no rows ({kind} expected)", path = path.display())]
    Empty { path: PathBuf, kind: &'static str },
    /// A line that is not a JSON object.
    #[error("{path}, line {line}: not a JSON object: {detail}", path = path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        detail: String,
    },
    /// A row whose keys do not fit.
    #[error("{path}, {place}: {problem}", path = path.display())]
    Row {
        path: PathBuf,
        place: Place,
        problem: RowProblem,
    },
    /// A `prompt_id` that two rows carry.
    #[error("{path}: prompt_id `{id}` stands at {first} and again at {second}; ids must be unique", path = path.display())]
    Duplicate {
        path: PathBuf,
        id: String,
        first: Place,
        second: Place,
    },
    /// A Parquet file that cannot be read or written.
    #[error("{path}: {detail}", path = path.display())]
    Parquet { path: PathBuf, detail: String },
    /// A row that does not fit the columns of the rows before it.
    #[error(
        "{path}: column `{column}` holds {before} and now {now}, but a Parquet column has one type; write to a .jsonl file instead",
        path = path.display()
    )]
    MixedColumn {
        path: PathBuf,
        column: String,
        before: &'static str,
        now: &'static str,
    },
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

/// The kinds of row file, by extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Jsonl,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Result<Self, DataError> {
        let extension = path.extension().and_then(|e| e.to_str());
        match extension.map(str::to_ascii_lowercase).as_deref() {
            Some("jsonl") => Ok(Format::Jsonl),
            Some("parquet") => Ok(Format::Parquet),
            _ => Err(DataError::Extension {
                path: path.to_path_buf(),
            }),
        }
    }
}

/// Reads all rows of an input file. A file without rows is an error; a torn last line of a
/// `.jsonl` file is dropped with a warning.
pub fn read_rows<T: Row>(path: &Path) -> Result<Vec<T>, DataError> {
    let mut collector = Collector::new(path);
    match Format::of(path)? {
        Format::Jsonl => {
            let bytes =
                std::fs::read(path).map_err(|source| DataError::io(path, "read it", source))?;
            jsonl::scan(path, &bytes, &mut |place, row| collector.add(place, &row))?;
        }
        Format::Parquet => parquet::scan(path, T::KEYS, T::KIND, &mut |place, row| {
            collector.add(place, &row)
        })?,
    }
    if collector.rows.is_empty() {
        return Err(DataError::Empty {
            path: path.to_path_buf(),
            kind: T::KIND,
        });
    }
    Ok(collector.rows)
}

/// Writes all rows of a file anew: beside it first, then renamed, so that a kill leaves the old
/// rows or the new ones.
pub fn write_rows<T: Row>(path: &Path, rows: &[T]) -> Result<(), DataError> {
    Format::of(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".new-{name}"));
    // What an earlier, killed run left must not be continued.
    for stale in [
        &aside,
        &writer::journal_of(&aside),
        &writer::journal_of(path),
    ] {
        match std::fs::remove_file(stale) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(DataError::io(stale, "remove it", source));
            }
            _ => {}
        }
    }
    let (mut writer, _) = RowWriter::open(&aside)?;
    for row in rows {
        writer.append(row)?;
    }
    writer.finish()?;
    std::fs::rename(&aside, path).map_err(|source| DataError::io(path, "replace it", source))
}

/// A JSON object as the readers hand it over.
type Object = serde_json::Map<String, serde_json::Value>;

/// What the readers call for every row.
type EachRow<'a> = dyn FnMut(Place, Object) -> Result<(), DataError> + 'a;

/// Turns objects into rows and watches over their ids.
struct Collector<'a, T> {
    path: &'a Path,
    rows: Vec<T>,
    seen: HashMap<String, Place>,
}

impl<'a, T: Row> Collector<'a, T> {
    fn new(path: &'a Path) -> Self {
        Collector {
            path,
            rows: Vec::new(),
            seen: HashMap::new(),
        }
    }

    fn add(&mut self, place: Place, object: &Object) -> Result<(), DataError> {
        let fields = Fields::new(object);
        let mut row = T::from_fields(&fields).map_err(|problem| DataError::Row {
            path: self.path.to_path_buf(),
            place,
            problem,
        })?;
        if let Some(id) = row.unique_id() {
            let own = fields.get("prompt_id").is_some();
            self.claim(id, own, place)?;
        }
        self.rows.push(row);
        Ok(())
    }

    /// Records an id. Two rows that name the same id are refused; equal prompts without ids are
    /// told apart by a suffix in the order of the file, so that a data set with repeats works.
    fn claim(&mut self, id: &mut String, own: bool, place: Place) -> Result<(), DataError> {
        if !own {
            let hash = id.clone();
            let mut count = 1;
            while self.seen.contains_key(id.as_str()) {
                count += 1;
                *id = format!("{hash}-{count}");
            }
        }
        match self.seen.insert(id.clone(), place) {
            None => Ok(()),
            Some(first) => Err(DataError::Duplicate {
                path: self.path.to_path_buf(),
                id: id.clone(),
                first,
                second: place,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
