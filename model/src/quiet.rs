//! Panics of other people's code that are caught, and say nothing of their own.
//!
//! The engine of chat templates and the tokenizers library panic on some hostile files. Such a panic
//! becomes an error that names the file; the default hook would print its message and a backtrace
//! beside that. One hook for the whole process asks [`is_quiet`] of the thread that panics.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is caught and reported by its catcher. A panic hook that is
/// installed later has to ask this itself, and be silent then.
pub fn is_quiet() -> bool {
    QUIET.get()
}

/// Runs `work`; a panic in it prints nothing and is returned as its message.
pub fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !is_quiet() {
                before(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    // What `work` touched is not used again after a panic: it is the caller's to drop.
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    done.map_err(|cause| message(&*cause))
}

fn message(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_messages() {
        assert_eq!(quietly(|| 1), Ok(1));
        assert!(!is_quiet());
        let inner = quietly(|| {
            assert!(is_quiet());
            let again: Result<(), _> = quietly(|| panic!("in{}", "side"));
            assert!(is_quiet());
            again
        });
        assert_eq!(inner, Ok(Err("inside".to_owned())));
        assert!(!is_quiet());
    }
}
