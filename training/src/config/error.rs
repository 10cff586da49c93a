//! Why a configuration is refused.

use std::path::PathBuf;

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
    /// A model that is neither a folder nor in the Hub's cache.
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
