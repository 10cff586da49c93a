//! progress.json: where a run stands, for people who watch it from elsewhere, and how long each of
//! its stages took.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::cluster;
use crate::files::{FileError, host, replace_file_soon};
use crate::monitor::{Monitor, SHARE};
use crate::stages::StageError;

/// Its name in a run's folder.
pub const PROGRESS: &str = "progress.json";

/// Between two writings while nothing begins or ends.
const INTERVAL: Duration = Duration::from_secs(1);

/// The stages of an iteration in their order, as their monitors name them.
pub(super) const STAGES: [&str; 6] = [
    "generating",
    "judging",
    "reference log-probabilities",
    "training",
    "answering held-out prompts",
    "judging held-out answers",
];

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Whether it goes on.
    pub state: State,
    /// The process, or rank 0 of many, and where it runs.
    pub pid: u32,
    /// Name of that machine.
    pub host: String,
    /// When this was written, in UTC.
    pub updated: String,
    /// Of the whole run.
    pub iterations: usize,
    /// The one under way, from 1; 0 before the first.
    pub iteration: usize,
    /// What is done at the moment.
    pub work: Option<Work>,
    /// Of the whole run, about; none before anything was measured.
    pub seconds_left: Option<f64>,
    /// Highest so far, of the device where it has its own, else of the process.
    pub peak_memory_bytes: u64,
    /// Time of each stage so far, over every start of the run.
    pub stages: Vec<StageTime>,
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does, or was killed: see when it was written.
    #[default]
    Running,
    /// All is done.
    Finished,
    /// Somebody stopped it, and all is saved.
    Interrupted,
    /// An error ended it.
    Failed,
}

/// A piece of work under way; among many ranks, rank 0's share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    /// As logs have it.
    pub name: String,
    /// What is counted, e.g. "prompts".
    pub unit: String,
    /// How many are done.
    pub done: usize,
    /// How many there are.
    pub total: usize,
    /// Since it was begun, with what was loaded for it.
    pub seconds: f64,
    /// Until it is done, about.
    pub seconds_left: Option<f64>,
    /// A short remark, such as the loss.
    pub note: String,
}

/// The time of a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageTime {
    /// From 1; 0 is before the first.
    pub iteration: usize,
    /// As logs have it.
    pub name: String,
    /// With what it loads.
    pub seconds: f64,
}

/// What a plan says of an iteration's stages, in seconds. Only their proportions count: what is
/// measured takes their place as it comes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planned {
    /// Sampling responses.
    pub generation: f64,
    /// Judging them.
    pub judging: f64,
    /// Log-probabilities under the starting model.
    pub reference: f64,
    /// The training itself.
    pub training: f64,
}

impl Planned {
    /// In the order of [`STAGES`].
    fn stage(&self, index: usize) -> f64 {
        [self.generation, self.judging, self.reference, self.training]
            .get(index)
            .copied()
            .unwrap_or(0.0)
    }
}

impl Progress {
    /// That of the run in `dir`; `None` where there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>, StageError> {
        let path = dir.join(PROGRESS);
        match std::fs::read(&path) {
            // Nothing depends on what it says, so one that cannot be understood is none.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FileError::new("read", &path)(error).into()),
        }
    }

    /// Seconds since it was written; `None` where it does not say when.
    pub fn age(&self) -> Option<f64> {
        let updated: DateTime<Utc> = self.updated.parse().ok()?;
        Some((Utc::now() - updated).num_milliseconds() as f64 / 1000.0)
    }

    /// Time of a stage in an iteration so far.
    fn seconds(&self, iteration: usize, name: &str) -> Option<f64> {
        let stages = self.stages.iter();
        let mut own = stages.filter(|stage| stage.iteration == iteration && stage.name == name);
        own.next().map(|stage| stage.seconds)
    }

    fn add(&mut self, name: &str, seconds: f64) {
        let iteration = self.iteration;
        let stages = self.stages.iter_mut();
        let mut own = stages.filter(|stage| stage.iteration == iteration && stage.name == name);
        match own.next() {
            Some(stage) => stage.seconds += seconds,
            None => self.stages.push(StageTime {
                iteration,
                name: name.into(),
                seconds,
            }),
        }
    }

    /// What is left of the run: for each stage the longest that an iteration took; before one is
    /// there, what the plan says, by the ratio of what is measured to what was planned.
    fn left(&self, planned: Option<Planned>) -> Option<f64> {
        let now = self.work.as_ref();
        // What the current stage takes in all, as it looks now.
        let current = now.map_or(0.0, |work| work.seconds + work.seconds_left.unwrap_or(0.0));
        let at = now.and_then(|work| STAGES.iter().position(|name| *name == work.name));
        let measured = |index: usize| {
            let earlier = (1..=self.iteration).filter_map(|i| self.seconds(i, STAGES[index]));
            let longest = earlier.fold(f64::NAN, f64::max);
            match at == Some(index) {
                true => Some(longest.max(current)),
                false => Some(longest),
            }
            .filter(|seconds| seconds.is_finite())
        };
        let (mut of_plan, mut of_clock) = (0.0, 0.0);
        for index in 0..STAGES.len() {
            if let (Some(planned), Some(seconds)) = (planned, measured(index))
                && planned.stage(index) > 0.0
            {
                of_plan += planned.stage(index);
                of_clock += seconds;
            }
        }
        let expected = |index: usize| {
            let by_plan = planned.map(|planned| planned.stage(index) * of_clock / of_plan);
            measured(index).or(by_plan.filter(|seconds| seconds.is_finite()))
        };
        let iteration: Vec<Option<f64>> = (0..STAGES.len()).map(expected).collect();
        if self.iteration == 0 || iteration[..4].iter().all(Option::is_none) {
            return None;
        }
        let sum = |parts: &[Option<f64>]| parts.iter().flatten().sum::<f64>();
        let further = self.iterations.saturating_sub(self.iteration) as f64 * sum(&iteration);
        let begun = |name: &str| self.seconds(self.iteration, name).is_some();
        let next = match at {
            Some(at) => at + 1,
            None => STAGES
                .iter()
                .rposition(|name| begun(name))
                .map_or(0, |last| last + 1),
        };
        let rest = now.and_then(|work| work.seconds_left).unwrap_or(0.0);
        Some(further + sum(&iteration[next..]) + rest)
    }
}

