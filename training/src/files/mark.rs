//! What an output was made from, kept beside it (a file's) or in it (a folder's).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chrono::{SecondsFormat, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Difference, FileError, OutputError};
use super::hash::fingerprint;
use super::replace::replace_file;
use super::seal::Seal;

/// Version of what is written in marks.
const FORMAT: u32 = 1;

/// The mark within a folder.
pub const IN_FOLDER: &str = "sppo.json";

/// The mark beside a file: `<name>.sppo.json`.
pub fn mark_beside(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".");
    name.push(IN_FOLDER);
    output.with_file_name(name)
}

/// An input of an output. Only its content counts: the same rows elsewhere are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Where it lay.
    pub path: PathBuf,
    /// Of what it held, in hex.
    pub sha256: String,
}

/// All that an output depends on, each with its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    /// The kind of work, like `generate`.
    pub command: String,
    /// Settings in effect that are not at their default, as TOML text.
    pub settings: BTreeMap<String, String>,
    /// Models and files.
    pub inputs: BTreeMap<String, Input>,
}

impl MadeFrom {
    /// Nothing yet, by this kind of work.
    pub fn new(command: &str) -> Self {
        Self {
            command: command.into(),
            ..Self::default()
        }
    }

    /// Adds settings by name.
    pub fn settings<K: Into<String>, V: ToString>(
        mut self,
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let named = settings.into_iter().map(|(k, v)| (k.into(), v.to_string()));
        self.settings.extend(named);
        self
    }

    /// Adds one setting.
    pub fn setting(self, name: &str, value: impl ToString) -> Self {
        self.settings([(name, value)])
    }

    /// Adds an input by the fingerprint of its content.
    pub fn input(mut self, name: &str, path: &Path, sha256: impl Into<String>) -> Self {
        let input = Input {
            path: path.into(),
            sha256: sha256.into(),
        };
        self.inputs.insert(name.into(), input);
        self
    }

    /// What `now` has otherwise, by name.
    pub fn differences(&self, now: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut add = |name: &str, before: String, now: String| {
            found.push(Difference {
                name: name.into(),
                before,
                now,
            });
        };
        if self.command != now.command {
            add("command", self.command.clone(), now.command.clone());
        }
        let text = |value: Option<&String>| value.map_or("the default", |v| v).to_string();
        for name in union(&self.settings, &now.settings) {
            let (a, b) = (self.settings.get(name), now.settings.get(name));
            if a != b {
                add(name, text(a), text(b));
            }
        }
        for name in union(&self.inputs, &now.inputs) {
            let (a, b) = (self.inputs.get(name), now.inputs.get(name));
            if a.map(|i| &i.sha256) != b.map(|i| &i.sha256) {
                add(name, input_text(a), input_text(b));
            }
        }
        found
    }

    /// One hash of all of it, for names and for random numbers.
    pub fn key(&self) -> String {
        let inputs = self.inputs.iter().map(|(name, i)| (name, &i.sha256));
        let parts = self.settings.iter().chain(inputs);
        let parts = parts.map(|(name, value)| (name.as_str(), value.as_bytes()));
        fingerprint(
            [("command", self.command.as_bytes())]
                .into_iter()
                .chain(parts),
        )
    }
}

fn union<'a, V>(a: &'a BTreeMap<String, V>, b: &'a BTreeMap<String, V>) -> Vec<&'a str> {
    let new = b.keys().filter(|name| !a.contains_key(*name));
    a.keys().chain(new).map(String::as_str).collect()
}

fn input_text(input: Option<&Input>) -> String {
    match input {
        None => "none".into(),
        Some(Input { path, sha256 }) => {
            let short = sha256.get(..12).unwrap_or(sha256);
            format!("{} ({short})", path.display())
        }
    }
}

static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// Says once what the program was built from, for all marks of this process.
pub fn set_commit(commit: &'static str) {
    let _ = COMMIT.set(commit);
}

/// What stands in a mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Program and version that began the output.
    pub program: String,
    /// What the program was built from, where it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Of this mark.
    pub format: u32,
    /// When it was begun, in UTC.
    pub begun: String,
    /// What the output was made from.
    #[serde(flatten)]
    pub made_from: MadeFrom,
    /// What it is, once it is finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Seal>,
}

impl Mark {
    /// Of an output that begins now.
    pub fn new(made_from: MadeFrom) -> Self {
        Self {
            program: concat!("sppo ", env!("CARGO_PKG_VERSION")).into(),
            commit: COMMIT.get().map(|commit| commit.to_string()),
            format: FORMAT,
            begun: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            made_from,
            finished: None,
        }
    }

    /// Of a finished folder, but for the mark itself.
    pub fn of_folder(made_from: MadeFrom, dir: &Path) -> Result<Self, FileError> {
        Ok(Self {
            finished: Some(Seal::of_folder(dir, &[IN_FOLDER])?),
            ..Self::new(made_from)
        })
    }
}

const CHECK: &str = "check";

/// The text of a mark: its fields, and a hash of them by which damage is seen.
fn marked_text(mark: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(mark)?;
    let check = check(&value);
    if let Value::Object(fields) = &mut value {
        fields.insert(CHECK.into(), check.into());
    }
    Ok(serde_json::to_string_pretty(&value)? + "\n")
}

/// Writes a mark in one step.
pub fn write_mark(path: &Path, mark: &impl Serialize) -> Result<(), FileError> {
    let text = marked_text(mark).map_err(std::io::Error::from);
    let text = text.map_err(FileError::new("write", path))?;
    replace_file(path, text.as_bytes())
}

/// Reads a mark; `None` where there is none.
pub fn read_mark<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, OutputError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // Below a file there is nothing either.
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(FileError::new("read", path)(error).into()),
    };
    // What does not name this program is somebody else's.
    let says = |part: &[u8]| bytes.windows(part.len()).any(|found| found == part);
    if !says(b"\"program\"") || !says(b"\"sppo ") {
        return Err(OutputError::Foreign {
            path: path.into(),
            mark: path.into(),
        });
    }
    let damaged = |problem: &str| OutputError::Damaged {
        path: path.into(),
        problem: problem.into(),
    };
    let mut value: Value =
        serde_json::from_slice(&bytes).map_err(|_| damaged("is no mark of sppo"))?;
    let found = value
        .as_object_mut()
        .and_then(|fields| fields.remove(CHECK));
    if found.as_ref().and_then(Value::as_str) != Some(check(&value).as_str()) {
        return Err(damaged("does not hold what was written into it"));
    }
    let format = value.get("format").and_then(Value::as_u64);
    if format.is_some_and(|format| format > FORMAT.into()) {
        return Err(damaged("was written by a newer sppo"));
    }
    let mark = serde_json::from_value(value);
    Ok(Some(mark.map_err(|error| damaged(&error.to_string()))?))
}

fn check(value: &Value) -> String {
    fingerprint([("mark", value.to_string().as_bytes())])[..16].into()
}
