//! What is wrong with one row, and how a value is named in saying so.

use serde_json::Value;

/// A JSON object as the readers hand it over.
pub(super) type Object = serde_json::Map<String, serde_json::Value>;

/// What is wrong with one row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowProblem {
    /// A key that must be there is absent or null.
    #[error("key `{key}` is missing; {need}")]
    Missing {
        /// The key.
        key: String,
        /// Why it must be there.
        need: String,
    },
    /// A key holds something else than it should.
    #[error("key `{key}` must be {expected}, found {found}")]
    Mistyped {
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A key that would change the prompt or the answer and cannot be followed.
    #[error("key `{key}` holds {found}; {advice}")]
    Refused {
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What to do about it.
        advice: String,
    },
}

impl RowProblem {
    pub(super) fn missing(key: &str, need: impl Into<String>) -> Self {
        RowProblem::Missing {
            key: key.to_string(),
            need: need.into(),
        }
    }

    pub(super) fn mistyped(
        key: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        RowProblem::Mistyped {
            key: key.into(),
            expected: expected.into(),
            found: found.into(),
        }
    }

    pub(super) fn refused(
        key: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        RowProblem::Refused {
            key: key.into(),
            found: found.into(),
            advice: advice.into(),
        }
    }
}

/// A short account of a value for error messages.
pub(super) fn describe(value: &Value) -> String {
    const SHOWN: usize = 40;
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.chars().count() <= SHOWN => format!("the string {text:?}"),
        Value::String(text) => {
            let start: String = text.chars().take(SHOWN).collect();
            format!("the string {start:?}…")
        }
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".to_string(),
    }
}
