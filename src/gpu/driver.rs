//! The CUDA driver, as far as ordering a stream of a library's (NCCL, cuBLASLt) needs it.

use std::ffi::{OsStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use crate::shared_library::{open, table, text};

type Status = c_int;

/// `CUstream`, which is `cudaStream_t` too.
pub type Stream = *mut c_void;

/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: Status = 600;

/// `CU_STREAM_NON_BLOCKING`, `CU_EVENT_DISABLE_TIMING`.
const NON_BLOCKING: c_uint = 1;
const DISABLE_TIMING: c_uint = 2;

table! {
    /// Functions of the driver; the optional ones are there from 12.5 on.
    Functions {
        cuInit(c_uint) -> Status;
        cuDeviceGet(*mut c_int, c_int) -> Status;
        cuDevicePrimaryCtxRetain(*mut *mut c_void, c_int) -> Status;
        cuCtxSetCurrent(*mut c_void) -> Status;
        cuStreamCreate(*mut Stream, c_uint) -> Status;
        cuStreamWaitEvent(Stream, *mut c_void, c_uint) -> Status;
        cuEventCreate(*mut *mut c_void, c_uint) -> Status;
        cuEventRecord(*mut c_void, Stream) -> Status;
        cuEventQuery(*mut c_void) -> Status;
        cuEventDestroy_v2(*mut c_void) -> Status;
        cuGetErrorName(Status, *mut *const c_char) -> Status;
    }
    optional {
        cuCtxRecordEvent(*mut c_void, *mut c_void) -> Status;
        cuCtxWaitEvent(*mut c_void, *mut c_void) -> Status;
    }
}

/// The device's context, which is CubeCL's too, and a stream of a library's own in it: CubeCL's are
/// private.
pub struct Driver {
    functions: Functions,
    context: *mut c_void,
    pub stream: Stream,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Driver {}
// SAFETY: likewise.
unsafe impl Sync for Driver {}

impl Driver {
    pub fn new(device: usize) -> Result<Self, String> {
        let library =
            open(OsStr::new("libcuda.so.1")).or_else(|_| open(OsStr::new("libcuda.so")))?;
        // SAFETY: the types of the driver's header.
        let functions = unsafe { Functions::of(library) };
        let functions = functions.map_err(|name| format!("the CUDA driver has no {name}"))?;
        let mut driver = Self {
            functions,
            context: std::ptr::null_mut(),
            stream: std::ptr::null_mut(),
        };
        let number = c_int::try_from(device).map_err(|e| e.to_string())?;
        let (mut device, mut context, mut stream) = (0, driver.context, driver.stream);
        // SAFETY: places for results are ours. The primary context stays: it is never released.
        unsafe {
            driver.check((functions.cuInit)(0))?;
            driver.check((functions.cuDeviceGet)(&mut device, number))?;
            driver.check((functions.cuDevicePrimaryCtxRetain)(&mut context, device))?;
            driver.context = context;
            driver.enter()?;
            driver.check((functions.cuStreamCreate)(&mut stream, NON_BLOCKING))?;
        }
        driver.stream = stream;
        Ok(driver)
    }

    /// Whether the device itself can wait; otherwise the host has to.
    pub fn orders_on_device(&self) -> bool {
        self.functions.cuCtxRecordEvent.is_some() && self.functions.cuCtxWaitEvent.is_some()
    }

    /// Makes the context this thread's.
    pub fn enter(&self) -> Result<(), String> {
        // SAFETY: the context is retained.
        self.check(unsafe { (self.functions.cuCtxSetCurrent)(self.context) })
    }

    /// Lets the stream wait for all that was launched in the context.
    pub fn stream_waits_for_context(self: &Arc<Self>) -> Result<(), String> {
        let event = self.event()?;
        if let Some(record) = self.functions.cuCtxRecordEvent {
            // SAFETY: context, event and stream are there.
            unsafe {
                self.check(record(self.context, event.event))?;
                self.check((self.functions.cuStreamWaitEvent)(
                    self.stream,
                    event.event,
                    0,
                ))?;
            }
        }
        Ok(())
    }

    /// Marks what the stream has been given so far.
    pub fn mark(self: &Arc<Self>) -> Result<Event, String> {
        let event = self.event()?;
        // SAFETY: event and stream are there.
        self.check(unsafe { (self.functions.cuEventRecord)(event.event, self.stream) })?;
        Ok(event)
    }

    /// Lets all that is launched in the context from now on wait for the stream at a mark.
    pub fn context_waits_for(&self, event: &Event) -> Result<(), String> {
        match self.functions.cuCtxWaitEvent {
            // SAFETY: context and event are there.
            Some(wait) => self.check(unsafe { wait(self.context, event.event) }),
            None => Ok(()),
        }
    }

    fn event(self: &Arc<Self>) -> Result<Event, String> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the place is ours.
        self.check(unsafe { (self.functions.cuEventCreate)(&mut event, DISABLE_TIMING) })?;
        Ok(Event {
            event,
            driver: self.clone(),
        })
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: the place is ours; the name is a constant of the driver's.
        let name = unsafe {
            match (self.functions.cuGetErrorName)(status, &mut name) == 0 && !name.is_null() {
                true => text(name),
                false => "an error without a name".into(),
            }
        };
        Err(format!("{name} ({status})"))
    }
}

/// A mark in the stream.
pub struct Event {
    event: *mut c_void,
    driver: Arc<Driver>,
}

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: likewise.
unsafe impl Sync for Event {}

impl Event {
    /// Whether the stream is past it.
    pub fn is_past(&self) -> Result<bool, String> {
        // SAFETY: the event is there.
        match unsafe { (self.driver.functions.cuEventQuery)(self.event) } {
            NOT_READY => Ok(false),
            status => self.driver.check(status).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; the driver keeps it as long as its streams need it.
        unsafe {
            (self.driver.functions.cuEventDestroy_v2)(self.event);
        }
    }
}
