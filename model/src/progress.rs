//! What this process is doing, for those who watch it: a label, a count that goes up, and whether
//! it waits for others.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static WAITING: AtomicBool = AtomicBool::new(false);
static WRITING: AtomicBool = AtomicBool::new(false);
static LABEL: Mutex<String> = Mutex::new(String::new());

/// What a process is doing at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// Such as `block 17 backward`.
    pub label: String,
    /// Goes up with every piece of work.
    pub count: u64,
    /// Whether it waits for other ranks in a collective operation.
    pub waiting: bool,
}

/// Says that a piece of work was done.
pub fn advance() {
    COUNT.fetch_add(1, Ordering::Relaxed);
}

/// Says what is done from now on.
pub fn doing(label: impl Into<String>) {
    if let Ok(mut now) = LABEL.lock() {
        *now = label.into();
    }
    advance();
}

/// Waits for others in `wait`.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::Relaxed);
    let result = wait();
    WAITING.store(false, Ordering::Relaxed);
    advance();
    result
}

/// Writes files in `write`: however slow the disk is, that is progress.
pub fn writing<T>(write: impl FnOnce() -> T) -> T {
    WRITING.store(true, Ordering::Relaxed);
    let result = write();
    WRITING.store(false, Ordering::Relaxed);
    advance();
    result
}

/// What this process is doing now.
pub fn now() -> Doing {
    if WRITING.load(Ordering::Relaxed) {
        advance();
    }
    Doing {
        label: LABEL.lock().map(|label| label.clone()).unwrap_or_default(),
        count: COUNT.load(Ordering::Relaxed),
        waiting: WAITING.load(Ordering::Relaxed),
    }
}
