//! Reading lines of JSON objects.

use std::path::Path;

use serde_json::Value;

use super::error::{DataError, Place};
use super::fields::Object;
use super::format::EachRow;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How a file ends, for those who append to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Length in bytes up to the end of the last whole row.
    pub whole: usize,
    /// Whether the last whole row still lacks its newline.
    pub open: bool,
}

/// Calls `each` for every row. Blank lines, CRLF and a byte order mark are tolerated; a last line
/// that has no newline and is not JSON is a torn write and dropped with a warning.
pub(super) fn scan(path: &Path, bytes: &[u8], each: &mut EachRow) -> Result<Tail, DataError> {
    let mut start = if bytes.starts_with(BYTE_ORDER_MARK) {
        BYTE_ORDER_MARK.len()
    } else {
        0
    };
    let mut tail = Tail {
        whole: start,
        open: false,
    };
    let mut line = 0;
    while start < bytes.len() {
        line += 1;
        let newline = bytes[start..].iter().position(|&byte| byte == b'\n');
        let end = newline.map_or(bytes.len(), |length| start + length);
        let text = bytes[start..end].trim_ascii();
        start = end + 1;
        if !text.is_empty() {
            match parse(text) {
                Ok(row) => each(Place::Line(line), row)?,
                Err(Problem::Syntax(_)) if newline.is_none() => {
                    tracing::warn!("{}, line {line}: torn last line dropped", path.display());
                    break;
                }
                Err(Problem::Syntax(detail) | Problem::NotObject(detail)) => {
                    return Err(DataError::Syntax {
                        path: path.to_path_buf(),
                        line,
                        detail,
                    });
                }
            }
        }
        tail = Tail {
            whole: start.min(bytes.len()),
            open: newline.is_none() && !text.is_empty(),
        };
    }
    Ok(tail)
}

enum Problem {
    Syntax(String),
    NotObject(String),
}

fn parse(text: &[u8]) -> Result<Object, Problem> {
    let text =
        std::str::from_utf8(text).map_err(|_| Problem::Syntax("it is not UTF-8".to_string()))?;
    match serde_json::from_str(text) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(other) => Err(Problem::NotObject(format!(
            "found {}",
            match other {
                Value::Array(_) => "a list",
                Value::String(_) => "a string",
                _ => "a bare value",
            }
        ))),
        Err(error) => {
            let hint = if text.contains("NaN") || text.contains("Infinity") {
                " (JSON has no NaN or Infinity)"
            } else {
                ""
            };
            Err(Problem::Syntax(format!("{error}{hint}")))
        }
    }
}
