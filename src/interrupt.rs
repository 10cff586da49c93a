//! Ctrl-C and SIGTERM: the first asks the work to save and stop, one that comes a second or more
//! later exits at once.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// `timeout` and terminals send a signal to a process and to its group: twice within a millisecond.
const ANOTHER: Duration = Duration::from_secs(1);

/// Installs the handler for the whole process.
pub fn install() -> anyhow::Result<()> {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    ctrlc::set_handler(|| {
        let first = *FIRST.get_or_init(Instant::now);
        if REQUESTED.swap(true, Ordering::SeqCst) {
            if first.elapsed() >= ANOTHER {
                std::process::exit(130);
            }
            return;
        }
        let note = b"interrupted: saving; once more stops at once\n";
        let _ = std::io::stderr().write_all(note);
    })
    .context("cannot install the handler of Ctrl-C")
}

/// Set once a stop was asked for; long work looks at it between steps.
pub fn flag() -> &'static AtomicBool {
    &REQUESTED
}
