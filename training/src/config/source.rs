//! Reading of the TOML text: lines of keys, `--set` overrides, names and types.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::define::{Key, SectionDoc};
use super::{ConfigError, nearest};

/// Where the values came from: says at which line of which file a key stands.
#[derive(Default)]
pub struct Source {
    file: Option<PathBuf>,
    lines: HashMap<String, usize>,
    overridden: HashSet<String>,
}

impl Source {
    /// Parses a configuration's text.
    pub fn parse(text: &str, file: &Path) -> Result<(Self, Table), ConfigError> {
        let syntax = |error: toml::de::Error| ConfigError::Syntax {
            at: match error.span() {
                Some(span) => format!("{} line {}", file.display(), line_of(text, span.start)),
                None => file.display().to_string(),
            },
            message: error.message().trim().replace('\n', ", "),
        };
        let parsed = DeTable::parse(text).map_err(syntax)?;
        let table = text.parse::<Table>().map_err(syntax)?;
        let mut source = Self {
            file: Some(file.to_path_buf()),
            ..Self::default()
        };
        source.note_lines(text, "", parsed.get_ref());
        Ok((source, table))
    }

    fn note_lines(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            if let DeValue::Table(below) = value.get_ref() {
                self.note_lines(text, &path, below);
            }
            self.lines.insert(path, line_of(text, key.span().start));
        }
    }

    /// Puts `a.b=value` into the table; a value that is not TOML is taken as a string.
    pub fn set(&mut self, table: &mut Table, text: &str) -> Result<(), ConfigError> {
        let wrong = |message: &str| ConfigError::Override {
            text: text.into(),
            message: message.into(),
        };
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("there is no '='"))?;
        let path = path.trim();
        let mut parts: Vec<_> = path.split('.').map(str::trim).collect();
        let last = parts.pop().unwrap_or_default();
        if last.is_empty() || parts.iter().any(|part| part.is_empty()) {
            return Err(wrong("the key is empty"));
        }
        let mut at = table;
        for part in parts {
            at = at
                .entry(part)
                .or_insert_with(|| Table::new().into())
                .as_table_mut()
                .ok_or_else(|| wrong(&format!("{part} is a key, not a section")))?;
        }
        at.insert(last.into(), parse_value(value.trim()));
        self.overridden.insert(path.into());
        Ok(())
    }

    /// Where a key was given: `config.toml line 3`, `--set`, or the nearest section that has a line.
    pub fn at(&self, path: &str) -> String {
        if self.overridden.contains(path) {
            return "--set".into();
        }
        let Some(file) = &self.file else {
            return "configuration".into();
        };
        match self.lines.get(path) {
            Some(line) => format!("{} line {line}", file.display()),
            None => file.display().to_string(),
        }
    }

    /// Reads one key of a section's table; `None` where it is not given.
    pub fn key<K: Key>(
        &self,
        table: Option<&Table>,
        section: &str,
        key: &str,
    ) -> Result<Option<K>, ConfigError> {
        let Some(value) = table.and_then(|table| table.get(key)) else {
            return Ok(None);
        };
        K::read(value).map(Some).ok_or_else(|| {
            let path = join(section, key);
            ConfigError::WrongValue {
                at: self.at(&path),
                key: path,
                expected: K::expected(),
                found: match K::hint(value) {
                    Some(hint) => format!("{}; {hint}", describe(value)),
                    None => describe(value),
                },
            }
        })
    }

    /// The table of a section below another.
    pub fn section<'t>(
        &self,
        table: Option<&'t Table>,
        parent: &str,
        name: &str,
    ) -> Result<Option<&'t Table>, ConfigError> {
        let Some(value) = table.and_then(|table| table.get(name)) else {
            return Ok(None);
        };
        value.as_table().map(Some).ok_or_else(|| {
            let path = join(parent, name);
            ConfigError::WrongValue {
                at: self.at(&path),
                expected: format!("a section, [{path}]"),
                key: path,
                found: describe(value),
            }
        })
    }

    /// Refuses keys and sections that no definition knows.
    pub fn check_names(&self, table: &Table, docs: &[SectionDoc]) -> Result<(), ConfigError> {
        self.check_section(table, "", docs)
    }

    fn check_section(
        &self,
        table: &Table,
        section: &str,
        docs: &[SectionDoc],
    ) -> Result<(), ConfigError> {
        let keys = docs.iter().filter(|doc| doc.name == section);
        let keys = keys.flat_map(|doc| doc.keys.iter().map(|key| key.key));
        let below = docs.iter().filter_map(|doc| child(section, doc.name));
        let known: Vec<&str> = keys.chain(below).collect();
        for (name, value) in table {
            let path = join(section, name);
            if !known.contains(&name.as_str()) {
                return Err(self.unknown(path, value, name, section, &known, docs));
            }
            if let (Some(table), true) = (value.as_table(), docs.iter().any(|d| d.name == path)) {
                self.check_section(table, &path, docs)?;
            }
        }
        Ok(())
    }

    fn unknown(
        &self,
        path: String,
        value: &Value,
        name: &str,
        section: &str,
        known: &[&str],
        docs: &[SectionDoc],
    ) -> ConfigError {
        let elsewhere = docs
            .iter()
            .rev()
            .find(|doc| doc.keys.iter().any(|key| key.key == name));
        let hint = match (nearest(name, known.iter().copied()), elsewhere) {
            (Some(near), _) => format!("did you mean {}?", join(section, near)),
            (None, Some(doc)) => format!("did you mean {}?", join(doc.name, name)),
            (None, None) => format!("known here: {}", known.join(", ")),
        };
        ConfigError::Unknown {
            at: self.at(&path),
            what: if value.is_table() { "section" } else { "key" },
            name: path,
            hint,
        }
    }
}

/// `parent.name`, or `name` at the top level.
pub fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() {
        name.into()
    } else {
        format!("{parent}.{name}")
    }
}

/// The last part of `name` if it lies directly below `parent`.
fn child<'n>(parent: &str, name: &'n str) -> Option<&'n str> {
    let rest = match parent {
        "" => name,
        _ => name.strip_prefix(parent)?.strip_prefix('.')?,
    };
    (!rest.is_empty() && !rest.contains('.')).then_some(rest)
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = text.as_bytes().iter().take(offset);
    before.filter(|byte| **byte == b'\n').count() + 1
}

fn parse_value(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok();
    parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.into()))
}

fn describe(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".into(),
        Value::Array(_) => "an array".into(),
        Value::String(text) => format!("the string {text:?}"),
        other => super::define::toml_text(other),
    }
}
