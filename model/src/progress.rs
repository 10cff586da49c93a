//! What this process is doing, for those who watch it: where it is, a count that goes up, and
//! whether it waits for others.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

static COUNT: AtomicU64 = AtomicU64::new(0);
/// How many threads wait for other ranks.
static WAITING: AtomicUsize = AtomicUsize::new(0);
static WRITING: AtomicBool = AtomicBool::new(false);
/// The part of the job, and the piece of work within it.
static PLACE: Mutex<[String; 2]> = Mutex::new([String::new(), String::new()]);

/// What a process is doing at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doing {
    /// The part of the job, such as `training, step 12`.
    pub part: String,
    /// The piece of work within it, such as `block 17 backward`.
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
    place()[1] = label.into();
    advance();
}

/// Says which part of the job begins.
pub fn begin(part: impl Into<String>) {
    *place() = [part.into(), String::new()];
    advance();
}

/// Waits for others in `wait`.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    WAITING.fetch_add(1, Ordering::Relaxed);
    let result = wait();
    WAITING.fetch_sub(1, Ordering::Relaxed);
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
    let [part, label] = place().clone();
    Doing {
        part,
        label,
        count: COUNT.load(Ordering::Relaxed),
        waiting: WAITING.load(Ordering::Relaxed) > 0,
    }
}

/// The words stay right even if a thread panicked while it held them.
fn place() -> MutexGuard<'static, [String; 2]> {
    PLACE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
