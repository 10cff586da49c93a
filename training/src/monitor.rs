//! What a long stage tells its caller, and how the caller stops it.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::cluster::{self, Communicator};

/// Hears of progress and knows whether the user asked to stop.
pub trait Monitor {
    /// Set once the user asked to stop; stages finish what is under way, save, and return.
    fn interrupt(&self) -> &AtomicBool;

    /// A piece of work begins at `done` of `total` units.
    fn begin(&self, label: &str, unit: &'static str, done: usize, total: usize);

    /// `count` more units are done; `note` is a short remark such as the loss.
    fn advance(&self, count: usize, note: Option<String>);

    /// A better estimate of the time left than units done by then give.
    fn time_left(&self, _seconds: f64) {}

    /// The piece of work has ended.
    fn end(&self);

    /// Highest memory so far, in bytes: the device's, where it has its own, or the process's.
    fn peak_memory_bytes(&self) -> u64 {
        resident_peak_bytes()
    }

    /// Whether the user asked to stop.
    fn interrupted(&self) -> bool {
        self.interrupt().load(Ordering::Relaxed)
    }
}

/// Between the name of a piece of work and whose share of it this is.
pub(crate) const SHARE: &str = ", share of rank ";

/// Begins a piece of work that the ranks of a job share, at `done` of `total` units; `own` of the
/// others are this rank's, which counts those only where it is not alone.
pub fn begin_share(
    monitor: &dyn Monitor,
    world: &dyn Communicator,
    (label, unit): (&str, &'static str),
    (done, total): (usize, usize),
    own: usize,
) {
    cluster::doing(label);
    match world.size() {
        1 => monitor.begin(label, unit, done, total),
        size => {
            let label = format!("{label}{SHARE}{} of {size}", world.rank());
            monitor.begin(&label, unit, 0, own);
        }
    }
}

/// Highest resident memory of this process so far; 0 where the system does not tell.
pub fn resident_peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
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
