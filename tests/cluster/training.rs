//! Any number of ranks makes the bytes that one process makes, also where it was stopped, or ended
//! by a rank that failed, and goes on with another number.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;

use super::run::{Job, are_left, job, mpirun_is_there, signal, start};
use crate::cli::signals::Moments;
use crate::cli::train::{TRAIN, place};
use crate::cli::{Place, run};

/// Steps of three parts, of which the last has two.
const PARTS: &str = "--set train.batch_size=2 --set train.gradient_accumulation=3 \
                     --set train.checkpoint_every=1 --set train.keep_checkpoints=100";

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// All files below a folder but marks, which hold times, and what tells of time.
fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // What tells of time, or of the folder that a test is in.
            let told = [
                "sppo.json",
                "state.json",
                "metrics.jsonl",
                "adapter_config.json",
                "README.md",
                "progress.json",
                "report.html",
            ];
            if path.is_dir() && name != "ranks" && name != "trainer" {
                folders.push(path);
            } else if path.is_file() && !told.iter().any(|end| name.ends_with(end)) {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(folder).unwrap().into(), bytes);
            }
        }
    }
    found
}

/// The optimizer's tensors of a checkpoint, whole: the pieces of all ranks in their order.
fn optimizer(checkpoint: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut pieces = BTreeMap::new();
    for entry in std::fs::read_dir(checkpoint.join("trainer")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(path).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let (of, start) = name.rsplit_once('@').unwrap();
            let start: usize = start.parse().unwrap();
            pieces.insert((of.to_string(), start), tensor.data().to_vec());
        }
    }
    let mut whole: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for ((name, start), bytes) in pieces {
        let tensor = whole.entry(name).or_default();
        assert_eq!(tensor.len(), 4 * start, "pieces lie side by side");
        tensor.extend(bytes);
    }
    whole
}

/// What a training left: its model and the optimizer of its newest checkpoint.
type Trained = (Files, BTreeMap<String, Vec<u8>>);

