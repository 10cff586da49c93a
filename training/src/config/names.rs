//! Refuses keys and sections that no definition knows, with the nearest one that is known.

use toml::{Table, Value};

use super::define::SectionDoc;
use super::error::{ConfigError, nearest};
use super::key::{KeyDoc, join};
use super::places::KeyPlaces;

/// Checks every name of `table` against the definitions.
pub fn check(table: &Table, docs: &[SectionDoc], places: &KeyPlaces) -> Result<(), ConfigError> {
    Names { docs, places }.section(table, "")
}

struct Names<'d> {
    docs: &'d [SectionDoc],
    places: &'d KeyPlaces,
}

impl Names<'_> {
    fn section(&self, table: &Table, section: &str) -> Result<(), ConfigError> {
        let keys = self.docs.iter().find(|doc| doc.name == section);
        let keys = keys.map_or(&[][..], |doc| &doc.keys);
        let below = self.docs.iter().filter_map(|doc| child(section, &doc.name));
        self.table(table, section, keys, &below.collect::<Vec<_>>())
    }

    /// A table with these keys and sections below it.
    fn table(
        &self,
        table: &Table,
        path: &str,
        keys: &[KeyDoc],
        below: &[&str],
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = join(path, name);
            match (keys.iter().find(|key| key.key == name), value) {
                (Some(key), value) => self.entries(value, &path, &key.entries)?,
                (None, _) if !below.contains(&name.as_str()) => {
                    let known = keys.iter().map(|key| key.key).chain(below.iter().copied());
                    return Err(self.unknown(&path, value, name, known.collect()));
                }
                (None, Value::Table(table)) => self.section(table, &path)?,
                // Reading it says what it should be.
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// The tables of a list, where its key has such.
    fn entries(&self, value: &Value, path: &str, keys: &[KeyDoc]) -> Result<(), ConfigError> {
        let entries = value.as_array().filter(|_| !keys.is_empty());
        for (i, entry) in entries.into_iter().flatten().enumerate() {
            if let Some(table) = entry.as_table() {
                self.table(table, &format!("{path}[{i}]"), keys, &[])?;
            }
        }
        Ok(())
    }

    fn unknown(&self, path: &str, value: &Value, name: &str, known: Vec<&str>) -> ConfigError {
        let parent = path.strip_suffix(name).unwrap_or_default();
        let elsewhere = self.docs.iter().rev();
        let elsewhere = || {
            elsewhere
                .clone()
                .find(|doc| doc.keys.iter().any(|k| k.key == name))
        };
        let hint = match nearest(name, known.iter().copied()) {
            Some(near) => format!("did you mean {parent}{near}?"),
            None => match elsewhere() {
                Some(doc) => format!("did you mean {}?", join(&doc.name, name)),
                None => format!("known here: {}", known.join(", ")),
            },
        };
        ConfigError::Unknown {
            at: self.places.at(path),
            what: if value.is_table() { "section" } else { "key" },
            name: path.into(),
            hint,
        }
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
