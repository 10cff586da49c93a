//! Where each key of a configuration was given: a line of the file, or `--set`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::error::ConfigError;
use super::key::join;

/// Where keys were given, by dotted name; entries of lists are `name[0]`, `name[1]`, ….
#[derive(Default)]
pub struct KeyPlaces {
    file: Option<PathBuf>,
    lines: HashMap<String, usize>,
    overridden: HashSet<String>,
}

impl KeyPlaces {
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
        let mut places = Self {
            file: Some(file.to_path_buf()),
            ..Self::default()
        };
        places.note_table(text, "", parsed.get_ref());
        Ok((places, table))
    }

    fn note_table(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(prefix, key.get_ref());
            self.note_value(text, &path, value.get_ref());
            self.lines.insert(path, line_of(text, key.span().start));
        }
    }

    fn note_value(&mut self, text: &str, path: &str, value: &DeValue<'_>) {
        match value {
            DeValue::Table(below) => self.note_table(text, path, below),
            DeValue::Array(entries) => {
                for (i, entry) in entries.iter().enumerate() {
                    let path = format!("{path}[{i}]");
                    self.note_value(text, &path, entry.get_ref());
                    self.lines.insert(path, line_of(text, entry.span().start));
                }
            }
            _ => {}
        }
    }

    /// Puts `a.b=value` into the table; a value that is not TOML is taken as a string.
    pub fn set(&mut self, table: &mut Table, text: &str) -> Result<(), ConfigError> {
        let wrong = |message: &str| ConfigError::Override {
            // An address may hold secrets.
            text: match text.split_once('=') {
                Some((key, value)) if value.contains(['?', '@']) => key.into(),
                _ => text.into(),
            },
            message: message.into(),
        };
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("there is no '='"))?;
        let mut parts: Vec<_> = path.split('.').map(str::trim).collect();
        let path = parts.join(".");
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
        self.overridden.insert(path);
        Ok(())
    }

    /// Whether the file gives the key.
    pub fn in_file(&self, path: &str) -> bool {
        self.lines.contains_key(path)
    }

    /// Whether `--set` gives the key, a section that it is part of, or something within it.
    pub fn is_set(&self, path: &str) -> bool {
        let mut set = self.overridden.iter();
        set.any(|name| within(path, name) || within(name, path))
    }

    /// Where a key was given: `--set`, `config.toml line 3`, or the file for one that was not.
    pub fn at(&self, path: &str) -> String {
        let replaced = self.overridden.iter().any(|name| within(path, name));
        match (&self.file, self.lines.get(path)) {
            (Some(file), Some(line)) if !replaced => format!("{} line {line}", file.display()),
            _ if self.is_set(path) => "--set".into(),
            (Some(file), _) => file.display().to_string(),
            (None, _) => "configuration".into(),
        }
    }
}

/// Whether `inner` is `outer` or a part of it.
fn within(inner: &str, outer: &str) -> bool {
    let rest = inner.strip_prefix(outer);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
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
