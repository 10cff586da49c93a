//! Typed access to the keys of one row, with errors that say what was found.

use serde_json::Value;
use sppo_model::chat_template::Message;

use super::messages::message;
pub(super) use super::problem::Object;
pub use super::problem::RowProblem;
use super::problem::describe;
use super::prompt::Prompt;

type Found<T> = Result<Option<T>, RowProblem>;

/// The keys of one row. A key that is null counts as absent.
pub struct Fields<'a>(&'a Object);

impl<'a> Fields<'a> {
    pub(super) fn new(object: &'a Object) -> Self {
        Fields(object)
    }

    /// The value of a key, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// The names of the keys that are there.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        let there = self.0.iter().filter(|(_, value)| !value.is_null());
        there.map(|(name, _)| name.as_str())
    }

    /// The value of a key, or an error that says what the row needs it for.
    pub fn require<T>(&self, key: &str, need: &str, found: Found<T>) -> Result<T, RowProblem> {
        found?.ok_or_else(|| RowProblem::missing(key, need))
    }

    /// A string.
    pub fn string(&self, key: &str) -> Found<String> {
        self.get(key)
            .map(|value| text(key, value).map(str::to_string))
            .transpose()
    }

    /// An identifier: a string that is not empty, or an integer.
    pub fn id(&self, key: &str) -> Found<String> {
        self.get(key)
            .map(|value| match value {
                Value::String(id) if !id.is_empty() => Ok(id.clone()),
                Value::Number(id) if id.is_i64() || id.is_u64() => Ok(id.to_string()),
                other => Err(RowProblem::mistyped(
                    key,
                    "a string that is not empty, or an integer",
                    describe(other),
                )),
            })
            .transpose()
    }

    /// A list of strings.
    pub fn strings(&self, key: &str) -> Found<Vec<String>> {
        self.list(key, "a list of strings", |key, value| {
            text(key, value).map(str::to_string)
        })
    }

    /// A list of integers from 0 to `u32::MAX`: token ids or counts.
    pub fn ids(&self, key: &str) -> Found<Vec<u32>> {
        self.list(key, "a list of integers", id)
    }

    /// A list of such lists.
    pub fn lists_of_ids(&self, key: &str) -> Found<Vec<Vec<u32>>> {
        self.list(key, "a list of lists of integers", |key, value| {
            list(key, value, "a list of integers", id)
        })
    }

    /// True or false.
    pub fn boolean(&self, key: &str) -> Found<bool> {
        let read = |value: &Value| {
            let found = value.as_bool();
            found.ok_or_else(|| RowProblem::mistyped(key, "true or false", describe(value)))
        };
        self.get(key).map(read).transpose()
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Found<f64> {
        self.get(key).map(|value| number(key, value)).transpose()
    }

    /// A list of finite numbers.
    pub fn numbers(&self, key: &str) -> Found<Vec<f64>> {
        self.list(key, "a list of numbers", number)
    }

    /// A square matrix of finite numbers, as a list of rows.
    pub fn matrix(&self, key: &str) -> Found<Vec<Vec<f64>>> {
        let matrix = self.list(key, "a list of lists of numbers", |key, value| {
            list(key, value, "a list of numbers", number)
        })?;
        if let Some(matrix) = &matrix {
            for (i, row) in matrix.iter().enumerate() {
                if row.len() != matrix.len() {
                    return Err(RowProblem::mistyped(
                        format!("{key}[{i}]"),
                        format!("{} numbers long (the matrix is square)", matrix.len()),
                        format!("{} numbers", row.len()),
                    ));
                }
            }
        }
        Ok(matrix)
    }

    /// A number from 0 to 1.
    pub fn probability(&self, key: &str) -> Found<f64> {
        let value = self.number(key)?;
        value.map(|value| in_unit(key, value)).transpose()
    }

    /// A list of chat turns, at least one; a single turn may stand without a list.
    pub fn messages(&self, key: &str) -> Found<Vec<Message>> {
        if let Some(turn @ Value::Object(_)) = self.get(key) {
            return Ok(Some(vec![message(key, turn)?]));
        }
        let Some(messages) = self.list(key, "a list of messages", message)? else {
            return Ok(None);
        };
        if messages.is_empty() {
            return Err(RowProblem::mistyped(
                key,
                "a list of at least one message",
                "an empty list",
            ));
        }
        Ok(Some(messages))
    }

    /// A prompt: a string that is not empty, or a message list.
    pub fn prompt(&self, key: &str) -> Found<Prompt> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Err(RowProblem::mistyped(
                key,
                "a prompt that is not empty",
                "an empty string",
            )),
            Some(Value::String(text)) => Ok(Some(Prompt::Text(text.clone()))),
            Some(Value::Array(_)) => Ok(self.messages(key)?.map(Prompt::Messages)),
            Some(other) => Err(RowProblem::mistyped(
                key,
                "a string or a list of messages",
                describe(other),
            )),
        }
    }

    fn list<T>(
        &self,
        key: &str,
        expected: &str,
        each: impl Fn(&str, &Value) -> Result<T, RowProblem>,
    ) -> Found<Vec<T>> {
        self.get(key)
            .map(|value| list(key, value, expected, each))
            .transpose()
    }
}

/// Refuses a list whose length is not the number of responses.
pub(super) fn same_length(key: &str, length: usize, responses: usize) -> Result<(), RowProblem> {
    if length == responses {
        return Ok(());
    }
    Err(RowProblem::mistyped(
        key,
        format!("{responses} long, one for each response"),
        format!("{length}"),
    ))
}

/// Refuses a number outside 0..=1.
pub(super) fn in_unit(key: &str, value: f64) -> Result<f64, RowProblem> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(RowProblem::mistyped(
            key,
            "a number from 0 to 1",
            value.to_string(),
        ))
    }
}

fn list<T>(
    key: &str,
    value: &Value,
    expected: &str,
    each: impl Fn(&str, &Value) -> Result<T, RowProblem>,
) -> Result<Vec<T>, RowProblem> {
    let Value::Array(items) = value else {
        return Err(RowProblem::mistyped(key, expected, describe(value)));
    };
    items
        .iter()
        .enumerate()
        .map(|(i, item)| each(&format!("{key}[{i}]"), item))
        .collect()
}

fn text<'v>(key: &str, value: &'v Value) -> Result<&'v str, RowProblem> {
    value
        .as_str()
        .ok_or_else(|| RowProblem::mistyped(key, "a string", describe(value)))
}

fn id(key: &str, value: &Value) -> Result<u32, RowProblem> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| RowProblem::mistyped(key, "an integer from 0 to 4294967295", describe(value)))
}

fn number(key: &str, value: &Value) -> Result<f64, RowProblem> {
    value
        .as_f64()
        .filter(|number| number.is_finite())
        .ok_or_else(|| RowProblem::mistyped(key, "a finite number", describe(value)))
}
