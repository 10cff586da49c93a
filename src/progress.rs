//! Progress on stderr: bars on a terminal, log lines every few seconds otherwise.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use sppo_training::monitor::{Monitor, resident_peak_bytes};

use crate::terminal::visible;
use crate::{backend, interrupt, job, screen};

/// Time between two log lines of one progress.
const INTERVAL: Duration = Duration::from_secs(5);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The bars on the terminal; logs are written with these suspended.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Progress of one piece of work; may be advanced from any thread.
pub struct Progress {
    label: String,
    unit: &'static str,
    view: View,
}

enum View {
    /// With the estimate that was given, in seconds as bits of a float; NaN where none was.
    Bar(ProgressBar, Arc<AtomicU64>),
    Lines(Mutex<Lines>),
}

struct Lines {
    started: Instant,
    shown: Instant,
    /// Where this run started to count.
    first: u64,
    done: u64,
    total: u64,
    /// Seconds, where somebody knows better than the rate.
    left: Option<f64>,
    note: String,
}

impl Progress {
    /// Starts at `done` of `total` units (e.g. "prompts"); what was done before does not count
    /// for the rate.
    pub fn new(label: &str, unit: &'static str, done: u64, total: u64) -> Self {
        let terminal = std::io::stderr().is_terminal() && !job::follows() && !screen::is_taken();
        let shown = tracing::enabled!(tracing::Level::INFO) && terminal;
        Self::with_view(label, unit, done, total, shown)
    }

    /// The same with a bar, or with lines.
    fn with_view(label: &str, unit: &'static str, done: u64, total: u64, bar: bool) -> Self {
        let view = if bar {
            let left = Arc::new(AtomicU64::new(f64::NAN.to_bits()));
            let bar = ProgressBar::new(total)
                .with_position(done)
                .with_style(style(unit, left.clone()));
            bar.reset_eta();
            let bar = BARS.add(bar);
            bar.set_prefix(visible(label).into_owned());
            View::Bar(bar, left)
        } else {
            let now = Instant::now();
            View::Lines(Mutex::new(Lines {
                started: now,
                shown: now,
                first: done,
                done,
                total,
                left: None,
                note: String::new(),
            }))
        };
        Self {
            label: label.into(),
            unit,
            view,
        }
    }

    /// Counts `n` more units.
    pub fn advance(&self, n: u64) {
        match &self.view {
            View::Bar(bar, _) => bar.inc(n),
            View::Lines(lines) => {
                let mut lines = lock(lines);
                lines.done += n;
                self.show(&mut lines);
            }
        }
    }

    /// Shows this time left instead of that which the rate gives.
    pub fn time_left(&self, seconds: f64) {
        match &self.view {
            View::Bar(_, left) => left.store(seconds.to_bits(), Ordering::Relaxed),
            View::Lines(lines) => {
                let mut lines = lock(lines);
                lines.left = Some(seconds);
                self.show(&mut lines);
            }
        }
    }

    /// What is done and how far it is, for those who watch this process.
    fn place(&self) -> String {
        let (done, total) = match &self.view {
            View::Bar(bar, _) => (bar.position(), bar.length().unwrap_or(0)),
            View::Lines(lines) => {
                let lines = lock(lines);
                (lines.done, lines.total)
            }
        };
        format!("{}, {done}/{total} {}", self.label, self.unit)
    }

    fn show(&self, lines: &mut Lines) {
        let now = Instant::now();
        if now.duration_since(lines.shown) >= INTERVAL && lines.done < lines.total {
            lines.shown = now;
            tracing::info!("{}", lines.text(&self.label, self.unit, now));
        }
    }

    /// Shows a short note, such as the loss, beside the numbers.
    pub fn note(&self, note: impl Into<String>) {
        match &self.view {
            View::Bar(bar, _) => bar.set_message(visible(&note.into()).into_owned()),
            View::Lines(lines) => lock(lines).note = note.into(),
        }
    }
}

