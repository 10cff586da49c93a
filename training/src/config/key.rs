//! The types that a key of the configuration can have, and what is said of a key.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use regex::Regex;
use serde::{Serialize, Serializer};
use sppo_model::chat_template::NaiveDate;
use toml::Value;

/// What a key changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Affects {
    /// What is written depends on it.
    Result,
    /// Speed or memory only; results are the same but for rounding.
    Speed,
    /// Neither: where files lie (what is in them counts by itself), what is kept, how failures
    /// are met.
    Nothing,
}

/// One documented key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyDoc {
    /// Section, dotted; empty for the top level.
    pub section: String,
    /// Key within the section.
    pub key: &'static str,
    /// What it does.
    pub doc: String,
    /// What a value looks like, e.g. `a number above 0` or `one of linear, cosine, constant`.
    pub expected: String,
    /// Default as TOML text; absent for a key that is off unless given.
    pub default: Option<String>,
    /// A value to show where there is no default.
    pub example: Option<&'static str>,
    /// What it changes.
    pub affects: Affects,
    /// The keys of each entry, where the value is a list of tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<KeyDoc>,
}

/// A value that does not fit its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// The key, dotted.
    pub key: String,
    /// What the value must be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// A nearer explanation, if there is one.
    pub hint: Option<String>,
}

impl Misfit {
    /// Of a key of type `K`.
    pub fn of<K: Key>(value: &Value, path: &str, hint: Option<String>) -> Self {
        Self {
            key: path.into(),
            expected: K::expected(),
            found: describe(value),
            hint,
        }
    }
}

/// The type of a key.
pub trait Key: Sized {
    /// What a value looks like, for messages and documentation.
    fn expected() -> String;
    /// Reads a TOML value; `path` is the key's dotted name.
    fn read(value: &Value, path: &str) -> Result<Self, Misfit>;
    /// The TOML value, if `short` without the keys of its tables that are at their default;
    /// `None` when there is nothing to write.
    fn write(&self, short: bool) -> Option<Value>;
    /// The keys of each entry, where the value is a list of tables.
    fn entries(_path: &str) -> Vec<KeyDoc> {
        Vec::new()
    }
}

/// A type whose values fit or do not: what they look like, how they are read and written.
macro_rules! plain_key {
    ($($Type:ty: $expected:expr, $read:expr, $write:expr;)*) => { $(
        impl Key for $Type {
            fn expected() -> String {
                $expected.into()
            }
            fn read(value: &Value, path: &str) -> Result<Self, Misfit> {
                let read: fn(&Value) -> Option<Self> = $read;
                read(value).ok_or_else(|| Misfit::of::<Self>(value, path, None))
            }
            fn write(&self, _short: bool) -> Option<Value> {
                let write: fn(&Self) -> Option<Value> = $write;
                write(self)
            }
        }
    )* };
}

plain_key! {
    f64: "a finite number", |value| number(value).filter(|x| x.is_finite()),
        |x| Some(Value::Float(*x));
    usize: "a whole number, 0 or more", |value| value.as_integer()?.try_into().ok(),
        |x| Some(Value::Integer(i64::try_from(*x).ok()?));
    u64: usize::expected(), |value| value.as_integer()?.try_into().ok(),
        |x| Some(Value::Integer(i64::try_from(*x).ok()?));
    bool: "true or false", |value| value.as_bool(), |x| Some(Value::Boolean(*x));
    String: "a string that is not empty", |value| Some(filled(value)?.into()),
        |text| Some(Value::String(text.clone()));
    // An empty path stands for one that was not given.
    PathBuf: "a path (a string that is not empty)", |value| Some(filled(value)?.into()),
        |path| Some(path.to_string_lossy()).filter(|p| !p.is_empty()).map(|p| Value::String(p.into()));
}

/// A day, as `YYYY-MM-DD`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date(pub NaiveDate);

impl FromStr for Date {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d");
        // chrono takes signs, blanks, and longer and shorter fields too.
        let as_written = |date: &Self| text.len() == 10 && date.to_string() == text;
        let date = date.ok().map(Self).filter(as_written);
        date.ok_or_else(|| format!("expected {}", Self::expected()))
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

plain_key! {
    // Also without quotes, which is a date in TOML.
    Date: "a day as YYYY-MM-DD", |value| match value {
            Value::Datetime(day) => day.to_string().parse().ok(),
            value => value.as_str()?.parse().ok(),
        },
        |date| Some(Value::String(date.to_string()));
}

/// A regular expression in the syntax of the `regex` crate.
#[derive(Debug, Clone)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl Key for Pattern {
    fn expected() -> String {
        "a regular expression".into()
    }
    fn read(value: &Value, path: &str) -> Result<Self, Misfit> {
        let text = filled(value).ok_or_else(|| Misfit::of::<Self>(value, path, None))?;
        Regex::new(text).map(Self).map_err(|error| {
            // The lines before the last one draw the place in the expression.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            let problem = last.trim_start_matches("error: ");
            let hint = format!("not a regular expression: {problem}");
            Misfit::of::<Self>(value, path, Some(hint))
        })
    }
    fn write(&self, _short: bool) -> Option<Value> {
        Some(Value::String(self.0.as_str().into()))
    }
}

impl<K: Key> Key for Option<K> {
    fn expected() -> String {
        K::expected()
    }
    fn read(value: &Value, path: &str) -> Result<Self, Misfit> {
        K::read(value, path).map(Some)
    }
    fn write(&self, short: bool) -> Option<Value> {
        self.as_ref()?.write(short)
    }
}

impl<K: Key> Key for Vec<K> {
    fn expected() -> String {
        format!("a list, each entry {}", K::expected())
    }
    fn read(value: &Value, path: &str) -> Result<Self, Misfit> {
        let list = value.as_array();
        let list = list.ok_or_else(|| Misfit::of::<Self>(value, path, None))?;
        let entry = |(i, entry): (usize, &Value)| {
            let name = format!("{path}[{i}]");
            K::read(entry, &name).map_err(|misfit| {
                // Within the entry the misfit says more than the list could.
                if misfit.key != name {
                    return misfit;
                }
                let near = misfit.hint.map(|hint| format!(" ({hint})"));
                let hint = format!("{entry} does not fit{}", near.unwrap_or_default());
                Misfit::of::<Self>(value, path, Some(hint))
            })
        };
        list.iter().enumerate().map(entry).collect()
    }
    fn write(&self, short: bool) -> Option<Value> {
        let values = self.iter().filter_map(|entry| entry.write(short));
        Some(Value::Array(values.collect()))
    }
    fn entries(path: &str) -> Vec<KeyDoc> {
        K::entries(&format!("{path}[]"))
    }
}

/// TOML text of a value; floats keep their exponent (`5e-7`).
pub fn toml_text(value: &Value) -> String {
    match value {
        Value::Float(x) => format!("{x:?}"),
        other => other.to_string(),
    }
}

/// `parent.name`, or `name` at the top level.
pub fn join(parent: &str, name: &str) -> String {
    match parent {
        "" => name.into(),
        _ => format!("{parent}.{name}"),
    }
}

/// A number of either kind.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(x) => Some(*x),
        Value::Integer(x) => Some(*x as f64),
        _ => None,
    }
}

/// A string that is not empty.
pub fn filled(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

fn describe(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Array(_) => "an array".into(),
        Value::String(text) => format!("the string {text:?}"),
        other => toml_text(other),
    }
}
