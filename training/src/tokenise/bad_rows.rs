//! Rows that cannot be used, all of them at once.

use std::fmt;

/// The first of them in words, and how many there are.
#[derive(Debug, Default)]
pub struct BadRows {
    shown: Vec<String>,
    count: usize,
    advice: Option<&'static str>,
}

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
        self.advice = Some(advice);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
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
        match self.advice {
            None => Ok(()),
            Some(advice) => write!(f, "; {advice}"),
        }
    }
}

impl std::error::Error for BadRows {}
