//! Results on stdout; a reader that has gone away is not an error.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::job;
use crate::terminal::{visible_json, visible_lines};

/// Prints text and ends the line if it does not. A program that reads it gets it as it is. Of the
/// ranks of a job the first prints.
pub fn print(text: &str) -> anyhow::Result<()> {
    if job::follows() {
        return Ok(());
    }
    let mut stdout = std::io::stdout().lock();
    let text = match stdout.is_terminal() {
        true => Cow::Owned(visible_lines(text)),
        false => Cow::Borrowed(text),
    };
    let end = if text.ends_with('\n') { "" } else { "\n" };
    let written = write!(stdout, "{text}{end}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to stdout"),
    }
}

/// Prints one line of JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&visible_json(&serde_json::to_string(value)?))
}

/// Names the file or folder that a command made: a line of text, or of JSON.
pub fn made(path: &Path, as_json: bool) -> anyhow::Result<()> {
    match as_json {
        true => json(&serde_json::json!({ "path": path })),
        false => print(&format!("{}\n", path.display())),
    }
}
