//! A thread of each rank that writes what its rank does, and reads what the others do: a collective
//! operation that waits for a rank that stands still would wait for ever.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sppo_model::progress;

use super::Communicator;
use crate::files::{FileError, host};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Bytes of a rank's file: written over in place and in one go, which a full disk allows.
const RECORD: usize = 1024;

/// The step of the newest checkpoint of the training under way.
static SAVED: AtomicUsize = AtomicUsize::new(0);

/// Says that a checkpoint behind `step` steps was saved.
pub fn saved(step: usize) {
    SAVED.store(step, Ordering::Relaxed);
}

/// What to do about a job that ended.
fn again() -> String {
    match SAVED.load(Ordering::Relaxed) {
        0 => "run it again to go on".into(),
        step => format!("run it again to go on from step {step}"),
    }
}

/// What a rank says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    host: String,
    pid: u32,
    /// Goes up as long as the process runs.
    beat: u64,
    /// The part of the job.
    part: String,
    /// The piece of work within it.
    label: String,
    /// Goes up with the work.
    count: u64,
    /// Whether it waits for others in a collective operation.
    waiting: bool,
}

/// The watching thread; ends when dropped.
pub struct Watchdog {
    own: PathBuf,
    /// Dropped to end the thread.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Watches over the ranks, whose files lie in `folder`. Where this rank waits in a collective
/// operation and another has stood still for `stall`, `end` is told who, and has to end the
/// process.
pub fn watch(
    world: &dyn Communicator,
    folder: &Path,
    stall: Duration,
    end: impl Fn(String) + Send + 'static,
) -> Result<Watchdog, FileError> {
    let mut watch = Watch::new(world.rank(), world.size(), folder, stall);
    let own = watch.path(world.rank());
    watch.tell().map_err(FileError::new("write", &own))?;
    let (stop, stopped) = sync_channel::<()>(0);
    let thread = Builder::new().name("watchdog".into()).spawn(move || {
        while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            // A disk that is full for a while is no reason to end.
            let _ = watch.tell();
            if let Some(message) = watch.look() {
                end(message);
            }
        }
    });
    let thread = thread.map_err(FileError::new("watch", folder))?;
    Ok(Watchdog {
        own,
        stop: Some(stop),
        thread: Some(thread),
    })
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.own);
    }
}

struct Watch {
    rank: usize,
    folder: Arc<Path>,
    stall: Duration,
    host: String,
    beat: u64,
    /// When this thread looked last.
    looked: Instant,
    ranks: Vec<Seen>,
}

/// What was seen of a rank, and for how long, while this thread ran, it has been the same. Clocks of
/// other machines are not asked.
#[derive(Clone, Default)]
struct Seen {
    record: Record,
    /// Without a beat.
    silent: Duration,
    /// Without work.
    idle: Duration,
}

impl Watch {
    fn new(rank: usize, size: usize, folder: &Path, stall: Duration) -> Self {
        Self {
            rank,
            folder: folder.into(),
            stall,
            host: host(),
            beat: 0,
            looked: Instant::now(),
            ranks: vec![Seen::default(); size],
        }
    }

    fn path(&self, rank: usize) -> PathBuf {
        self.folder.join(rank.to_string())
    }

    /// Writes what this rank does.
    fn tell(&mut self) -> io::Result<()> {
        self.beat += 1;
        let now = progress::now();
        let cut = |text: String| text.chars().take(100).collect();
        let record = Record {
            host: self.host.clone(),
            pid: std::process::id(),
            beat: self.beat,
            part: cut(now.part),
            label: cut(now.label),
            count: now.count,
            waiting: now.waiting,
        };
        let mut text = serde_json::to_vec(&record)?;
        text.resize(text.len().max(RECORD), b' ');
        // Opened anew each time: a network file system shows to others what is closed.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        options.open(self.path(self.rank))?.write_all(&text)
    }

    /// Looks at all ranks; says who stands still, if this rank waits for it.
    fn look(&mut self) -> Option<String> {
        // A process that was stopped, or a machine that slept, saw nothing meanwhile.
        let passed = self.looked.elapsed().min(2 * PERIOD);
        self.looked = Instant::now();
        for rank in 0..self.ranks.len() {
            let record = self.read(rank);
            self.ranks[rank].note(record, passed);
        }
        self.judge()
    }

