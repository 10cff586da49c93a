//! Reading `.json` files: one array of rows, or lines of them as `datasets` writes under that name.

use std::path::Path;

use serde_json::Value;

use super::error::{DataError, Place};
use super::format::EachResult;
use super::json_text;
use super::jsonl;
use super::problem::Object;

/// Calls `each` for every row, with what is wrong with those that cannot be read.
pub(super) fn read(
    path: &Path,
    bytes: &[u8],
    keys: &[&str],
    each: &mut EachResult,
) -> Result<(), DataError> {
    let start = jsonl::behind_mark(bytes);
    match bytes[start..].trim_ascii_start().first() {
        Some(b'[') => array(path, &bytes[start..], keys, each),
        Some(b'{') => match serde_json::from_slice(&bytes[start..]) {
            Ok(Value::Object(row)) if keys.iter().any(|key| row.contains_key(*key)) => {
                each(Place::Row(1), Ok(row))
            }
            Ok(Value::Object(wrapper)) => Err(wrapped(path, &wrapper)),
            _ => jsonl::read(path, bytes, keys, each).map(|_| ()),
        },
        _ => jsonl::read(path, bytes, keys, each).map(|_| ()),
    }
}

/// An object around the rows, like `{"data": […]}`.
fn wrapped(path: &Path, wrapper: &Object) -> DataError {
    let inside = wrapper.iter().find(|(_, value)| value.is_array());
    let how = inside.map_or(String::new(), |(key, _)| {
        format!(
            "; if they are its `{key}`: jq -c '.[\"{key}\"][]' {name} > rows.jsonl",
            name = path.display()
        )
    });
    DataError::NotRows {
        path: path.to_path_buf(),
        detail: format!(
            "holds one object without the keys of a row; a .json file must be an array of rows{how}"
        ),
    }
}

/// An array's elements, each with its number and the line on which it begins.
fn array(path: &Path, bytes: &[u8], keys: &[&str], each: &mut EachResult) -> Result<(), DataError> {
    let mut cursor = Cursor {
        bytes,
        at: 0,
        line: 1,
    };
    let broken = |line, detail: &str| DataError::Array {
        path: path.to_path_buf(),
        line,
        detail: detail.to_string(),
    };
    cursor.skip_blank();
    cursor.at += 1;
    cursor.skip_blank();
    let mut row = 0;
    if cursor.peek() == Some(b']') {
        cursor.at += 1;
    } else {
        loop {
            cursor.skip_blank();
            let (begin, line) = (cursor.at, cursor.line);
            if !cursor.skip_value() {
                return Err(broken(
                    cursor.line,
                    "the array does not end; is the file cut off?",
                ));
            }
            row += 1;
            let place = Place::Element { row, line };
            match json_text::parse(&bytes[begin..cursor.at], Some(keys)) {
                Ok(object) => each(place, Ok(object))?,
                Err(problem) => each(place, Err(jsonl::error(path, place, problem)))?,
            }
            cursor.skip_blank();
            cursor.at += 1;
            match bytes.get(cursor.at - 1) {
                Some(b',') => {}
                Some(b']') => break,
                None => {
                    return Err(broken(
                        cursor.line,
                        "the array does not end; is the file cut off?",
                    ));
                }
                Some(_) => {
                    return Err(broken(
                        cursor.line,
                        "a comma or the end of the array must follow",
                    ));
                }
            }
        }
    }
    cursor.skip_blank();
    match cursor.peek() {
        None => Ok(()),
        Some(_) => Err(broken(
            cursor.line,
            "something follows behind the array's end",
        )),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn step(&mut self) {
        self.line += usize::from(self.peek() == Some(b'\n'));
        self.at += 1;
    }

    fn skip_blank(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.step();
        }
    }

    /// Goes on to the comma or bracket behind a value; false where the file ends before.
    fn skip_value(&mut self) -> bool {
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b',' | b']' if depth == 0 => return true,
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                b'"' => {
                    if !self.skip_string() {
                        return false;
                    }
                    continue;
                }
                _ => {}
            }
            self.step();
        }
        false
    }

    fn skip_string(&mut self) -> bool {
        self.step();
        while let Some(byte) = self.peek() {
            self.step();
            match byte {
                b'"' => return true,
                b'\\' => self.step(),
                _ => {}
            }
        }
        false
    }
}
