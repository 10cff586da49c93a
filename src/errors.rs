//! Exit codes and the one place where errors are printed.

use std::fmt::{self, Display};
use std::io::Write;
use std::process::ExitCode;

use sppo_training::config::ConfigError;
use sppo_training::stages::StageError;

use crate::terminal::{visible, visible_lines};

/// Marks an error as the user's input: exit code 2.
#[derive(Debug)]
pub struct UserError(anyhow::Error);

impl Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for UserError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Interrupted by a signal, with the state saved: exit code 130.
#[derive(Debug)]
pub struct Interrupted;

impl Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted; run the same command again to go on")
    }
}

impl std::error::Error for Interrupted {}

/// Says that a failure is the user's to mend.
pub trait OrUser<T> {
    /// Turns the error into a `UserError`.
    fn or_user(self) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrUser<T> for Result<T, E> {
    fn or_user(self) -> anyhow::Result<T> {
        self.map_err(|error| UserError(error.into()).into())
    }
}

/// A `UserError` with this message.
pub fn user(message: impl Into<String>) -> anyhow::Error {
    UserError(anyhow::Error::msg(message.into())).into()
}

/// 2 for the user's input, 130 for an interrupt, 1 for anything else.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<Interrupted>() {
            return 130;
        }
        match cause.downcast_ref::<StageError>() {
            Some(StageError::Interrupted) => return 130,
            Some(error) if error.is_input() => return 2,
            _ => {}
        }
        if cause.is::<UserError>() || cause.is::<ConfigError>() {
            return 2;
        }
    }
    1
}

/// The error and its causes, as lines for stderr.
pub fn text(error: &anyhow::Error) -> String {
    let stopped = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(StageError::Interrupted))
    };
    if error.chain().any(stopped) {
        return chain(&Interrupted.into());
    }
    let text = chain(error);
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if let Some(instead) = crate::device_memory::instead_of(&text) {
        return instead;
    }
    text
}

/// Prints what clap has to say: a wrong command line to stderr, help and version to stdout.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    let shown = visible_lines(&text);
    // clap's own colours, unless it quotes characters that a terminal must not see.
    if shown == text || !error.use_stderr() {
        error.exit();
    }
    let _ = std::io::stderr().write_all(shown.as_bytes());
    ExitCode::from(2)
}

fn chain(error: &anyhow::Error) -> String {
    let mut last = error.to_string();
    let mut text = format!("error: {}\n", visible(&last));
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Transparent wrappers repeat their cause.
        if !last.ends_with(&cause) {
            text += &format!("  caused by: {}\n", visible(&cause));
            last = cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn absent() -> std::io::Error {
        std::io::Error::from(std::io::ErrorKind::NotFound)
    }

    #[test]
    fn exit_codes() {
        let failed = Err::<(), _>(absent()).context("writing").unwrap_err();
        assert_eq!(exit_code(&failed), 1);
        let user = Err::<(), _>(absent()).or_user().context("a.jsonl");
        assert_eq!(exit_code(&user.unwrap_err()), 2);
        let config = sppo_training::config::Config::load(None, &["x=1".into()]);
        assert_eq!(exit_code(&config.context("x").unwrap_err()), 2);
        let interrupted = anyhow::Error::new(Interrupted).context("training");
        assert_eq!(exit_code(&interrupted), 130);
    }

    /// r023: control characters of file names and settings reached the terminal.
    #[test]
    fn a_message_cannot_forge_lines_or_colours() {
        let error = anyhow::anyhow!("a\u{1b}[31m.jsonl\nerror: forged").context("b\r");
        let expected = "error: b\\r\n  caused by: a\\u{1b}[31m.jsonl\n    error: forged\n";
        assert_eq!(chain(&error), expected);
    }

    #[test]
    fn every_cause_is_printed_once() {
        let error = Err::<(), _>(absent()).context("reading a").or_user();
        let error = error.context("loading b").unwrap_err();
        let expected = "error: loading b\n  caused by: reading a\n  caused by: entity not found\n";
        assert_eq!(chain(&error), expected);
    }
}