/// Clears the bar, or logs the last line.
impl Drop for Progress {
    fn drop(&mut self) {
        match &self.view {
            View::Bar(bar, _) => {
                bar.finish_and_clear();
                BARS.remove(bar);
            }
            View::Lines(lines) => {
                let line = lock(lines).text(&self.label, self.unit, Instant::now());
                tracing::info!("{line}");
            }
        }
    }
}

impl Lines {
    fn text(&self, label: &str, unit: &str, now: Instant) -> String {
        let seconds = now.duration_since(self.started).as_secs_f64();
        let rate = (self.done - self.first) as f64 / seconds.max(1e-3);
        // Slow units by their time: 0.0/s says nothing.
        let pace = match rate {
            rate if rate > 0.0 && rate < 0.5 => format!("{:.1} s each", 1.0 / rate),
            _ => format!("{rate:.1}/s"),
        };
        let mut text = format!("{label}: {}/{} {unit}, {pace}", self.done, self.total);
        let left = self.total.saturating_sub(self.done);
        let by_rate = (rate > 0.0).then(|| left as f64 / rate);
        if let Some(seconds) = self.left.or(by_rate)
            && left > 0
        {
            text += &format!(", {seconds:.0} s left");
        }
        if !self.note.is_empty() {
            text += &format!(", {}", self.note);
        }
        text
    }
}

/// Shows the stages of the training crate, one progress at a time.
#[derive(Default)]
pub struct Console(Mutex<Option<Progress>>);

impl Monitor for Console {
    fn interrupt(&self) -> &AtomicBool {
        interrupt::flag()
    }

    fn begin(&self, label: &str, unit: &'static str, done: usize, total: usize) {
        let progress = Progress::new(label, unit, done as u64, total as u64);
        sppo_model::progress::begin(progress.place());
        *lock(&self.0) = Some(progress);
    }

    fn advance(&self, count: usize, note: Option<String>) {
        if let Some(progress) = lock(&self.0).as_ref() {
            if let Some(note) = note {
                progress.note(note);
            }
            progress.advance(count as u64);
            sppo_model::progress::begin(progress.place());
        }
    }

    fn time_left(&self, seconds: f64) {
        if let Some(progress) = lock(&self.0).as_ref() {
            progress.time_left(seconds);
        }
    }

    fn end(&self) {
        sppo_model::progress::begin("");
        *lock(&self.0) = None;
    }

    fn peak_memory_bytes(&self) -> u64 {
        backend::device_memory_bytes().unwrap_or_else(resident_peak_bytes)
    }
}

/// The counts stay right even if a thread panicked while it held them.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn style(unit: &str, left: Arc<AtomicU64>) -> ProgressStyle {
    let template = format!(
        "{{prefix}} {{wide_bar}} {{pos}}/{{len}} {unit} {{per_sec}} {{remaining}} left {{msg}}"
    );
    let remaining = move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        let given = f64::from_bits(left.load(Ordering::Relaxed));
        let time = Duration::try_from_secs_f64(given).unwrap_or(state.eta());
        let _ = write!(text, "{:#}", HumanDuration(time));
    };
    ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("remaining", remaining)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_rate_and_remaining_time() {
        let started = Instant::now();
        let lines = Lines {
            started,
            shown: started,
            first: 10,
            done: 30,
            total: 70,
            left: None,
            note: "loss 0.5".into(),
        };
        let text = lines.text("training", "steps", started + Duration::from_secs(10));
        assert_eq!(text, "training: 30/70 steps, 2.0/s, 20 s left, loss 0.5");
        let left = Some(7.0);
        let text = Lines { left, ..lines }.text("x", "y", started + Duration::from_secs(10));
        assert_eq!(text, "x: 30/70 y, 2.0/s, 7 s left, loss 0.5");
    }

    #[test]
    fn progress_can_be_shared_between_threads() {
        for bar in [false, true] {
            let progress = Progress::with_view("work", "rows", 0, 40, bar);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..10).for_each(|_| progress.advance(1)));
                }
            });
            let done = match &progress.view {
                View::Lines(lines) => lock(lines).done,
                View::Bar(bar, _) => bar.position(),
            };
            assert_eq!(done, 40);
        }
    }
}
