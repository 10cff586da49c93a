//! What all kinds of row file have in common.

use std::path::Path;

use super::error::{DataError, Place};
use super::fields::Object;

/// The kinds of row file, by extension, that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl,
    Parquet,
}

/// The kinds of row file that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadFormat {
    Json,
    Jsonl,
    Parquet,
}

impl Format {
    pub fn of(path: &Path) -> Result<Self, DataError> {
        match ReadFormat::of(path)? {
            ReadFormat::Jsonl => Ok(Format::Jsonl),
            ReadFormat::Parquet => Ok(Format::Parquet),
            ReadFormat::Json => Err(extension(path, ": a .json file can only be read")),
        }
    }
}

impl ReadFormat {
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_ascii_lowercase();
        match Path::new(&name).extension().and_then(|e| e.to_str()) {
            Some("json") => Ok(ReadFormat::Json),
            Some("jsonl") => Ok(ReadFormat::Jsonl),
            Some("parquet") => Ok(ReadFormat::Parquet),
            _ => Err(extension(path, how_to_convert(&name))),
        }
    }
}

/// What to do with a file of another kind, by its name in lower case.
fn how_to_convert(name: &str) -> &'static str {
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    if ends(&[".gz", ".zst", ".xz", ".bz2", ".zip"]) {
        "; it is compressed, unpack it first"
    } else if ends(&[".ndjson", ".jsonlines", ".jl"]) {
        "; rename it to .jsonl, if each of its lines is a JSON object"
    } else if ends(&[".csv", ".tsv", ".txt", ".arrow", ".feather"]) {
        "; to convert it, in Python: datasets.load_dataset(KIND, data_files=FILE, split=\"train\").to_json(\"rows.jsonl\"), KIND being csv (sep=\"\\t\" for .tsv), text or arrow"
    } else {
        ""
    }
}

fn extension(path: &Path, hint: &'static str) -> DataError {
    DataError::Extension {
        path: path.to_path_buf(),
        hint,
    }
}

/// What the readers call for every row.
pub(super) type EachRow<'a> = dyn FnMut(Place, Object) -> Result<(), DataError> + 'a;

/// What the readers call for every row, also for one that cannot be read.
pub(super) type EachResult<'a> =
    dyn FnMut(Place, Result<Object, DataError>) -> Result<(), DataError> + 'a;
