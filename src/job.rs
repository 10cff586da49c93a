//! This process among those of a job: how it joins the others, and how it ends.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use sppo_training::cluster::launch::{self, Launcher, launcher};
use sppo_training::cluster::watchdog::Watchdog;
use sppo_training::cluster::world;
use sppo_training::files::host;

use crate::errors::user;

/// How long the others let rank 0 speak first: its end ends them, mpirun's a second later, and what
/// is wrong on all ranks is said once.
const LEAD: Duration = Duration::from_millis(1500);

/// The watch over the other ranks, and the folder of its files.
static WATCH: Mutex<Option<(Watchdog, PathBuf)>> = Mutex::new(None);

/// Joins the processes that a launcher started together with this one; does nothing where it is
/// alone.
pub fn join() -> anyhow::Result<()> {
    match launcher() {
        Some(launcher) => join_through(launcher),
        None => Ok(()),
    }
}

#[cfg(feature = "mpi")]
fn join_through(launcher: Launcher) -> anyhow::Result<()> {
    use anyhow::Context;
    use sppo_training::cluster::{self, Mpi};

    let mpi = Mpi::init().context("MPI cannot be initialised")?;
    cluster::join(Box::new(mpi));
    let Launcher {
        name,
        variable,
        size,
    } = launcher;
    match world().size() == size {
        true => Ok(()),
        false => Err(user(format!(
            "{name} started {size} processes ({variable}={size}), but MPI knows {} of them: this \
             sppo was built for another MPI; build it where that launcher's MPI is installed, or \
             start it with that of its own (with srun: --mpi=pmix)",
            world().size()
        ))),
    }
}

#[cfg(not(feature = "mpi"))]
fn join_through(launcher: Launcher) -> anyhow::Result<()> {
    let Launcher {
        name,
        variable,
        size,
    } = launcher;
    Err(user(format!(
        "{name} started {size} processes ({variable}={size}), and this build cannot be one of many: \
         apt-get install libopenmpi-dev openmpi-bin libclang-dev, then \
         cargo build --release --features mpi"
    )))
}

/// Whether this is one of many processes and not the first.
pub fn follows() -> bool {
    launcher().is_some() && launch::rank() > 0
}

/// Lets rank 0 say first what is likely to be the same on all ranks.
pub fn let_lead_speak() {
    if follows() {
        std::thread::sleep(LEAD);
    }
}

/// Writes to stderr why this process ends, and which one of a job it is.
pub fn say(text: &str) {
    let_lead_speak();
    let text = match launcher() {
        Some(_) => format!("rank {} ({}): {text}", launch::rank(), host()),
        None => text.into(),
    };
    // A stderr that is closed leaves nobody to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Ends this process, and with it the job, where it is one of many. Nothing may unwind from here:
/// MPI would wait for the others.
pub fn fail(code: u8) {
    if launcher().is_some() {
        if let Ok(watch) = WATCH.try_lock()
            && let Some((_, folder)) = watch.as_ref()
        {
            // The last one leaves an empty folder.
            let _ = fs::remove_file(folder.join(world().rank().to_string()));
            let _ = fs::remove_dir(folder);
        }
        world().fail(code);
    }
}

/// Keeps the watch over the other ranks until this one ends.
pub fn keep(watchdog: Watchdog, folder: PathBuf) {
    if let Ok(mut watch) = WATCH.lock() {
        *watch = Some((watchdog, folder));
    }
}

/// Leaves a job that went well, together with all others.
pub fn leave() {
    #[cfg(feature = "mpi")]
    if world().size() > 1 {
        world().barrier();
        let watch = WATCH.lock().ok().and_then(|mut watch| watch.take());
        if let Some((watchdog, folder)) = watch {
            drop(watchdog);
            world().barrier();
            if world().leads() {
                let _ = fs::remove_dir_all(folder);
            }
        }
        sppo_training::cluster::Mpi::finalize();
    }
}
