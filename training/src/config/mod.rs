//! The one TOML configuration: defaults, reading, checking and documentation of every key.
//!
//! Relative paths in it are relative to the current directory, not to the file.

#[macro_use]
mod define;
mod check;
mod model_path;
mod sections;
mod source;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

pub use define::{KeyDoc, SectionDoc};
pub use model_path::{ModelSource, model_name, resolve_model};
pub use sections::{
    Config, Eval, Generate, Init, Judge, JudgeHttp, JudgeKind, LoraTarget, Loss, Model, OnInvalid,
    OnNonFinite, Optimizer, Pairs, Precision, Probability, Prompts, Recompute, Rows, Schedule, Sft,
    Split, Train, TrainLora,
};

use define::{Section, SectionValues, toml_text};
use source::Source;

/// Why a configuration is refused; always the user's input, so exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{at}: not valid TOML: {message}")]
    Syntax {
        /// File and line.
        at: String,
        /// What the parser says.
        message: String,
    },
    /// An override is not `key=value`.
    #[error("--set {text:?}: {message}; write --set section.key=value")]
    Override {
        /// The override.
        text: String,
        /// What is wrong.
        message: String,
    },
    /// A name that no definition knows.
    #[error("{at}: unknown {what} {name}; {hint}")]
    Unknown {
        /// File and line, or `--set`.
        at: String,
        /// `key` or `section`.
        what: &'static str,
        /// The name, dotted.
        name: String,
        /// The nearest known one.
        hint: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{at}: {key} must be {expected}, found {found}")]
    WrongValue {
        /// File and line, or `--set`.
        at: String,
        /// The key, dotted.
        key: String,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Options that exclude each other.
    #[error("{at}: {message}")]
    Conflict {
        /// File and line, or `--set`.
        at: String,
        /// Which, and what to do.
        message: String,
    },
    /// A key that something needs is not given.
    #[error("{at}: {message}")]
    Missing {
        /// File, or file and line.
        at: String,
        /// Which, and why.
        message: String,
    },
    /// A model that is neither a folder nor in the Hugging Face cache.
    #[error("model {name:?} is not a folder{looked}")]
    NoModel {
        /// What was asked for.
        name: String,
        /// Where else it was looked for, and what to do.
        looked: String,
    },
}

/// A word that stands for no choice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", self.start(), self.hint().map(|hint| format!("; {hint}")).unwrap_or_default())]
pub struct NoSuchChoice {
    word: String,
    words: &'static [&'static str],
}

impl NoSuchChoice {
    pub(crate) fn new(word: &str, words: &'static [&'static str]) -> Self {
        Self {
            word: word.into(),
            words,
        }
    }

    fn start(&self) -> String {
        format!("{:?} is not one of {}", self.word, self.words.join(", "))
    }

    /// The nearest word.
    pub(crate) fn hint(&self) -> Option<String> {
        nearest(&self.word, self.words.iter().copied()).map(|near| format!("did you mean {near}?"))
    }
}

/// The candidate nearest to `name` in edit distance, if any is near enough to be meant.
pub fn nearest<'c>(name: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let name = name.to_lowercase().replace('-', "_");
    let far = (name.len() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, candidate), candidate))
        .filter(|(distance, _)| *distance <= far)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

impl Config {
    /// Reads the file, applies `section.key=value` overrides, and refuses whatever is unknown,
    /// of the wrong type, out of range or conflicting. Loads nothing else.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Self, ConfigError> {
        match path {
            None => Self::resolve(Source::default(), Table::new(), overrides),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.into(),
                    source,
                })?;
                Self::parse(&text, path, overrides)
            }
        }
    }

    /// As `load`, from text; `path` is for messages.
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let (source, table) = Source::parse(text, path)?;
        Self::resolve(source, table, overrides)
    }

    fn resolve(
        mut source: Source,
        mut table: Table,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        for text in overrides {
            source.set(&mut table, text)?;
        }
        source.check_names(&table, &Self::sections())?;
        let mut config = Self::read(Some(&table), &source)?;
        check::conflicts(&table, &source)?;
        check::values(&config, &source)?;
        if let Some(eta) = config.train.eta.take() {
            config.train.beta = 1.0 / eta;
        }
        if config.train.warmup_steps.is_some() {
            config.train.warmup_ratio = None;
        }
        Ok(config)
    }

    /// Every section and key with its documentation, in order of definition.
    pub fn sections() -> Vec<SectionDoc> {
        let mut docs = Vec::new();
        Self::docs(&mut docs);
        docs
    }

    /// The resolved configuration as TOML; loads back equal.
    pub fn to_toml(&self) -> String {
        let mut sections = Vec::new();
        self.write(&mut sections);
        let mut out = String::new();
        for section in &sections {
            write_section(&mut out, section);
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

fn write_section(out: &mut String, section: &SectionValues) {
    let (tables, values): (Vec<_>, Vec<_>) = section
        .values
        .iter()
        .partition(|(_, value)| value.is_table());
    if !section.name.is_empty() {
        let _ = write!(out, "\n[{}]\n", section.name);
    }
    for (key, value) in values {
        let _ = writeln!(out, "{key} = {}", toml_text(value));
    }
    for (key, value) in tables {
        if value.as_table().is_some_and(|table| !table.is_empty()) {
            let _ = write!(out, "\n{}", nested(&source::join(section.name, key), value));
        }
    }
}

/// A table of which nothing is known, under its dotted path.
fn nested(path: &str, value: &Value) -> String {
    let nest = |value: Value, name: &str| Value::Table(Table::from_iter([(name.into(), value)]));
    let tree = path.rsplit('.').fold(value.clone(), nest);
    toml::to_string(&tree).unwrap_or_else(|_| format!("{path} = {value}\n"))
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
        match (&key.default, key.example) {
            (Some(table), _) if table == "{}" => {
                let _ = writeln!(out, "# [{}.{}]", section.name, key.key);
            }
            (Some(default), _) => {
                let _ = writeln!(out, "{off}{} = {default}", key.key);
            }
            (None, example) => {
                let _ = writeln!(out, "# {} = {}", key.key, example.unwrap_or("…"));
            }
        }
    }
}
