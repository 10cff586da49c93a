//! MPI: the processes that `mpirun` or `srun` started.
//!
//! Every operation is started without blocking and then polled: a rank that waits is seen to wait,
//! takes no core from those that compute, and ends with the process.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use ::mpi::ffi;
use ::mpi::traits::AsRaw;
use ::mpi::{Threading, initialize_with_threading};

use super::{Communicator, Transfer, waiting};

/// All processes of one MPI job.
pub struct Mpi {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    /// All-to-all operations so far.
    operations: AtomicI32,
}

/// Tags that every MPI has.
const TAGS: i32 = 1 << 15;

impl Mpi {
    /// Initialises MPI. `None` where that was done before.
    pub fn init() -> Option<Self> {
        let (universe, _) = initialize_with_threading(Threading::Serialized)?;
        // Its drop finalises MPI, which waits for ever for ranks that failed.
        std::mem::forget(universe);
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI is initialised, and both places are ours.
        unsafe {
            ffi::MPI_Comm_rank(comm(), &mut rank);
            ffi::MPI_Comm_size(comm(), &mut size);
        }
        let mut world = Self {
            rank: rank as usize,
            size: size as usize,
            local_rank: 0,
            local_size: 1,
            operations: AtomicI32::new(0),
        };
        let host = crate::files::host();
        let hosts = world.all_gather(host.as_bytes());
        let here = |hosts: &[Vec<u8>]| hosts.iter().filter(|h| **h == host.as_bytes()).count();
        world.local_rank = here(&hosts[..world.rank]);
        world.local_size = here(&hosts);
        Some(world)
    }

    /// Ends MPI behind a job that went well on all ranks. Collective.
    pub fn finalize() {
        // SAFETY: nothing is under way, since every transfer is waited for.
        unsafe {
            ffi::MPI_Finalize();
        }
    }

    fn all_gather_of<T: Element>(&self, send: Vec<T>, from: &[usize]) -> Pending<T> {
        let mut pending = Pending::new(send, from.iter().sum());
        pending.lists = [counts(from), offsets(from)];
        let [counts, offsets] = &pending.lists;
        let mut request = null_request();
        // SAFETY: buffers and lists are on the heap, where `pending` keeps them until the request
        // is complete, and hold as many elements as the lists say.
        unsafe {
            ffi::MPI_Iallgatherv(
                pending.send.as_ptr().cast(),
                count(pending.send.len()),
                T::datatype(),
                pending.received.as_mut_ptr().cast(),
                counts.as_ptr(),
                offsets.as_ptr(),
                T::datatype(),
                comm(),
                &mut request,
            );
        }
        pending.requests.push(request);
        pending
    }

