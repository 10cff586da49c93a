//! The keys of a body: each is taken once, null is absent, and an error names its key.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::error::ApiError;

/// The keys of a JSON object that nobody has taken yet.
pub struct Fields {
    keys: Map<String, Value>,
    /// In front of names, such as `messages[2].`.
    path: String,
}

/// An object whose keys all differ; a map would keep the last of equal ones without a word.
struct Object(Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut keys = Map::new();
                while let Some((key, value)) = map.next_entry::<String, Value>()? {
                    if keys.contains_key(&key) {
                        let text = format!("the key {key:?} stands there twice");
                        return Err(serde::de::Error::custom(text));
                    }
                    keys.insert(key, value);
                }
                Ok(Object(keys))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

impl Fields {
    /// Of a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let parsed = serde_json::from_slice::<Object>(body);
        let object = parsed.map_err(|error| {
            ApiError::invalid(format!(
                "the body is not a JSON object that can be read: {error}"
            ))
        })?;
        Ok(Self {
            keys: object.0,
            path: String::new(),
        })
    }

    /// Of an object within a body; `path` is how errors name it.
    pub fn within(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(keys) => Ok(Self {
                keys,
                path: format!("{path}."),
            }),
            other => Err(wrong(path, &other, "an object")),
        }
    }

    /// A key's whole name.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// Takes a key's value; null is none.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.keys.shift_remove(key).filter(|value| !value.is_null())
    }

    /// Takes true or false.
    pub fn flag(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(&self.name(key), &other, "true or false")),
        }
    }

    /// Takes a string.
    pub fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(&self.name(key), &other, "a string")),
        }
    }

    /// Takes a number from `least` to `most`.
    pub fn number(&mut self, key: &str, least: f64, most: f64) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let inside = value.as_f64().filter(|x| (least..=most).contains(x));
        let expected = || {
            wrong(
                &self.name(key),
                &value,
                &format!("a number from {least} to {most}"),
            )
        };
        inside.map(Some).ok_or_else(expected)
    }

    /// Takes a whole number from `least` to `most`; one that is written as 3.0 is one.
    pub fn whole(&mut self, key: &str, least: i64, most: i64) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let inside = whole(&value).filter(|x| (least..=most).contains(x));
        let expected = || {
            let expected = format!("a whole number from {least} to {most}");
            wrong(&self.name(key), &value, &expected)
        };
        inside.map(Some).ok_or_else(expected)
    }

    /// Takes a whole number that is 0 or more.
    pub fn count(&mut self, key: &str, most: usize) -> Result<Option<usize>, ApiError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        Ok(self.whole(key, 0, most)?.map(|count| count as usize))
    }

    /// Takes a key that may only be absent or say what is so anyway.
    pub fn refuse(&mut self, key: &str, harmless: &[Value], why: &str) -> Result<(), ApiError> {
        match self.take(key) {
            Some(value) if !harmless.contains(&value) => {
                let name = self.name(key);
                Err(ApiError::param(name.clone(), format!("`{name}` {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Names of the keys that nobody took and that hold something.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let left = self.keys.iter().filter(|(_, value)| !value.is_null());
        left.map(|(key, _)| key.as_str())
    }
}

/// A JSON number that is whole and fits.
fn whole(value: &Value) -> Option<i64> {
    let float = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
    value.as_i64().or_else(|| float(value.as_f64()?))
}

/// A list of token ids below `vocab`.
pub fn token_ids(values: &[Value], name: &str, vocab: usize) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| match value.as_u64() {
        Some(id) if id < vocab as u64 => Ok(id as u32),
        _ => Err(ApiError::param(
            name,
            format!(
                "`{name}` holds {}, but token ids are whole numbers from 0 to {}",
                shown(value),
                vocab.saturating_sub(1)
            ),
        )),
    };
    values.iter().map(id).collect()
}

/// An error that says what was found and what was expected.
pub fn wrong(name: &str, found: &Value, expected: &str) -> ApiError {
    let message = format!("`{name}` is {}; expected {expected}", shown(found));
    ApiError::param(name, message)
}

/// A value for a message, cut where it is long.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        other => cut(&other.to_string()),
    }
}

/// The beginning of a text.
pub fn cut(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
