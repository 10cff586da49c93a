//! Logs on stderr, chosen by -v, -q or the variable SPPO_LOG. Of the ranks of a job all but the first
//! log to files of their own, and to stderr what they warn of.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use sppo_training::cluster::launch;
use sppo_training::files::FileError;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;

use crate::errors::OrUser;
use crate::job;
use crate::progress;
use crate::screen;
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
        .with_writer(Place)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()) && !job::follows())
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

/// From now on this rank, if it is not the first, logs to `<folder>/<rank>.log`, behind what is there.
pub fn to_file(folder: &Path, rank: usize) -> Result<(), FileError> {
    if rank == 0 {
        return Ok(());
    }
    if let Ok(mut log) = LOG.lock() {
        let path = folder.join(format!("{rank}.log"));
        let early = std::mem::replace(&mut *log, Log::At(path.clone()));
        if let Log::Early(lines) = early
            && !lines.is_empty()
        {
            let written = log.write(&lines);
            written.map_err(FileError::new("write", &path))?;
        }
    }
    Ok(())
}

/// Where a rank that is not the first logs to.
enum Log {
    /// Lines from before its file is known.
    Early(Vec<u8>),
    /// A file that the first line makes.
    At(PathBuf),
    File(File),
}

impl Log {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Self::At(path) = self {
            fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            let file = OpenOptions::new().append(true).create(true).open(path)?;
            *self = Self::File(file);
        }
        match self {
            Self::Early(lines) => lines.extend(line),
            Self::File(file) => file.write_all(line)?,
            Self::At(_) => {}
        }
        Ok(())
    }
}

static LOG: Mutex<Log> = Mutex::new(Log::Early(Vec::new()));

struct Place;

impl<'a> MakeWriter<'a> for Place {
    type Writer = Writer;

    fn make_writer(&'a self) -> Writer {
        match job::follows() {
            true => Writer::Rank { aloud: false },
            false => Writer::Stderr,
        }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Writer {
        match job::follows() {
            true => Writer::Rank {
                aloud: *about.level() <= Level::WARN,
            },
            false => Writer::Stderr,
        }
    }
}

enum Writer {
    /// With the progress bars out of the way.
    Stderr,
    /// The file of a rank, and stderr for what is to be heard.
    Rank { aloud: bool },
}

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Self::Rank { aloud } = self else {
            if screen::keep(line) {
                return Ok(line.len());
            }
            return progress::bars().suspend(|| io::stderr().write(line));
        };
        if *aloud {
            let text = [format!("rank {}: ", launch::rank()).as_bytes(), line].concat();
            let _ = io::stderr().write_all(&text);
        }
        if let Ok(mut log) = LOG.lock() {
            log.write(line)?;
        }
        Ok(line.len())
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
