//! Tensors of Burn's CUDA backend from GPU to GPU.
//!
//! NCCL has a stream of its own. Before an operation it waits for CubeCL's, and what is computed
//! behind the operation waits for it: on the device where the driver can order a whole context
//! (12.5), on the host otherwise. Buffers are kept until then.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use burn::tensor::{DType, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cuda::{Cuda, CudaDevice};
use cubecl::future::block_on;
use sppo_training::cluster::{Arriving, Communicator, DeviceTransport, waiting, world};

use super::library::{
    BFLOAT16, Comm, CommConfig, FLOAT32, IN_PROGRESS, Library, SUCCESS, SUM, Status, UniqueId,
};
use crate::gpu::buffer::Buffer;
use crate::gpu::driver::{Driver, Event};
use crate::{errors, job};

/// The backend whose tensors travel.
pub type Backend = Cuda<f32, i32>;

/// How long NCCL may take to let go of its peers before the process ends all the same.
const ABORT: Duration = Duration::from_secs(2);

/// NCCL between all ranks, each of which has a card of its own.
pub struct Transport {
    link: Arc<Link>,
    ranks: usize,
    device: CudaDevice,
    /// To the thread that waits for what no host thread waits for otherwise.
    watch: Option<Sender<Arc<Event>>>,
}

impl Transport {
    /// Connects all ranks. Collective.
    pub fn new(
        library: Library,
        world: &dyn Communicator,
        device: &CudaDevice,
    ) -> Result<Self, String> {
        let driver = Driver::new(device.index).map_err(|e| format!("the CUDA driver: {e}"))?;
        let mut link = Link {
            library,
            comm: std::ptr::null_mut(),
            driver: Arc::new(driver),
        };
        let mut id = UniqueId([0; 128]);
        if world.leads() {
            // SAFETY: the place is ours.
            let status = unsafe { (link.library.functions.ncclGetUniqueId)(&mut id) };
            link.started(status)?;
        }
        let told = world.broadcast(id.0.to_vec());
        id.0.copy_from_slice(&told);
        let mut config = CommConfig::NON_BLOCKING;
        let number = |n: usize| i32::try_from(n).map_err(|e| e.to_string());
        let (size, rank) = (number(world.size())?, number(world.rank())?);
        // SAFETY: all ranks call it with the same id, a rank and a card of their own, in its context.
        let status = unsafe {
            (link.library.functions.ncclCommInitRankConfig)(
                &mut link.comm,
                size,
                id,
                rank,
                &mut config,
            )
        };
        link.started(status)?;
        let link = Arc::new(link);
        let watch = link.driver.orders_on_device().then(|| watch(&link));
        Ok(Self {
            link,
            ranks: world.size(),
            device: device.clone(),
            watch: watch.transpose()?,
        })
    }

    /// Starts an operation that reads `from` and writes `count` elements.
    fn start(
        &self,
        from: Tensor<Backend, 1>,
        count: usize,
        launch: impl Fn(&Link, *const c_void, *mut c_void) -> Status,
    ) -> Arriving<Backend> {
        let to = Tensor::empty([count], (&self.device, from.dtype()));
        if count == 0 {
            return Box::new(|| to);
        }
        let under_way = self.try_start(from, to.clone(), launch);
        let under_way = self.link.or_end(under_way);
        Box::new(move || {
            // Its drop orders what is computed from here on.
            drop(under_way);
            to
        })
    }

    fn try_start(
        &self,
        from: Tensor<Backend, 1>,
        to: Tensor<Backend, 1>,
        launch: impl Fn(&Link, *const c_void, *mut c_void) -> Status,
    ) -> Result<UnderWay, String> {
        let link = &self.link;
        let flat = |tensor: Tensor<Backend, 1>| {
            Buffer::of(into_contiguous(tensor.into_primitive().tensor()))
        };
        let (from, to) = (flat(from)?, flat(to)?);
        link.driver.enter()?;
        match self.watch {
            Some(_) => link.driver.stream_waits_for_context()?,
            None => block_on(from.tensor.client.sync()).map_err(|e| format!("{e:?}"))?,
        }
        let status = launch(link, from.at as *const c_void, to.at as *mut c_void);
        link.started(status)?;
        let past = Arc::new(link.driver.mark()?);
        if let Some(watch) = &self.watch {
            let _ = watch.send(past.clone());
        }
        Ok(UnderWay {
            link: link.clone(),
            on_device: self.watch.is_some(),
            past,
            _buffers: [from, to],
        })
    }
}