    /// Half a record, as a network file system may show it, says nothing.
    fn read(&self, rank: usize) -> Option<Record> {
        let mut text = Vec::with_capacity(RECORD);
        let mut file = File::open(self.path(rank)).ok()?;
        file.read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn judge(&self) -> Option<String> {
        if !self.ranks[self.rank].record.waiting {
            return None;
        }
        // Those that wait say it one after the other, and the first ends the job.
        let waiting = |rank: &&Seen| rank.record.waiting && rank.silent < self.stall;
        let before = self.ranks[..self.rank].iter().filter(waiting).count();
        let stall = self.stall + PERIOD * before.min(3) as u32;
        let seconds = self.stall.as_secs();
        let mut ranks = self.ranks.iter().enumerate();
        if let Some((rank, seen)) = ranks.find(|(_, seen)| seen.stands_still(stall)) {
            let Record { host, pid, .. } = &seen.record;
            return Some(format!(
                "rank {rank} ({host}, pid {pid}) stands still since {seconds} s{}; the job ends; {}",
                seen.record.place(),
                again()
            ));
        }
        let all = |seen: &Seen| seen.record.waiting && seen.idle >= stall;
        self.ranks.iter().all(all).then(|| {
            format!(
                "all ranks wait for each other since {seconds} s{}; the job ends; {}",
                self.ranks[self.rank].record.place(),
                again()
            )
        })
    }
}

impl Seen {
    fn note(&mut self, record: Option<Record>, passed: Duration) {
        let record = record.unwrap_or_else(|| self.record.clone());
        self.silent = match record.beat == self.record.beat {
            true => self.silent + passed,
            false => Duration::ZERO,
        };
        let works = |of: &Record| (of.count, of.waiting);
        self.idle = match works(&record) == works(&self.record) {
            true => self.idle + passed,
            false => Duration::ZERO,
        };
        self.record = record;
    }

    fn stands_still(&self, stall: Duration) -> bool {
        self.silent >= stall || (!self.record.waiting && self.idle >= stall)
    }
}

impl Record {
    fn place(&self) -> String {
        match (self.label.as_str(), self.part.as_str()) {
            ("", "") => String::new(),
            (label, "") | ("", label) => format!(" in \"{label}\""),
            (label, part) => format!(" in \"{label}\", {part}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(beat: u64, count: u64, waiting: bool) -> Record {
        Record {
            host: "node2".into(),
            pid: 4711,
            beat,
            part: "training, step 12".into(),
            label: "block 17 backward".into(),
            count,
            waiting,
        }
    }

    /// Looks once a second at what `ranks` say; the second of the first message, and it.
    fn ended(
        rank: usize,
        size: usize,
        ranks: impl Fn(usize, u64) -> Record,
    ) -> Option<(u64, String)> {
        let mut watch = Watch::new(rank, size, Path::new(""), Duration::from_secs(5));
        (1..30).find_map(|second| {
            for (rank, seen) in watch.ranks.iter_mut().enumerate() {
                seen.note(Some(ranks(rank, second)), PERIOD);
            }
            Some((second, watch.judge()?))
        })
    }

    #[test]
    fn a_rank_that_stands_still_is_named_by_one_that_waits() {
        // Rank 1 runs, but its work does not go on; then one whose process is stopped.
        for (beats, waits) in [(true, false), (false, false), (false, true)] {
            let ranks = |rank, second| match rank {
                1 => record(if beats { second } else { 1 }, 3, waits),
                _ => record(second, 7, true),
            };
            let (second, message) = ended(0, 3, ranks).unwrap();
            assert_eq!(
                message,
                "rank 1 (node2, pid 4711) stands still since 5 s in \"block 17 backward\", \
                 training, step 12; the job ends; run it again to go on"
            );
            assert_eq!(second, 6);
            assert!(ended(2, 3, ranks).unwrap().0 > second, "rank 0 says it");
        }
    }

    #[test]
    fn work_that_goes_on_is_no_standing_still() {
        let ranks = |rank, second| match rank {
            // A slow writer.
            1 => record(second, second, false),
            _ => record(second, 7, true),
        };
        assert_eq!(ended(0, 2, ranks), None);
        // Nobody waits for the one that stands still.
        let ranks = |_, second| record(second, 7, false);
        assert_eq!(ended(0, 2, ranks), None);
    }

    #[test]
    fn ranks_that_all_wait_are_ended() {
        let (_, message) = ended(0, 2, |_, second| record(second, 7, true)).unwrap();
        assert!(message.starts_with("all ranks wait for each other since 5 s in"));
    }

    #[test]
    fn a_watcher_that_was_stopped_accuses_nobody() {
        let mut watch = Watch::new(0, 2, Path::new(""), Duration::from_secs(5));
        let told = |rank, beat| record(beat, 7, rank == 0);
        for seconds in [1, 1000, 1] {
            watch.looked = Instant::now()
                .checked_sub(Duration::from_secs(seconds))
                .unwrap();
            let passed = watch.looked.elapsed().min(2 * PERIOD);
            for (rank, seen) in watch.ranks.iter_mut().enumerate() {
                seen.note(Some(told(rank, 1)), passed);
            }
            assert_eq!(watch.judge(), None);
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut watch = Watch::new(0, 1, folder.path(), PERIOD);
        for _ in 0..2 {
            watch.tell().unwrap();
            let record = watch.read(0).unwrap();
            assert_eq!((record.beat, record.pid), (watch.beat, std::process::id()));
            let file = fs::metadata(watch.path(0)).unwrap();
            assert_eq!(file.len(), RECORD as u64);
        }
    }
}