fn trained(place: &Place) -> Trained {
    let mut checkpoints: Vec<PathBuf> = std::fs::read_dir(place.path("out/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    checkpoints.sort();
    let newest = checkpoints.last().unwrap();
    (files(&place.path("out/model")), optimizer(newest))
}

#[test]
fn trainings_have_the_bytes_of_one_process() {
    if !mpirun_is_there() {
        return;
    }
    for (settings, each) in [
        ("", ""),
        (
            "--set train.optimizer=adamw --set train.max_grad_norm=0.5",
            "export RAYON_NUM_THREADS=2",
        ),
        (
            "--set train.loss=kto_pair --set train.recompute=layer",
            "export RAYON_NUM_THREADS=1",
        ),
        ("--set train.precision=bf16 --set train.optimizer=adamw", ""),
        ("--set train.lora.rank=4 --set train.shuffle=true", ""),
    ] {
        let args = format!("{TRAIN} {PARTS} {settings}");
        let one = place();
        one.ok(&args);
        let expected = trained(&one);
        assert!(!expected.1.is_empty());
        for ranks in [2, 3] {
            let many = place();
            let ran = job(&many, ranks, each, &args);
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            assert!(trained(&many) == expected, "{ranks} ranks with {settings}");
            assert!(!many.path("out/.ranks").exists());
            let line = &many.rows("out/metrics.jsonl")[0];
            let bytes = line["communication_bytes"].as_u64().unwrap();
            assert!(bytes > 0 && line["slowest_rank_seconds"].as_f64().unwrap() > 0.0);
        }
    }
}

/// A step of more ranks than parts is refused; so is a run of them, before its first model is made.
#[test]
fn every_rank_has_a_part() {
    if !mpirun_is_there() {
        return;
    }
    let said = "train: a step has 1 part for 2 ranks; set train.batch_size to at most 2 and \
                gradient_accumulation to 2 or more";
    let one = place();
    let ran = job(&one, 2, "", TRAIN);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    assert!(!one.path("out/model").exists());
    let whole = run::place();
    let args = format!("{} --set train.gradient_accumulation=2", run::RUN);
    let ran = job(&whole, 2, "", &args);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("sft: a step has 1 part"),
        "{}",
        ran.stderr
    );
}

/// Supervised stage, self-play and report.
#[test]
fn a_run_has_the_bytes_of_one_process() {
    if !mpirun_is_there() {
        return;
    }
    let args = format!(
        "{} --set sft.gradient_accumulation=3 --set sft.batch_size=4 \
         --set train.gradient_accumulation=3",
        run::RUN
    );
    let one = run::place();
    let printed = one.ok(&args);
    let output = one.path("runs/default");
    let expected = files(&output);
    assert!(expected.contains_key(Path::new("report.md")));
    for ranks in [2, 3] {
        let many = run::place();
        let ran = job(&many, ranks, "", &args);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(ran.stdout, printed);
        let found = files(&many.path("runs/default"));
        for (name, bytes) in &expected {
            assert!(
                found.get(name) == Some(bytes),
                "{ranks} ranks: {}",
                name.display()
            );
        }
        assert_eq!(found.len(), expected.len());
    }
}

fn steps(place: &Place) -> usize {
    let text = std::fs::read_to_string(place.path("out/metrics.jsonl"));
    text.map_or(0, |text| text.lines().count())
}

/// Waits until so many steps are done; false where the job ended before.
fn reached(place: &Place, job: &mut Job<'_>, wanted: usize) -> bool {
    while steps(place) < wanted {
        if job.mpirun.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Ten moments each where `SPPO_FUZZ_ROUNDS` asks for more than the few of every day.
fn moments() -> usize {
    match std::env::var("SPPO_FUZZ_ROUNDS").is_ok() {
        true => 10,
        false => 2,
    }
}

const LONG: &str = "--set train.epochs=30 --set cluster.stall_seconds=5";

#[test]
fn ended_by_a_rank_it_goes_on_with_another_number() {
    if !mpirun_is_there() {
        return;
    }
    let args = format!("{TRAIN} {PARTS} {LONG}");
    let whole = place();
    whole.ok(&args);
    let expected = trained(&whole);
    let mut random = Moments(7);
    for (name, code) in [("KILL", 137), ("STOP", 1), ("USR1", 130)] {
        let place = place();
        let mut hits = 0;
        for round in 0..moments() {
            let ranks = 2 + round % 2;
            let mut job = start(&place, ranks, "", &args);
            let pids = job.watched(ranks);
            if !reached(&place, &mut job, steps(&place) + 3) {
                break;
            }
            std::thread::sleep(random.pause(Duration::from_millis(20)));
            let mpirun = job.mpirun.id();
            let victim = match name {
                "USR1" => mpirun,
                _ => pids[round % ranks],
            };
            signal(name, victim);
            let begun = Instant::now();
            let ran = job.ended();
            if ran.code == Some(0) {
                break;
            }
            hits += 1;
            assert_eq!(ran.code, Some(code), "{name}: {}", ran.stderr);
            // Five seconds of standing still, and what a loaded machine adds; else it would be for ever.
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", ran.stderr);
            assert!(!are_left(&pids), "{}", ran.stderr);
            if name == "STOP" {
                let rank = format!("error: rank {} (", round % ranks);
                assert!(ran.stderr.contains(&rank), "{}", ran.stderr);
                assert!(ran.stderr.contains("stands still"), "{}", ran.stderr);
            }
        }
        assert!(hits > 0, "no {name} hit");
        let ran = job(&place, 2, "", &args);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(trained(&place) == expected, "{name}");
    }
    // And one process goes on from two.
    let place = place();
    let mut job = start(&place, 2, "", &args);
    assert!(reached(&place, &mut job, 5));
    signal("KILL", job.mpirun.id());
    let _ = job.ended();
    std::thread::sleep(Duration::from_secs(1));
    place.ok(&args);
    assert!(trained(&place) == expected);
}

/// A library that makes the disk of rank 1 slow or full.
fn disk(place: &Place, of: &str, how: &str) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cluster/disk.c");
    let library = place.path("disk.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library);
    assert!(compiler.args([source, "-ldl"]).status().unwrap().success());
    format!(
        "[ $RANK = 0 ] || export LD_PRELOAD={}${{LD_PRELOAD:+:$LD_PRELOAD}} DISK_OF={of} DISK={how}",
        library.display()
    )
}

#[test]
fn a_slow_disk_is_progress_and_a_full_one_ends_the_job() {
    if !mpirun_is_there() {
        return;
    }
    let args = format!("{TRAIN} {PARTS} --set train.epochs=1 --set cluster.stall_seconds=3");
    let slow = place();
    let each = disk(&slow, "/trainer/", "9");
    let begun = Instant::now();
    let ran = job(&slow, 2, &each, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(begun.elapsed() > Duration::from_secs(9));

    let full = place();
    let each = disk(&full, "/trainer/", "full");
    let ran = job(&full, 2, &each, &args);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("rank 1 ("), "{}", ran.stderr);
    assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
    let ran = job(&full, 3, "", &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(files(&full.path("out/model")) == files(&slow.path("out/model")));
}
