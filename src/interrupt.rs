//! Signals. Ctrl-C and SIGTERM: the first asks the work to save and stop, one that comes a second or
//! more later exits at once; one of many processes has no time to save and ends at once. SIGUSR1 asks
//! to save and stop, whatever started this process.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use sppo_training::cluster::launch::launcher;

use crate::{job, screen, terminal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// `timeout` and terminals send a signal to a process and to its group: twice within a millisecond.
const ANOTHER: Duration = Duration::from_secs(1);

/// Until a launcher has passed on what was said; it kills after a second.
const SAID: Duration = Duration::from_millis(300);

/// What the work does on the first signal, where it has nothing to save.
static SAYING: OnceLock<&str> = OnceLock::new();

/// Whether a conversation goes on: a signal stops its answer, and another one ends it.
static CONVERSING: AtomicBool = AtomicBool::new(false);
/// Whether the user is at a prompt, where Ctrl-C is a key and only others send signals.
static PROMPTING: AtomicBool = AtomicBool::new(false);

/// Installs the handler for the whole process.
pub fn install() -> anyhow::Result<()> {
    save_on_user_signal()?;
    ctrlc::set_handler(|| {
        if launcher().is_some() {
            return stop_at_once();
        }
        if CONVERSING.load(Ordering::SeqCst) {
            let again = REQUESTED.swap(true, Ordering::SeqCst);
            if again || PROMPTING.load(Ordering::SeqCst) {
                terminal::restore();
                std::process::exit(130);
            }
            return;
        }
        ask();
    })
    .context("cannot install the handler of Ctrl-C")
}

/// What the first signal asks for, and one that comes later.
pub fn ask() {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(Instant::now);
    if REQUESTED.swap(true, Ordering::SeqCst) {
        if first.elapsed() >= ANOTHER {
            screen::give_back();
            std::process::exit(130);
        }
        return;
    }
    let what = SAYING.get().unwrap_or(&"saving");
    let note = format!("interrupted: {what}; once more stops at once\n");
    if !screen::keep(note.as_bytes()) {
        let _ = std::io::stderr().write_all(note.as_bytes());
    }
}

/// A launcher kills its processes a second after it passed the signal on, which is too short to save.
fn stop_at_once() {
    if !job::follows() {
        job::say(
            "ended by a signal through its launcher, which leaves no time to save; run it again to go on \
             from the newest checkpoint (SIGUSR1 to mpirun, or scancel -s USR1, saves and stops)\n",
        );
    }
    // A launcher that ends passes on what was said a moment ago, and the end of one rank ends it.
    std::thread::sleep(SAID);
    job::fail(130);
}

/// Lets SIGUSR1, which launchers pass on, save and stop.
#[cfg(unix)]
fn save_on_user_signal() -> anyhow::Result<()> {
    extern "C" fn stop(_: libc::c_int) {
        REQUESTED.store(true, Ordering::SeqCst);
    }
    // SAFETY: the handler stores into an atomic, which a signal may interrupt anywhere; the struct
    // is valid when zeroed.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = stop as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
    };
    match set {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).context("cannot install the handler of SIGUSR1"),
    }
}

#[cfg(not(unix))]
fn save_on_user_signal() -> anyhow::Result<()> {
    Ok(())
}

/// Says what the work does on the first signal, in place of saving.
#[cfg(feature = "serve")]
pub fn say(what: &'static str) {
    let _ = SAYING.set(what);
}

/// From here on a signal stops an answer; the terminal comes back as it is now.
#[cfg(feature = "serve")]
pub fn converse() {
    terminal::remember();
    CONVERSING.store(true, Ordering::SeqCst);
}

/// Waits for the user in `prompt`; a signal ends the program then.
#[cfg(feature = "serve")]
pub fn while_prompting<T>(prompt: impl FnOnce() -> T) -> T {
    PROMPTING.store(true, Ordering::SeqCst);
    let read = prompt();
    PROMPTING.store(false, Ordering::SeqCst);
    read
}

/// Whether a stop was asked for since this was last called.
#[cfg(feature = "serve")]
pub fn take() -> bool {
    REQUESTED.swap(false, Ordering::SeqCst)
}

/// Set once a stop was asked for; long work looks at it between steps.
pub fn flag() -> &'static AtomicBool {
    &REQUESTED
}
