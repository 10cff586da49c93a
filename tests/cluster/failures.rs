//! Ranks that die or stand still. Rank 0 reads the pairs from a pipe that nobody writes, and the
//! others wait for it.

use std::process::Command;
use std::time::{Duration, Instant};

use super::run::{are_left, mpirun_is_there, signal, start};
use crate::cli::train::{TRAIN, place};
use crate::cli::{Place, Ran, golden_pairs};

fn held() -> Option<(Place, String)> {
    if !mpirun_is_there() {
        return None;
    }
    let place = place();
    std::fs::remove_file(place.path("pairs.jsonl")).unwrap();
    let made = Command::new("mkfifo")
        .arg(place.path("pairs.jsonl"))
        .status();
    assert!(made.unwrap().success());
    Some((place, format!("{TRAIN} --set cluster.stall_seconds=5")))
}

/// Lets rank 0 read the pairs.
fn let_go(place: &Place) {
    let rows: String = golden_pairs()
        .iter()
        .map(|row| format!("{row}\n"))
        .collect();
    place.write("pairs.jsonl", rows);
}

/// What happens to a job of `ranks` whose processes are given to `disturb`; it ends within half
/// a minute from then on, and no process is left.
#[track_caller]
fn disturbed(
    place: &Place,
    ranks: usize,
    each: &str,
    args: &str,
    disturb: impl FnOnce(&[u32], u32),
) -> Ran {
    let mut job = start(place, ranks, each, args);
    let pids = job.watched(ranks);
    disturb(&pids, job.mpirun.id());
    let begun = Instant::now();
    let ran = job.ended();
    assert!(begun.elapsed() < Duration::from_secs(30), "{}", ran.stderr);
    assert!(!are_left(&pids), "{}", ran.stderr);
    ran
}

#[test]
fn a_rank_whose_work_stands_still_is_named() {
    let Some((place, args)) = held() else { return };
    let mut rank_0 = 0;
    let ran = disturbed(&place, 3, "", &args, |pids, _| rank_0 = pids[0]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let parts = [
        "error: rank 0 (".to_string(),
        format!(
            ", pid {rank_0}) stands still since 5 s in \"hashing pairs.jsonl\"; the job ends; run it again to go on"
        ),
    ];
    for part in parts {
        assert!(
            ran.stderr.contains(&part),
            "{part:?} is not in: {}",
            ran.stderr
        );
    }
}

#[test]
fn a_rank_that_is_stopped_is_named() {
    let Some((place, args)) = held() else { return };
    let ran = disturbed(&place, 2, "", &args, |pids, _| {
        signal("STOP", pids[1]);
        let_go(&place);
    });
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("error: rank 1 ("), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("stands still since 5 s"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_rank_that_is_killed_ends_the_job() {
    let Some((place, args)) = held() else { return };
    let ran = disturbed(&place, 2, "", &args, |pids, _| signal("KILL", pids[1]));
    assert_eq!(ran.code, Some(137), "{}", ran.stderr);
}

#[test]
fn a_panic_on_any_thread_ends_the_job() {
    let Some((place, args)) = held() else { return };
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/cluster/clock_fails.c"
    );
    let library = place.path("clock_fails.so");
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"]);
    assert!(compiler.status().unwrap().success());
    let each = format!(
        "[ $RANK = 0 ] || export LD_PRELOAD={}${{LD_PRELOAD:+:$LD_PRELOAD}} CLOCK_FAILS=panic",
        library.display()
    );
    let ran = disturbed(&place, 2, &each, &args, |_, _| place.write("panic", ""));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    for part in ["rank 1 (", "error: this is a fault of sppo"] {
        assert!(
            ran.stderr.contains(part),
            "{part:?} is not in: {}",
            ran.stderr
        );
    }
}

#[test]
fn signals_through_mpirun_end_at_once_and_say_how_to_save() {
    for name in ["INT", "TERM"] {
        let Some((place, args)) = held() else { return };
        let ran = disturbed(&place, 2, "", &args, |_, mpirun| signal(name, mpirun));
        // mpirun's own code; the ranks' is 130.
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        let said =
            "leaves no time to save; run it again to go on from the newest checkpoint (SIGUSR1";
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
        assert!(!place.path("out/.ranks").exists());
    }
}

/// SIGUSR1 saves and stops, also one process.
#[test]
fn the_user_signal_saves_and_stops() {
    let place = place();
    let mut child = place.start(&format!("{TRAIN} --set train.epochs=400"));
    let begun = || std::fs::metadata(place.path("out/metrics.jsonl")).is_ok_and(|f| f.len() > 0);
    assert!(crate::cli::signals::wait_until(&mut child, begun));
    signal("USR1", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = std::fs::read_dir(place.path("out/checkpoints")).unwrap();
    assert_eq!(saved.count(), 1);
}
