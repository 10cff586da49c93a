//! Starts `mpirun`, with a limit on its time.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli::{Place, Ran};

/// Longer than any job here takes on a busy machine.
const LONGEST: Duration = Duration::from_secs(90);

/// Whether `mpirun` is there; says so where it is not.
pub fn mpirun_is_there() -> bool {
    let found = Command::new("mpirun").arg("--version").output().is_ok();
    if !found {
        eprintln!("SKIPPED: mpirun is not installed (apt-get install openmpi-bin)");
    }
    found
}

/// A job under way.
pub struct Job<'p> {
    place: &'p Place,
    pub mpirun: Child,
    begun: Instant,
}

/// Starts `sppo args` on so many ranks. `each` is what a shell does on each before, by `$RANK`.
pub fn start<'p>(place: &'p Place, ranks: usize, each: &str, args: &str) -> Job<'p> {
    let mut mpirun = Command::new("mpirun");
    let ranks = ranks.to_string();
    mpirun.args([
        "--oversubscribe",
        "--allow-run-as-root",
        "--bind-to",
        "none",
    ]);
    let script = format!(
        "RANK=$OMPI_COMM_WORLD_RANK; {each}\nexec {} {args}",
        env!("CARGO_BIN_EXE_sppo")
    );
    mpirun.args(["-n", &ranks, "sh", "-c", &script]);
    mpirun
        .current_dir(place.path(""))
        .env("HOME", place.path(""));
    mpirun.env("HF_HUB_OFFLINE", "1");
    mpirun.env_remove("SPPO_LOG").stdin(Stdio::null());
    let file = |name| File::create(place.path(name)).unwrap();
    mpirun.stdout(file("stdout")).stderr(file("stderr"));
    Job {
        place,
        mpirun: mpirun.spawn().unwrap(),
        begun: Instant::now(),
    }
}

impl Job<'_> {
    /// Waits for its end.
    pub fn ended(mut self) -> Ran {
        let status = loop {
            match self.mpirun.try_wait().unwrap() {
                Some(status) => break status,
                None if self.begun.elapsed() < LONGEST => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                None => {
                    self.mpirun.kill().unwrap();
                    panic!("it does not end: {}", self.place.read("stderr"));
                }
            }
        };
        Ran {
            code: status.code(),
            stdout: self.place.read("stdout"),
            stderr: self.place.read("stderr"),
        }
    }

    /// Waits until all ranks are watched over; gives their processes.
    pub fn watched(&mut self, ranks: usize) -> Vec<u32> {
        let pid = |rank: usize| {
            let text = std::fs::read_to_string(self.place.path(&format!("out/.ranks/{rank}")));
            let record: serde_json::Value = serde_json::from_str(&text.ok()?).ok()?;
            record["pid"].as_u64().map(|pid| pid as u32)
        };
        while self.begun.elapsed() < LONGEST {
            let pids: Vec<u32> = (0..ranks).filter_map(pid).collect();
            if pids.len() == ranks {
                return pids;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the ranks never came so far: {}", self.place.read("stderr"));
    }
}

/// Runs to the end.
pub fn job(place: &Place, ranks: usize, each: &str, args: &str) -> Ran {
    start(place, ranks, each, args).ended()
}

/// Sends a signal.
pub fn signal(name: &str, pid: u32) {
    let kill = format!("kill -{name} {pid}");
    assert!(
        Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
}

/// Whether some of the processes are there ten seconds later, dead ones that nobody waited for aside.
pub fn are_left(pids: &[u32]) -> bool {
    let alive = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        status.is_ok_and(|text| !text.contains(") Z "))
    };
    let begun = Instant::now();
    while pids.iter().any(alive) {
        if begun.elapsed() > Duration::from_secs(10) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}
