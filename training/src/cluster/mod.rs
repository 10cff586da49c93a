//! Many processes as one: who they are, what they tell each other, and how flat tensors travel.
//!
//! Every process (rank) runs the same code. What is read from the file system is read by rank 0 and
//! told to the others ([`lead`]), so that all take the same way; an error ends its own process, and
//! with it the job.

pub mod launch;
#[cfg(feature = "mpi")]
mod mpi;
pub mod start;
#[cfg(test)]
pub(crate) mod threads;
pub mod watchdog;

use std::any::Any;
use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "mpi")]
pub use self::mpi::Mpi;
pub use sppo_model::progress::{Doing, advance, begin, doing, now, waiting, writing};

/// The processes of a job. Every method but those that only tell is collective: all ranks call it,
/// in the same order.
pub trait Communicator: Send + Sync {
    /// Which of the processes this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Which of those on this host it is, from 0.
    fn local_rank(&self) -> usize;

    /// How many run on this host.
    fn local_size(&self) -> usize;

    /// Returns once all ranks are here.
    fn barrier(&self);

    /// Gives everyone the bytes of rank 0.
    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8>;

    /// Gives everyone the bytes of each rank, in the order of ranks.
    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// Starts to send the first `to[0]` elements to rank 0, the next `to[1]` to rank 1, and so on;
    /// gives the `from[r]` elements of each rank r end to end.
    fn all_to_all(&self, send: Vec<f32>, to: &[usize], from: &[usize]) -> Box<dyn Transfer<f32>>;

    /// Starts to give everyone the `from[r]` elements of each rank r, end to end.
    fn all_gather_f32(&self, send: Vec<f32>, from: &[usize]) -> Box<dyn Transfer<f32>>;

    /// The same for elements of two bytes (bf16).
    fn all_gather_u16(&self, send: Vec<u16>, from: &[usize]) -> Box<dyn Transfer<u16>>;

    /// Ends this process with an exit code, and so the job: the launcher passes the code on and
    /// ends the other ranks.
    fn fail(&self, code: u8) -> !;

    /// Whether this is the rank that writes what there is one of.
    fn leads(&self) -> bool {
        self.rank() == 0
    }
}

/// A collective operation under way.
pub trait Transfer<T> {
    /// Moves it on; whether it is finished.
    fn progress(&mut self) -> bool;

    /// Waits for its end and gives what was received.
    fn wait(self: Box<Self>) -> Vec<T>;
}

/// What is there at once.
struct Done<T>(Vec<T>);

impl<T> Transfer<T> for Done<T> {
    fn progress(&mut self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Vec<T> {
        self.0
    }
}

/// One process, alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Communicator for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_size(&self) -> usize {
        1
    }

    fn barrier(&self) {}

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn all_to_all(&self, send: Vec<f32>, _to: &[usize], _from: &[usize]) -> Box<dyn Transfer<f32>> {
        Box::new(Done(send))
    }

    fn all_gather_f32(&self, send: Vec<f32>, _from: &[usize]) -> Box<dyn Transfer<f32>> {
        Box::new(Done(send))
    }

    fn all_gather_u16(&self, send: Vec<u16>, _from: &[usize]) -> Box<dyn Transfer<u16>> {
        Box::new(Done(send))
    }

    fn fail(&self, code: u8) -> ! {
        std::process::exit(code.into())
    }
}

static WORLD: OnceLock<Box<dyn Communicator>> = OnceLock::new();

/// The processes of this job; this one alone unless [`join`] was called.
pub fn world() -> &'static dyn Communicator {
    match WORLD.get() {
        Some(world) => world.as_ref(),
        None => &SingleProcess,
    }
}

/// Makes this process one of a job, once and before anything asks for [`world`].
///
/// # Panics
/// Where it was called before.
pub fn join(communicator: Box<dyn Communicator>) {
    assert!(WORLD.set(communicator).is_ok(), "a process joins one job");
}

/// Runs `work` on rank 0 and gives its result to all. An error stays on rank 0, whose end ends the
/// job.
pub fn lead<T: Serialize + DeserializeOwned, E>(
    world: &dyn Communicator,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    if world.size() == 1 {
        return work();
    }
    let told = match world.leads() {
        true => serde_json::to_vec(&work()?).expect("values of ours become JSON"),
        false => Vec::new(),
    };
    let told = world.broadcast(told);
    Ok(serde_json::from_slice(&told).expect("rank 0 runs the same program"))
}

/// What every rank says, in the order of ranks.
pub fn gather<T: Serialize + DeserializeOwned>(world: &dyn Communicator, own: T) -> Vec<T> {
    if world.size() == 1 {
        return vec![own];
    }
    let bytes = serde_json::to_vec(&own).expect("values of ours become JSON");
    let all = world.all_gather(&bytes);
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes);
    let all: Result<Vec<T>, _> = all.iter().map(read).collect();
    all.expect("every rank runs the same program")
}

/// Whether it holds on some rank.
pub fn any(world: &dyn Communicator, own: bool) -> bool {
    match world.size() {
        1 => own,
        _ => world.all_gather(&[own.into()]).contains(&vec![1]),
    }
}

/// Numbers of all ranks, in the order of ranks; exact, also where they are not finite.
pub fn gather_f64(world: &dyn Communicator, own: &[f64]) -> Vec<Vec<f64>> {
    if world.size() == 1 {
        return vec![own.to_vec()];
    }
    let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
    let read = |bytes: Vec<u8>| -> Vec<f64> {
        let words = bytes.chunks_exact(8);
        words
            .map(|word| f64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect()
    };
    world.all_gather(&bytes).into_iter().map(read).collect()
}

/// Sends tensors between the devices of the ranks without a way through the host. Collective; what
/// is called first is done first.
pub trait DeviceTransport<B: Backend>: Send + Sync {
    /// `flat` is `[ranks · n]`; starts to give the n elements that are this rank's, summed over the
    /// ranks.
    fn reduce_scatter(&self, flat: Tensor<B, 1>) -> Arriving<B>;

    /// `own` is `[n]`, on every rank; starts to give `[ranks · n]`, in the order of ranks.
    fn all_gather(&self, own: Tensor<B, 1>) -> Arriving<B>;
}

/// A tensor on its way between devices; the call waits for it, or makes the device wait.
pub type Arriving<B> = Box<dyn FnOnce() -> Tensor<B, 1>>;

static TRANSPORT: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();

/// Lets tensors of backend `B` travel from device to device from now on.
pub fn use_transport<B: Backend>(transport: Arc<dyn DeviceTransport<B>>) {
    // A process has one device.
    let _ = TRANSPORT.set(Box::new(transport));
}

/// How tensors of `B` travel between devices; through the host where there is none.
pub fn transport<B: Backend>() -> Option<Arc<dyn DeviceTransport<B>>> {
    let any = TRANSPORT.get()?;
    any.downcast_ref::<Arc<dyn DeviceTransport<B>>>().cloned()
}
