//! A file that holds one JSON object.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::DataError;
use super::json_text::{self, Problem};

/// Reads a file that holds one object, as Python writes it too. Under the `keys` that are read,
/// values that JSON lacks (NaN, Infinity) are an error; other keys that hold some are left out.
pub fn read_object(path: &Path, keys: &[&str]) -> Result<Map<String, Value>, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::io(path, "read it", source))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let broken = |detail: String| DataError::NotRows {
        path: path.to_path_buf(),
        detail,
    };
    if text.trim_ascii().is_empty() {
        return Err(broken("is empty; a JSON object was expected".into()));
    }
    json_text::parse(text, Some(keys)).map_err(|problem| match problem {
        Problem::Syntax(detail) => {
            broken(format!("is no JSON: {detail}; was it cut off or written into? put the whole file there, or take it away"))
        }
        Problem::NotObject(detail) => broken(format!("must hold one JSON object: {detail}")),
        Problem::Row(problem) => broken(problem.to_string()),
    })
}
