//! Faults of the program itself: what a panic says, in one place.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use sppo_model::quiet::is_quiet;

use crate::terminal::visible;
use crate::{job, screen};

/// Runs the program. A panic ends it with exit code 1, after the hook has said what happened; one
/// of many processes ends in the hook, whichever thread panicked.
pub fn guard(program: impl FnOnce() -> ExitCode + std::panic::UnwindSafe) -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        // What is caught becomes an error with words of its own.
        if !is_quiet() && !is_for_memory(info) {
            screen::give_back();
            job::say(&report(info, &Backtrace::capture()));
            job::fail(1);
        }
    }));
    std::panic::catch_unwind(program).unwrap_or(ExitCode::FAILURE)
}

/// Whether a panic comes from a GPU's lack of memory: in CubeCL's threads it is noted, elsewhere said.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn is_for_memory(info: &PanicHookInfo<'_>) -> bool {
    use crate::device_memory::{instead_of_panic, notice};

    if notice(info.payload_as_str().unwrap_or_default()) {
        return true;
    }
    let Some(text) = instead_of_panic() else {
        return false;
    };
    if !text.is_empty() {
        job::say(&text);
        job::fail(1);
    }
    true
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn is_for_memory(_: &PanicHookInfo<'_>) -> bool {
    false
}

/// What happened and what to report.
fn report(info: &PanicHookInfo<'_>, backtrace: &Backtrace) -> String {
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let mut text = format!(
        "error: this is a fault of sppo, not of your input: {}\n  at: {place}, thread {}\n",
        visible(info.payload_as_str().unwrap_or("no message")),
        visible(thread.name().unwrap_or("without a name")),
    );
    if backtrace.status() == BacktraceStatus::Captured {
        text += &format!("  backtrace:\n{backtrace}\n");
    }
    text += &format!(
        "  what is on disk is as after a kill: where the command can go on, it goes on when run again\n  \
         please report these lines with the command, its configuration and this: sppo {}, {} {}{}\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        match backtrace.status() {
            BacktraceStatus::Disabled => "; with RUST_BACKTRACE=1 they say more",
            _ => "",
        }
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// r024: a panic ended with exit code 101 and a message that told nobody what to do.
    #[test]
    fn a_panic_says_what_to_report() {
        static SAID: Mutex<String> = Mutex::new(String::new());
        // Other tests keep their hook: only this thread's panic is taken.
        let mine = std::thread::current().id();
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().id() == mine {
                *SAID.lock().unwrap() = report(info, &Backtrace::disabled());
            } else {
                before(info);
            }
        }));
        let ended = std::panic::catch_unwind(|| panic!("row \u{1b}[2J {}", 7));
        assert!(ended.is_err());
        let said = SAID.lock().unwrap().clone();
        assert!(said.starts_with("error: this is a fault of sppo"), "{said}");
        for part in [
            "not of your input: row \\u{1b}[2J 7\n",
            "src/fault.rs:",
            "please report these lines",
            concat!("sppo ", env!("CARGO_PKG_VERSION")),
            "RUST_BACKTRACE=1",
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
}
