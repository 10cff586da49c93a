//! Lines from the user.

use std::borrow::Cow;

use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use super::command::COMMANDS;
use crate::interrupt;

/// What the user gave.
pub enum Input {
    /// A line, or several.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// The end.
    Over,
}

/// Reads lines, on a terminal with editing, history and completion.
pub struct Lines(Editor<Commands, MemHistory>);

impl Lines {
    /// Of this process.
    pub fn new() -> anyhow::Result<Self> {
        let config = Config::builder().auto_add_history(true).build();
        let mut editor = Editor::with_history(config, MemHistory::new())?;
        editor.set_helper(Some(Commands));
        Ok(Self(editor))
    }

    /// The next.
    pub fn next(&mut self) -> anyhow::Result<Input> {
        let read = interrupt::while_prompting(|| self.0.readline("> "));
        match read {
            Ok(text) => Ok(Input::Text(unfolded(&text).into_owned())),
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::Over),
            Err(error) => Err(error.into()),
        }
    }
}

/// Lines that end in a backslash, put together.
fn unfolded(text: &str) -> Cow<'_, str> {
    match text.contains("\\\n") {
        true => Cow::Owned(text.replace("\\\n", "\n")),
        false => Cow::Borrowed(text),
    }
}

/// Completes the words of commands.
struct Commands;

impl Helper for Commands {}
impl Highlighter for Commands {}

impl Hinter for Commands {
    type Hint = String;
}

impl Completer for Commands {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let start = line.get(..position).unwrap_or_default();
        let words = COMMANDS.iter().map(|(word, ..)| *word);
        let fitting = words.filter(|word| start.starts_with('/') && word.starts_with(start));
        Ok((0, fitting.map(String::from).collect()))
    }
}

impl Validator for Commands {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}
