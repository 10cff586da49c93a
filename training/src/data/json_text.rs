//! One row of JSON text, also as Python writes it.
//!
//! `json.dumps` writes NaN, Infinity and halves of surrogate pairs, which JSON and Unicode do not
//! know. In a column that nobody reads they do no harm; in another the row is refused by its key.

use std::borrow::Cow;

use serde_json::Value;

use super::problem::{Object, RowProblem};

/// Begins a text that stands for a value which JSON lacks; a code point that is no character.
const MARK: char = '\u{fdd0}';

/// What is wrong with the text of a row.
#[derive(Debug)]
pub(super) enum Problem {
    /// It is not JSON; it may have been cut off.
    Syntax(String),
    /// It is whole, but not an object of JSON.
    NotObject(String),
    /// A key holds what is no text.
    Row(RowProblem),
}

/// Parses the text of one row; `keys` are those that are read, all where none are given.
pub(super) fn parse(text: &[u8], keys: Option<&[&str]>) -> Result<Object, Problem> {
    let text =
        std::str::from_utf8(text).map_err(|_| Problem::Syntax("it is not UTF-8".to_string()))?;
    let error = match serde_json::from_str(text) {
        Ok(value) => return object(value),
        Err(error) => error,
    };
    // The mark must not be in the text itself, by its character or its escape.
    let strange = text.contains(MARK) || text.to_ascii_lowercase().contains("\\ufdd0");
    let marked = match marked(text) {
        Cow::Owned(marked) if !strange => serde_json::from_str(&marked).ok(),
        _ => None,
    };
    let Some(value) = marked else {
        let hint = match text.contains("NaN") || text.contains("Infinity") {
            true => " (JSON has no NaN or Infinity)",
            false => "",
        };
        return Err(Problem::Syntax(format!("{error}{hint}")));
    };
    let mut row = object(value)?;
    let mut unread = Vec::new();
    for (key, value) in &row {
        let Some((path, what)) = find_mark(key, key, value) else {
            continue;
        };
        if keys.is_none_or(|keys| keys.contains(&key.as_str())) {
            return Err(problem(&path, &what));
        }
        unread.push(key.clone());
    }
    for key in unread {
        row.remove(&key);
    }
    Ok(row)
}

fn object(value: Value) -> Result<Object, Problem> {
    let found = match value {
        Value::Object(row) => return Ok(row),
        Value::Array(_) => "a list",
        Value::String(_) => "a string",
        _ => "a bare value",
    };
    Err(Problem::NotObject(format!("found {found}")))
}

fn problem(path: &str, what: &str) -> Problem {
    if what.starts_with('u') {
        return Problem::Row(RowProblem::refused(
            path,
            format!("`\\{what}`, half of a surrogate pair, which is no character"),
            "remove it; in Python, text.encode(\"utf-16\", \"surrogatepass\").decode(\"utf-16\", \"replace\") does",
        ));
    }
    let problem = RowProblem::mistyped(
        path,
        "a value that JSON knows",
        format!(
            "{what} (JSON has no NaN or Infinity); write a finite number or null, or leave the key out"
        ),
    );
    Problem::NotObject(problem.to_string())
}

/// Where the first mark lies in a value or its keys, and what it stands for.
fn find_mark(path: &str, key: &str, value: &Value) -> Option<(String, String)> {
    let marked = |text: &str| {
        let (_, behind) = text.split_once(MARK)?;
        Some(behind.split(MARK).next().unwrap_or_default().to_string())
    };
    if let Some(what) = marked(key) {
        return Some((path.replace(MARK, ""), what));
    }
    match value {
        Value::String(text) => marked(text).map(|what| (path.to_string(), what)),
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(i, item)| find_mark(&format!("{path}[{i}]"), "", item))
        }
        Value::Object(object) => {
            let mut members = object.iter();
            members.find_map(|(name, item)| find_mark(&format!("{path}.{name}"), name, item))
        }
        _ => None,
    }
}

/// The text with marks in place of numbers that JSON lacks and of halves of surrogate pairs.
fn marked(text: &str) -> Cow<'_, str> {
    let mut result = String::new();
    let mut copied = 0;
    let mut at = 0;
    let bytes = text.as_bytes();
    let mut in_string = false;
    while at < bytes.len() {
        let (length, mark) = match (in_string, bytes[at]) {
            (false, b'N' | b'I' | b'-' | b'0'..=b'9') => lacking_number(&text[at..]),
            (true, b'\\') => lone_surrogate(&text[at..]),
            (_, b'"') => {
                in_string = !in_string;
                (1, None)
            }
            _ => (1, None),
        };
        if let Some(mark) = mark {
            result.push_str(&text[copied..at]);
            result.push_str(&mark);
            copied = at + length;
        }
        at += length;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    result.push_str(&text[copied..]);
    Cow::Owned(result)
}

/// Length of the bare word here, and a text in its place where it is no finite number.
fn lacking_number(text: &str) -> (usize, Option<String>) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let word = &text[..end.unwrap_or(text.len())];
    let number = word.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    let lacking = matches!(word, "NaN" | "Infinity" | "-Infinity")
        || (number
            && word
                .bytes()
                .all(|b| !b.is_ascii_alphabetic() || b == b'e' || b == b'E')
            && word.parse().is_ok_and(|value: f64| value.is_infinite()));
    (
        word.len().max(1),
        lacking.then(|| format!("\"{MARK}{word}{MARK}\"")),
    )
}

/// Length of the escape here, and a text in its place where it is half of a surrogate pair.
fn lone_surrogate(text: &str) -> (usize, Option<String>) {
    let unit = |text: &str| {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u16::from_str_radix(digits, 16).ok()
    };
    let Some(first) = unit(text) else {
        // An escaped character, which may be a quote.
        let escaped = text.chars().nth(1).map_or(0, char::len_utf8);
        return (1 + escaped, None);
    };
    match first {
        0xd800..0xdc00 => match unit(&text[6..]) {
            Some(0xdc00..0xe000) => (12, None),
            _ => (6, Some(format!("{MARK}{}{MARK}", &text[1..6]))),
        },
        0xdc00..0xe000 => (6, Some(format!("{MARK}{}{MARK}", &text[1..6]))),
        _ => (6, None),
    }
}
