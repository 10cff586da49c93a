//! Reading lines of JSON objects.

use std::path::Path;

use super::error::{DataError, Place};
use super::format::{EachResult, EachRow};
use super::json_text::{self, Problem};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// How a file ends, for those who append to it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Length in bytes up to the end of the last whole row.
    pub whole: usize,
    /// Whether the last whole row still lacks its newline.
    pub open: bool,
}

/// Calls `each` for every row and stops at the first that cannot be read.
pub(super) fn scan(path: &Path, bytes: &[u8], each: &mut EachRow) -> Result<Tail, DataError> {
    scan_keys(path, bytes, None, &mut |place, row| each(place, row?))
}

/// Calls `each` for every row, with what is wrong with those that cannot be read; only `keys` are
/// looked at.
pub(super) fn read(
    path: &Path,
    bytes: &[u8],
    keys: &[&str],
    each: &mut EachResult,
) -> Result<Tail, DataError> {
    scan_keys(path, bytes, Some(keys), each)
}

/// Blank lines, CRLF and a byte order mark are tolerated; a last line that has no newline and is
/// not JSON is a torn write and dropped with a warning.
fn scan_keys(
    path: &Path,
    bytes: &[u8],
    keys: Option<&[&str]>,
    each: &mut EachResult,
) -> Result<Tail, DataError> {
    let mut start = behind_mark(bytes);
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
            let place = Place::Line(line);
            match json_text::parse(text, keys) {
                Ok(row) => each(place, Ok(row))?,
                Err(Problem::Syntax(_)) if newline.is_none() => {
                    tracing::warn!("{}, line {line}: torn last line dropped", path.display());
                    break;
                }
                Err(problem) => each(place, Err(error(path, place, problem)))?,
            }
        }
        tail = Tail {
            whole: start.min(bytes.len()),
            open: newline.is_none() && !text.is_empty(),
        };
    }
    Ok(tail)
}

/// Where the text begins, behind a byte order mark.
pub(super) fn behind_mark(bytes: &[u8]) -> usize {
    match bytes.starts_with(BYTE_ORDER_MARK) {
        true => BYTE_ORDER_MARK.len(),
        false => 0,
    }
}

/// What is wrong with the row at a place.
pub(super) fn error(path: &Path, place: Place, problem: Problem) -> DataError {
    let path = path.to_path_buf();
    match problem {
        Problem::Syntax(detail) | Problem::NotObject(detail) => DataError::Syntax {
            path,
            place,
            detail,
        },
        Problem::Row(problem) => DataError::Row {
            path,
            place,
            problem: Box::new(problem),
        },
    }
}
