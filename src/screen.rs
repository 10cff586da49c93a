//! Who has the terminal: lines on stderr, or a dashboard that has all of it. While it has, lines are
//! kept for it, and come out once it leaves.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Mutex, MutexGuard};

/// Lines that are kept; of more the oldest go.
const KEPT: usize = 2000;

/// While a dashboard has the terminal: what gives that back as it was, and the lines.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

#[cfg_attr(
    not(feature = "dashboard"),
    allow(dead_code, reason = "only a dashboard takes it")
)]
struct Taken {
    restore: fn(),
    lines: VecDeque<String>,
    gone: usize,
}

fn taken() -> MutexGuard<'static, Option<Taken>> {
    TAKEN
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// From now on a dashboard has the terminal; `restore` makes it what it was.
#[cfg(feature = "dashboard")]
pub fn take(restore: fn()) {
    *taken() = Some(Taken {
        restore,
        lines: VecDeque::new(),
        gone: 0,
    });
}

/// Whether a dashboard has it.
pub fn is_taken() -> bool {
    taken().is_some()
}

/// The last of the lines that are kept, oldest first.
#[cfg(feature = "dashboard")]
pub fn last_lines(count: usize) -> Vec<String> {
    let taken = taken();
    let lines = taken.iter().flat_map(|taken| &taken.lines);
    let all = taken.as_ref().map_or(0, |taken| taken.lines.len());
    lines.skip(all.saturating_sub(count)).cloned().collect()
}

/// Keeps lines where a dashboard has the terminal; whether it has.
pub fn keep(text: &[u8]) -> bool {
    let mut taken = taken();
    let Some(taken) = taken.as_mut() else {
        return false;
    };
    for line in String::from_utf8_lossy(text).lines() {
        if taken.lines.len() == KEPT {
            taken.lines.pop_front();
            taken.gone += 1;
        }
        taken.lines.push_back(line.into());
    }
    true
}

/// Gives the terminal back, as it was, and says what was kept. Also before a panic is said, and
/// before the process ends.
pub fn give_back() {
    let Some(taken) = taken().take() else {
        return;
    };
    (taken.restore)();
    let mut stderr = std::io::stderr().lock();
    if taken.gone > 0 {
        let _ = writeln!(stderr, "({} earlier lines are not kept)", taken.gone);
    }
    for line in &taken.lines {
        let _ = writeln!(stderr, "{line}");
    }
}

#[cfg(test)]
#[cfg(feature = "dashboard")]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_while_it_is_taken() {
        assert!(!keep(b"nobody has it\n") && !is_taken());
        take(|| {});
        assert!(keep(b"one\ntwo\n") && is_taken());
        (0..KEPT).for_each(|i| assert!(keep(format!("{i}\n").as_bytes())));
        assert_eq!(last_lines(2), ["1998", "1999"]);
        give_back();
        assert!(!is_taken() && last_lines(2).is_empty());
    }
}
