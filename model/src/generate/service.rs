//! An engine on a thread of its own: others hand it jobs through a bounded queue, and each job's
//! events go where the job says.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::engine::{Engine, EngineCounts};
use super::request::{Event, GenerateError, Request, RequestId};
use crate::ops::ModelOps;

/// How often an engine without work looks whether it is to stop.
const IDLE: Duration = Duration::from_millis(50);

/// Where the events of a job go.
pub trait EventSink: Send {
    /// Takes an event of the job's request number `request`, or why that request cannot be answered.
    /// Must not wait. `false`: nobody listens any more, and the job is dropped.
    fn send(&mut self, request: usize, event: Result<Event, GenerateError>) -> bool;

    /// Whether nobody listens any more.
    fn is_gone(&self) -> bool;
}

/// Requests that belong together.
pub struct Job {
    /// They are answered side by side.
    pub requests: Vec<Request>,
    /// Takes the events of all of them.
    pub sink: Box<dyn EventSink>,
}

/// Why a job was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAccepted {
    /// As many jobs wait as may.
    #[error("as many requests wait as may")]
    Full,
    /// There is no engine any more.
    #[error("the engine has stopped")]
    Stopped,
}

/// What became of jobs, and what the engine does; numbers of a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that nothing was begun of.
    pub waiting: u64,
    /// Jobs that were accepted.
    pub accepted: u64,
    /// Jobs whose listener went before the end.
    pub cancelled: u64,
    /// The engine's own, after its last step.
    pub engine: EngineCounts,
}

#[derive(Default)]
struct Shared {
    waiting: AtomicU64,
    accepted: AtomicU64,
    cancelled: AtomicU64,
    engine: Mutex<EngineCounts>,
}

impl Shared {
    fn engine(&self) -> MutexGuard<'_, EngineCounts> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The engine's side for those who ask; may be cloned and sent.
#[derive(Clone)]
pub struct EngineHandle {
    jobs: SyncSender<Job>,
    most: u64,
    shared: Arc<Shared>,
}

/// The engine's side of the queue.
pub struct EngineQueue {
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
}

/// A queue in which at most `most` jobs wait.
pub fn engine_queue(most: usize) -> (EngineHandle, EngineQueue) {
    let (sender, receiver) = sync_channel(most.max(1));
    let shared = Arc::<Shared>::default();
    let handle = EngineHandle {
        jobs: sender,
        most: most.max(1) as u64,
        shared: shared.clone(),
    };
    let queue = EngineQueue {
        jobs: receiver,
        shared,
    };
    (handle, queue)
}

impl EngineHandle {
    /// Hands a job over; does not wait.
    pub fn submit(&self, job: Job) -> Result<(), NotAccepted> {
        let waiting = &self.shared.waiting;
        if waiting.fetch_add(1, Ordering::SeqCst) >= self.most {
            waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(NotAccepted::Full);
        }
        let sent = self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => NotAccepted::Full,
            TrySendError::Disconnected(_) => NotAccepted::Stopped,
        });
        match sent {
            Ok(()) => self.shared.accepted.fetch_add(1, Ordering::Relaxed),
            Err(_) => waiting.fetch_sub(1, Ordering::SeqCst),
        };
        sent
    }

    /// The numbers of this moment.
    pub fn counts(&self) -> Counts {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let shared = &self.shared;
        Counts {
            waiting: of(&shared.waiting),
            accepted: of(&shared.accepted),
            cancelled: of(&shared.cancelled),
            engine: *shared.engine(),
        }
    }
}

/// A job that is not finished.
struct Open {
    sink: Box<dyn EventSink>,
    /// Its requests that the engine has, and their numbers within it.
    requests: Vec<RequestId>,
    left: usize,
}

/// An engine at work.
struct Running<'a, B: ModelOps> {
    engine: Engine<B>,
    shared: &'a Shared,
    /// Accepted, and nothing of them begun.
    waiting: VecDeque<Job>,
    open: BTreeMap<u64, Open>,
    /// The job of a request, the request's number within it, and the samples it still owes.
    places: BTreeMap<RequestId, Place>,
    next: u64,
}

#[derive(Clone, Copy)]
struct Place {
    job: u64,
    number: usize,
    left: usize,
}

