//! The configuration as TOML text: resolved, or with what every key does.

use std::fmt::Write as _;

use super::define::{Section, SectionDoc};
use super::key::{Affects, KeyDoc, toml_text};
use super::sections::Config;

impl Config {
    /// Every section and key with its documentation, in order of definition.
    pub fn sections() -> Vec<SectionDoc> {
        let mut docs = Vec::new();
        Self::docs("", &mut docs);
        docs
    }

    /// The resolved configuration as TOML; loads back equal.
    pub fn to_toml(&self) -> String {
        let mut sections = Vec::new();
        self.settings("", true, &mut sections);
        let mut out = String::new();
        for section in sections {
            if !section.name.is_empty() {
                let _ = write!(out, "\n[{}]\n", section.name);
            }
            for setting in section.settings {
                if let Some(value) = setting.value {
                    let _ = writeln!(out, "{} = {}", setting.key, toml_text(&value));
                }
            }
        }
        out
    }

    /// A configuration with every key at its default and what it does; keys without a default
    /// are commented out. Loads back equal to `Config::default()`.
    pub fn documented() -> String {
        let mut out = String::new();
        for section in Self::sections() {
            document_section(&mut out, &section);
        }
        out
    }
}

fn document_section(out: &mut String, section: &SectionDoc) {
    let comment = |out: &mut String, text: &str| {
        for line in text.lines() {
            let _ = writeln!(out, "# {line}");
        }
    };
    if !section.name.is_empty() {
        out.push('\n');
    }
    comment(out, &section.doc);
    let off = if section.optional { "# " } else { "" };
    if !section.name.is_empty() {
        let _ = writeln!(out, "{off}[{}]", section.name);
    }
    for key in &section.keys {
        out.push('\n');
        comment(out, &key.doc);
        comment(out, &admitted(key));
        for entry in &key.entries {
            let default = entry.default.as_ref();
            let default = default.map_or("always given".into(), |d| format!("{d} unless given"));
            comment(
                out,
                &format!(
                    "- {}: {} {} ({default})",
                    entry.key,
                    entry.doc,
                    admitted(entry)
                ),
            );
        }
        let _ = match (&key.default, key.example) {
            (Some(default), _) => writeln!(out, "{off}{} = {default}", key.key),
            (None, example) => writeln!(out, "# {} = {}", key.key, example.unwrap_or("…")),
        };
    }
}

/// What values the key admits, and whether they matter.
fn admitted(key: &KeyDoc) -> String {
    let mut letters = key.expected.chars();
    let first: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    let speed = match key.affects {
        Affects::Speed => " Changes speed or memory; the result by rounding at most.",
        Affects::Result | Affects::Nothing => "",
    };
    format!("{first}{}.{speed}", letters.as_str())
}