impl DeviceTransport<Backend> for Transport {
    fn reduce_scatter(&self, flat: Tensor<Backend, 1>) -> Arriving<Backend> {
        let dtype = dtype(&flat);
        let count = flat.dims()[0] / self.ranks;
        self.start(flat, count, move |link, from, to| {
            // SAFETY: `from` has `ranks · count` elements and `to` has `count`.
            unsafe {
                (link.library.functions.ncclReduceScatter)(
                    from,
                    to,
                    count,
                    dtype,
                    SUM,
                    link.comm,
                    link.driver.stream,
                )
            }
        })
    }

    fn all_gather(&self, own: Tensor<Backend, 1>) -> Arriving<Backend> {
        let dtype = dtype(&own);
        let count = own.dims()[0];
        self.start(own, count * self.ranks, move |link, from, to| {
            // SAFETY: `from` has `count` elements and `to` has `ranks · count`.
            unsafe {
                (link.library.functions.ncclAllGather)(
                    from,
                    to,
                    count,
                    dtype,
                    link.comm,
                    link.driver.stream,
                )
            }
        })
    }
}

/// NCCL's name of a tensor's dtype.
fn dtype(tensor: &Tensor<Backend, 1>) -> i32 {
    match tensor.dtype() {
        DType::BF16 => BFLOAT16,
        _ => FLOAT32,
    }
}

/// A communicator and its stream.
struct Link {
    library: Library,
    comm: Comm,
    driver: Arc<Driver>,
}

// SAFETY: operations are started by one thread at a time, that of the learner; another one only asks
// for errors, which NCCL allows.
unsafe impl Send for Link {}
// SAFETY: likewise.
unsafe impl Sync for Link {}

impl Link {
    /// Waits until a call that did not block has been carried out. It is not in the stream before.
    fn started(&self, status: Status) -> Result<(), String> {
        let mut now = status;
        if now == IN_PROGRESS {
            poll(|| {
                now = self.status();
                now != IN_PROGRESS
            });
        }
        match now {
            SUCCESS => Ok(()),
            failed => Err(self.library.functions.explain(failed, self.comm)),
        }
    }

    /// How the communicator is.
    fn status(&self) -> Status {
        let mut now = SUCCESS;
        // SAFETY: the communicator was made, if only in part, and the place is ours.
        let asked = unsafe { (self.library.functions.ncclCommGetAsyncError)(self.comm, &mut now) };
        if asked == SUCCESS { now } else { asked }
    }

    /// Waits until NCCL's stream is past a mark. Ends the job where the communicator fails.
    fn wait_for(&self, mark: &Event) {
        poll(|| {
            if self.or_end(mark.is_past()) {
                return true;
            }
            match self.status() {
                SUCCESS | IN_PROGRESS => false,
                failed => self.end(&self.library.functions.explain(failed, self.comm)),
            }
        });
    }

    fn or_end<T>(&self, result: Result<T, String>) -> T {
        result.unwrap_or_else(|error| self.end(&error))
    }

    /// Ends the job: after an error of NCCL no rank can go on.
    fn end(&self, error: &str) -> ! {
        let error = anyhow::anyhow!("NCCL failed: {error}; run the command again to go on");
        job::say(&errors::text(&error));
        let abort = self.library.functions.ncclCommAbort;
        let comm = self.comm as usize;
        let (done, aborted) = channel();
        let thread = Builder::new().spawn(move || {
            // SAFETY: the communicator is there, and nobody uses it any more: the process ends.
            unsafe { abort(comm as Comm) };
            let _ = done.send(());
        });
        if thread.is_ok() {
            let _ = aborted.recv_timeout(ABORT);
        }
        world().fail(1)
    }
}

/// Waits for each operation in turn in a thread of its own, so that it is seen that this rank waits,
/// and errors are, while the learner's thread waits for the device.
fn watch(link: &Arc<Link>) -> Result<Sender<Arc<Event>>, String> {
    let (sender, marks) = channel::<Arc<Event>>();
    let link = link.clone();
    let watch = Builder::new().name("nccl".into()).spawn(move || {
        link.or_end(link.driver.enter());
        for mark in marks {
            link.wait_for(&mark);
        }
    });
    watch.map(|_| sender).map_err(|e| e.to_string())
}

/// An operation, and what it reads and writes.
struct UnderWay {
    link: Arc<Link>,
    on_device: bool,
    past: Arc<Event>,
    _buffers: [Buffer; 2],
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // The buffers are used anew from here on, in CubeCL's order.
        match self.on_device {
            true => {
                let link = &self.link;
                let ordered = link.driver.enter();
                let ordered = ordered.and_then(|()| link.driver.context_waits_for(&self.past));
                link.or_end(ordered);
            }
            false => self.link.wait_for(&self.past),
        }
    }
}

/// Asks until it is done.
fn poll(mut done: impl FnMut() -> bool) {
    if done() {
        return;
    }
    waiting(|| {
        let mut pause = Duration::from_micros(5);
        while !done() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    });
}
