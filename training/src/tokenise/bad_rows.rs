//! Rows that cannot be used, all of them at once.

use std::fmt;
use std::path::Path;

/// The first of them in words, and how many there are.
#[derive(Debug, Default)]
pub struct BadRows {
    shown: Vec<String>,
    count: usize,
    advice: Vec<&'static str>,
}

/// What to do about rows that may be left out.
pub const MAY_BE_SKIPPED: &str =
    "on_bad_row = \"skip\" (--on-bad-row skip) leaves out rows that cannot be used";

impl BadRows {
    /// Rows that are named; the others are counted.
    const SHOWN: usize = 10;

    /// Adds one; `text` names it and says what is wrong.
    pub fn add(&mut self, text: impl FnOnce() -> String) {
        if self.count < Self::SHOWN {
            self.shown.push(text());
        }
        self.count += 1;
    }

    /// What to do about them, said behind them.
    pub fn advise(&mut self, advice: &'static str) {
        if !self.advice.contains(&advice) {
            self.advice.push(advice);
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Says which of the `all` rows of a file are left out, if any.
    pub fn warn(&self, path: &Path, all: usize) {
        if self.count > 0 {
            tracing::warn!(
                "{}: {} of {all} rows are left out (on_bad_row = skip): {self}",
                path.display(),
                self.count
            );
        }
    }

    /// An error where there are some.
    pub fn refused(self) -> Result<(), Self> {
        match self.count {
            0 => Ok(()),
            _ => Err(self),
        }
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count > 1 {
            write!(f, "{} rows:\n  ", self.count)?;
        }
        f.write_str(&self.shown.join("\n  "))?;
        match self.count - self.shown.len() {
            0 => {}
            more => write!(f, "\n  and {more} more")?,
        }
        self.advice
            .iter()
            .try_for_each(|text| write!(f, "; {text}"))
    }
}

impl std::error::Error for BadRows {}
