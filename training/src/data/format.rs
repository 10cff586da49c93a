//! What both kinds of row file have in common.

use std::path::Path;

use super::error::{DataError, Place};
use super::fields::Object;

/// The kinds of row file, by extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl,
    Parquet,
}

impl Format {
    pub fn of(path: &Path) -> Result<Self, DataError> {
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

/// What the readers call for every row.
pub(super) type EachRow<'a> = dyn FnMut(Place, Object) -> Result<(), DataError> + 'a;
