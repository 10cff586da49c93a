//! Logs on stderr, chosen by -v, -q or the variable SPPO_LOG.

use std::io::{self, Write};

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::debug_fn;

use crate::errors::OrUser;
use crate::progress;
use crate::terminal::visible;

/// Starts logging; `SPPO_LOG` (e.g. `debug` or `sppo_training=trace`) wins over the flags.
pub fn init(verbose: u8, quiet: bool) -> anyhow::Result<()> {
    let directives = match std::env::var("SPPO_LOG") {
        Ok(text) if !text.is_empty() => text,
        _ => default_directives(verbose, quiet).into(),
    };
    let filter = EnvFilter::try_new(&directives)
        .with_context(|| format!("SPPO_LOG={directives:?} is not a log filter"))
        .or_user()?;
    // Messages quote what came from outside.
    let fields = debug_fn(|writer, field, value| {
        let text = format!("{value:?}");
        match field.name() {
            "message" => write!(writer, "{}", visible(&text)),
            name => write!(writer, "{name}={}", visible(&text)),
        }
    })
    .delimited(" ");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(fields)
        .with_writer(|| Stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(verbose > 0)
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn default_directives(verbose: u8, quiet: bool) -> &'static str {
    match (quiet, verbose) {
        (true, _) => "warn",
        (_, 0) => "warn,sppo=info,sppo_model=info,sppo_training=info",
        (_, 1) => "info,sppo=debug,sppo_model=debug,sppo_training=debug",
        _ => "debug,sppo=trace,sppo_model=trace,sppo_training=trace",
    }
}

/// Stderr with the progress bars out of the way.
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        progress::bars().suspend(|| io::stderr().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_filter() {
        for (verbose, quiet) in [(0, true), (0, false), (1, false), (2, false)] {
            EnvFilter::try_new(default_directives(verbose, quiet)).unwrap();
        }
    }
}