/// Passes everything on to another monitor, and writes down where the run stands. Nothing depends
/// on the file, so one that cannot be written is warned of and no more.
pub(super) struct Recorder<'a> {
    inner: &'a dyn Monitor,
    path: PathBuf,
    planned: Option<Planned>,
    state: RefCell<Recorded>,
}

struct Recorded {
    progress: Progress,
    /// When the stage under way was begun, or the last one ended.
    since: Instant,
    /// When its first unit was counted from, and at how many.
    counted: (Instant, usize),
    /// Seconds left and when that was said, where somebody knows better than the rate.
    told: Option<(f64, Instant)>,
    written: Option<Instant>,
    failed: bool,
}

impl<'a> Recorder<'a> {
    /// Goes on from what is written of the run in `dir`.
    pub fn new(
        inner: &'a dyn Monitor,
        dir: &Path,
        iterations: usize,
        planned: Option<Planned>,
    ) -> Self {
        let before = Progress::read(dir).ok().flatten().unwrap_or_default();
        let progress = Progress {
            state: State::Running,
            pid: std::process::id(),
            host: host(),
            iterations,
            iteration: 0,
            stages: before.stages,
            ..Progress::default()
        };
        let now = Instant::now();
        let recorder = Self {
            inner,
            path: dir.join(PROGRESS),
            planned,
            state: RefCell::new(Recorded {
                progress,
                since: now,
                counted: (now, 0),
                told: None,
                written: None,
                failed: false,
            }),
        };
        recorder.write();
        recorder
    }

    /// From here on it is this iteration's work.
    pub fn iteration(&self, number: usize) {
        self.state.borrow_mut().progress.iteration = number;
    }

    /// The run has come to its end.
    pub fn finished(&self) {
        let state = &mut *self.state.borrow_mut();
        state.progress.state = State::Finished;
        // Of settings that were changed, fewer iterations may be wanted than were there.
        let iterations = state.progress.iterations;
        state
            .progress
            .stages
            .retain(|stage| stage.iteration <= iterations);
    }

    fn write(&self) {
        let state = &mut *self.state.borrow_mut();
        let now = Instant::now();
        state.written = Some(now);
        if !cluster::world().leads() {
            return;
        }
        let progress = &mut state.progress;
        if let Some(work) = &mut progress.work {
            work.seconds = now.duration_since(state.since).as_secs_f64();
            let (from, first) = state.counted;
            let (count, left) = (
                work.done.saturating_sub(first),
                work.total.saturating_sub(work.done),
            );
            let by_rate = now.duration_since(from).as_secs_f64() * left as f64 / count as f64;
            let told = state
                .told
                .map(|(seconds, when)| (seconds - now.duration_since(when).as_secs_f64()).max(0.0));
            work.seconds_left = told.or(Some(by_rate).filter(|seconds| seconds.is_finite()));
        }
        progress.updated = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        progress.peak_memory_bytes = self.inner.peak_memory_bytes();
        progress.seconds_left = match progress.state {
            State::Running => progress.left(self.planned),
            _ => None,
        };
        let written = serde_json::to_vec_pretty(&progress).map_err(std::io::Error::from);
        let written = written
            .map_err(FileError::new("write", &self.path))
            .and_then(|bytes| replace_file_soon(&self.path, &bytes));
        if let Err(error) = written
            && !std::mem::replace(&mut state.failed, true)
        {
            tracing::warn!("{error}; the run goes on, but cannot be watched from elsewhere");
        }
    }

    fn write_if_due(&self) {
        let written = self.state.borrow().written;
        if written.is_none_or(|written| written.elapsed() >= INTERVAL) {
            self.write();
        }
    }
}

