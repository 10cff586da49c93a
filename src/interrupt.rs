//! Ctrl-C and SIGTERM: the first asks the work to save and stop, the second exits at once.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Installs the handler for the whole process.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
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