impl EngineQueue {
    /// Answers jobs on this thread until `stop` says so or every handle is gone and all is answered.
    /// What fails for all (a device that is lost) is told to every job, then returned.
    pub fn run<B: ModelOps>(
        self,
        engine: Engine<B>,
        stop: impl Fn() -> bool,
    ) -> Result<(), GenerateError> {
        let mut running = Running {
            engine,
            shared: &self.shared,
            waiting: VecDeque::new(),
            open: BTreeMap::new(),
            places: BTreeMap::new(),
            next: 0,
        };
        let mut more = true;
        while !stop() {
            more &= running.receive(&self.jobs);
            if running.is_idle() {
                if !more {
                    break;
                }
                continue;
            }
            running.drop_gone();
            running.begin();
            let stepped = running.step();
            *running.shared.engine() = running.engine.counts();
            if let Err(error) = stepped {
                running.fail(&error);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl<B: ModelOps> Running<'_, B> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.open.is_empty()
    }

    /// Takes what is in the queue, and waits a moment for it where there is nothing else to do;
    /// whether more may come.
    fn receive(&mut self, jobs: &Receiver<Job>) -> bool {
        if self.is_idle() {
            match jobs.recv_timeout(IDLE) {
                Ok(job) => self.waiting.push_back(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match jobs.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Drops the jobs that nobody listens to.
    fn drop_gone(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|job| !job.sink.is_gone());
        let gone = (before - self.waiting.len()) as u64;
        self.shared.waiting.fetch_sub(gone, Ordering::SeqCst);
        self.shared.cancelled.fetch_add(gone, Ordering::Relaxed);
        let gone = self.open.iter().filter(|(_, open)| open.sink.is_gone());
        let gone: Vec<u64> = gone.map(|(job, _)| *job).collect();
        gone.into_iter().for_each(|job| self.cancel(job));
    }

    /// Hands jobs to the engine while it has room for more than it holds.
    fn begin(&mut self) {
        while self.engine.has_room()
            && let Some(job) = self.waiting.pop_front()
        {
            self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
            self.submit(job);
        }
    }

    fn submit(&mut self, job: Job) {
        let number = self.next;
        self.next += 1;
        let mut open = Open {
            sink: job.sink,
            requests: Vec::new(),
            left: 0,
        };
        for (place, request) in job.requests.into_iter().enumerate() {
            let left = request.samples;
            match self.engine.submit(request) {
                Ok(id) => {
                    let place = Place {
                        job: number,
                        number: place,
                        left,
                    };
                    self.places.insert(id, place);
                    open.requests.push(id);
                    open.left += left;
                }
                Err(error) => {
                    open.sink.send(place, Err(error));
                }
            }
        }
        if open.left > 0 {
            self.open.insert(number, open);
        }
    }

    fn step(&mut self) -> Result<(), GenerateError> {
        for event in self.engine.step()? {
            let Some(place) = self.places.get_mut(&event.request()) else {
                continue;
            };
            let job = place.job;
            let Some(open) = self.open.get_mut(&job) else {
                continue;
            };
            if matches!(event, Event::Finished { .. } | Event::Failed { .. }) {
                place.left -= 1;
                open.left -= 1;
            }
            let (number, done) = (place.number, place.left == 0);
            if done {
                self.places.remove(&event.request());
            }
            if !open.sink.send(number, Ok(event)) && open.left > 0 {
                self.cancel(job);
            } else if open.left == 0 {
                self.open.remove(&job);
            }
        }
        Ok(())
    }

    fn cancel(&mut self, job: u64) {
        let Some(open) = self.open.remove(&job) else {
            return;
        };
        for id in open.requests {
            self.places.remove(&id);
            self.engine.cancel(id);
        }
        self.shared.cancelled.fetch_add(1, Ordering::Relaxed);
    }

    fn fail(&mut self, error: &GenerateError) {
        let said = |number| (number, Err(GenerateError::Device(error.to_string())));
        for job in &mut self.waiting {
            let (number, error) = said(0);
            job.sink.send(number, error);
        }
        for open in self.open.values_mut() {
            let (number, error) = said(0);
            open.sink.send(number, error);
        }
    }
}