impl Monitor for Recorder<'_> {
    fn interrupt(&self) -> &AtomicBool {
        self.inner.interrupt()
    }

    fn begin(&self, label: &str, unit: &'static str, done: usize, total: usize) {
        self.inner.begin(label, unit, done, total);
        {
            let state = &mut *self.state.borrow_mut();
            let name = label.split_once(SHARE).map_or(label, |(name, _)| name);
            state.progress.work = Some(Work {
                name: name.into(),
                unit: unit.into(),
                done,
                total,
                ..Work::default()
            });
            state.counted = (Instant::now(), done);
            state.told = None;
        }
        self.write();
    }

    fn advance(&self, count: usize, note: Option<String>) {
        if let Some(work) = &mut self.state.borrow_mut().progress.work {
            work.done += count;
            work.note = note.clone().unwrap_or(std::mem::take(&mut work.note));
        }
        self.inner.advance(count, note);
        self.write_if_due();
    }

    fn time_left(&self, seconds: f64) {
        self.state.borrow_mut().told = Some((seconds, Instant::now()));
        self.inner.time_left(seconds);
        self.write_if_due();
    }

    fn end(&self) {
        {
            let state = &mut *self.state.borrow_mut();
            if let Some(work) = state.progress.work.take() {
                state
                    .progress
                    .add(&work.name, state.since.elapsed().as_secs_f64());
            }
            state.since = Instant::now();
        }
        self.inner.end();
        self.write();
    }

    fn peak_memory_bytes(&self) -> u64 {
        self.inner.peak_memory_bytes()
    }
}

/// Says how the run ended.
impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        {
            let state = &mut *self.state.borrow_mut();
            if let Some(work) = state.progress.work.take() {
                state
                    .progress
                    .add(&work.name, state.since.elapsed().as_secs_f64());
            }
            if state.progress.state == State::Running {
                state.progress.state = match self.inner.interrupted() {
                    true => State::Interrupted,
                    false => State::Failed,
                };
            }
        }
        self.write();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Silent;
    use std::sync::atomic::Ordering;

    fn stage(iteration: usize, name: &str, seconds: f64) -> StageTime {
        StageTime {
            iteration,
            name: name.into(),
            seconds,
        }
    }

    fn work(name: &str, seconds: f64, left: f64) -> Option<Work> {
        Some(Work {
            name: name.into(),
            seconds,
            seconds_left: Some(left),
            ..Work::default()
        })
    }

    #[test]
    fn what_was_measured_is_what_is_left() {
        let first = STAGES.map(|name| stage(1, name, 10.0));
        let progress = Progress {
            iterations: 3,
            iteration: 2,
            work: work("training", 4.0, 6.0),
            stages: first
                .into_iter()
                .chain([stage(2, "generating", 12.0)])
                .collect(),
            ..Progress::default()
        };
        // 6 of this stage and 20 behind it; then 12 + 5 · 10.
        assert_eq!(progress.left(None), Some(88.0));
        let between = Progress {
            work: None,
            ..progress
        };
        // Only the generating of this iteration is done.
        assert_eq!(between.left(None), Some(50.0 + 62.0));
    }

    #[test]
    fn the_plan_says_what_was_not_measured() {
        let planned = Planned {
            generation: 1.0,
            judging: 0.0,
            reference: 1.0,
            training: 8.0,
        };
        let progress = Progress {
            iterations: 2,
            iteration: 1,
            work: work("generating", 5.0, 15.0),
            ..Progress::default()
        };
        // The clock goes 20 times as fast as the plan: 15 + 20 + 160, and 200 once more.
        assert_eq!(progress.left(Some(planned)), Some(395.0));
        // Without a plan, what is known.
        assert_eq!(progress.left(None), Some(15.0 + 20.0));
        let before = Progress {
            iteration: 0,
            ..progress
        };
        assert_eq!(before.left(Some(planned)), None);
    }

    #[test]
    fn a_run_is_written_down_and_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let silent = Silent::default();
        let recorder = Recorder::new(&silent, dir.path(), 2, None);
        recorder.iteration(1);
        recorder.begin("generating, share of rank 0 of 2", "prompts", 3, 10);
        let read = || Progress::read(dir.path()).unwrap().unwrap();
        let work = read().work.unwrap();
        assert_eq!(
            (work.name.as_str(), work.done, work.total),
            ("generating", 3, 10)
        );
        assert!(work.seconds_left.is_none());
        recorder.advance(2, Some("fast".into()));
        recorder.end();
        assert_eq!((read().state, read().work), (State::Running, None));
        drop(recorder);
        assert_eq!(read().state, State::Failed);
        let before = read().stages;
        assert_eq!((before.len(), before[0].iteration), (1, 1));
        silent.interrupt().store(true, Ordering::Relaxed);
        let recorder = Recorder::new(&silent, dir.path(), 2, None);
        recorder.iteration(1);
        recorder.begin("generating", "prompts", 5, 10);
        drop(recorder);
        let after = read();
        assert_eq!((after.state, after.stages.len()), (State::Interrupted, 1));
        assert!(after.stages[0].seconds > before[0].seconds);
        assert!(after.age().unwrap() < 600.0);
        let recorder = Recorder::new(&silent, dir.path(), 0, None);
        recorder.finished();
        drop(recorder);
        assert_eq!((read().state, read().stages.len()), (State::Finished, 0));
    }
}