    /// Message by message: Open MPI's `MPI_Ialltoallv` (4.1) loses count of its operations where
    /// one leaves some ranks without anything to send or receive, and hangs in the next.
    fn all_to_all_of<T: Element>(&self, send: Vec<T>, to: &[usize], from: &[usize]) -> Pending<T> {
        let tag = self.operations.fetch_add(1, Ordering::Relaxed) % TAGS;
        let mut pending = Pending::new(send, from.iter().sum());
        let (mut sent, mut received) = (0, 0);
        for rank in 0..self.size {
            let (out, back) = (
                &pending.send[sent..sent + to[rank]],
                received..received + from[rank],
            );
            (sent, received) = (sent + to[rank], back.end);
            if rank == self.rank {
                pending.received[back].copy_from_slice(out);
                continue;
            }
            let place = &mut pending.received[back];
            let mut requests = [null_request(); 2];
            // SAFETY: as above; the slices are as long as is said.
            unsafe {
                if !place.is_empty() {
                    ffi::MPI_Irecv(
                        place.as_mut_ptr().cast(),
                        count(place.len()),
                        T::datatype(),
                        rank as i32,
                        tag,
                        comm(),
                        &mut requests[0],
                    );
                }
                if !out.is_empty() {
                    ffi::MPI_Isend(
                        out.as_ptr().cast(),
                        count(out.len()),
                        T::datatype(),
                        rank as i32,
                        tag,
                        comm(),
                        &mut requests[1],
                    );
                }
            }
            pending.requests.extend(requests);
        }
        pending
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn barrier(&self) {
        let mut request = null_request();
        // SAFETY: the request is ours and is waited for.
        unsafe {
            ffi::MPI_Ibarrier(comm(), &mut request);
        }
        poll(|| test(&mut request));
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        let own = match self.rank {
            0 => bytes,
            _ => Vec::new(),
        };
        self.all_gather(&own).swap_remove(0)
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let length = bytes.len().to_le_bytes();
        let lengths = self.all_gather_of(length.to_vec(), &vec![length.len(); self.size]);
        let lengths: Vec<usize> = Box::new(lengths)
            .wait()
            .chunks_exact(length.len())
            .map(|word| usize::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        let all = Box::new(self.all_gather_of(bytes.to_vec(), &lengths)).wait();
        let mut rest = all.as_slice();
        let mut parts = Vec::with_capacity(self.size);
        for length in lengths {
            let (part, behind) = rest.split_at(length);
            parts.push(part.to_vec());
            rest = behind;
        }
        parts
    }

    fn all_to_all(&self, send: Vec<f32>, to: &[usize], from: &[usize]) -> Box<dyn Transfer<f32>> {
        Box::new(self.all_to_all_of(send, to, from))
    }

    fn all_gather_f32(&self, send: Vec<f32>, from: &[usize]) -> Box<dyn Transfer<f32>> {
        Box::new(self.all_gather_of(send, from))
    }

    fn all_gather_u16(&self, send: Vec<u16>, from: &[usize]) -> Box<dyn Transfer<u16>> {
        Box::new(self.all_gather_of(send, from))
    }

    fn fail(&self, code: u8) -> ! {
        // SAFETY: ends the process. Not `exit`: libraries of MPI wait for their peers there.
        unsafe { libc::_exit(code.into()) }
    }
}

/// An operation under way, with all that MPI reads and writes meanwhile.
struct Pending<T> {
    requests: Vec<ffi::MPI_Request>,
    /// Counts and offsets.
    lists: [Vec<i32>; 2],
    send: Vec<T>,
    received: Vec<T>,
}

impl<T: Element> Pending<T> {
    fn new(send: Vec<T>, received: usize) -> Self {
        Self {
            requests: Vec::new(),
            lists: [Vec::new(), Vec::new()],
            send,
            received: vec![T::default(); received],
        }
    }
}

impl<T> Transfer<T> for Pending<T> {
    fn progress(&mut self) -> bool {
        self.requests.retain_mut(|request| !test(request));
        self.requests.is_empty()
    }

    fn wait(mut self: Box<Self>) -> Vec<T> {
        poll(|| self.progress());
        std::mem::take(&mut self.received)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            // MPI may still read and write them.
            std::mem::forget(std::mem::take(&mut self.lists));
            std::mem::forget(std::mem::take(&mut self.received));
            std::mem::forget(std::mem::take(&mut self.send));
        }
    }
}

/// What MPI can send.
trait Element: Copy + Default {
    fn datatype() -> ffi::MPI_Datatype;
}

impl Element for u8 {
    fn datatype() -> ffi::MPI_Datatype {
        // SAFETY: a constant.
        unsafe { ffi::RSMPI_UINT8_T }
    }
}

impl Element for u16 {
    fn datatype() -> ffi::MPI_Datatype {
        // SAFETY: a constant.
        unsafe { ffi::RSMPI_UINT16_T }
    }
}

impl Element for f32 {
    fn datatype() -> ffi::MPI_Datatype {
        // SAFETY: a constant.
        unsafe { ffi::RSMPI_FLOAT }
    }
}

fn comm() -> ffi::MPI_Comm {
    ::mpi::topology::SimpleCommunicator::world().as_raw()
}

fn null_request() -> ffi::MPI_Request {
    // SAFETY: a constant.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

fn test(request: &mut ffi::MPI_Request) -> bool {
    let mut done = 0;
    // SAFETY: the request is one that was started, or none, which is done.
    unsafe {
        ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE);
    }
    done != 0
}

/// Asks until it is done: at once, then with pauses, which leave the core to a rank that computes.
fn poll(mut done: impl FnMut() -> bool) {
    if done() {
        return;
    }
    waiting(|| {
        for round in 0u32.. {
            if done() {
                return;
            }
            match round {
                // Small messages come within this time, and a sleep takes longer than it says.
                0..2000 => std::thread::yield_now(),
                _ => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    });
}

fn count(elements: usize) -> i32 {
    // MPI's own limit: 2 147 483 647 elements at a time.
    i32::try_from(elements).expect("MPI sends at most 2^31 − 1 elements at a time")
}

fn counts(elements: &[usize]) -> Vec<i32> {
    elements.iter().map(|&n| count(n)).collect()
}

fn offsets(elements: &[usize]) -> Vec<i32> {
    let mut next = 0;
    let starts = elements.iter().map(|&n| {
        let start = next;
        next += n;
        count(start)
    });
    starts.collect()
}
