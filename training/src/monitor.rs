//! What a long stage tells its caller, and how the caller stops it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Hears of progress and knows whether the user asked to stop.
pub trait Monitor {
    /// Set once the user asked to stop; stages finish what is under way, save, and return.
    fn interrupt(&self) -> &AtomicBool;

    /// A piece of work begins at `done` of `total` units.
    fn begin(&self, label: &str, unit: &'static str, done: usize, total: usize);

    /// `count` more units are done; `note` is a short remark such as the loss.
    fn advance(&self, count: usize, note: Option<String>);

    /// The piece of work has ended.
    fn end(&self);

    /// Whether the user asked to stop.
    fn interrupted(&self) -> bool {
        self.interrupt().load(Ordering::Relaxed)
    }
}

/// Says nothing and never stops.
#[derive(Default)]
pub struct Silent(AtomicBool);

impl Monitor for Silent {
    fn interrupt(&self) -> &AtomicBool {
        &self.0
    }
    fn begin(&self, _label: &str, _unit: &'static str, _done: usize, _total: usize) {}
    fn advance(&self, _count: usize, _note: Option<String>) {}
    fn end(&self) {}
}
