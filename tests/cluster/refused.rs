//! What many processes cannot do, and what they must have in common.

use std::process::Command;

use super::run::{job, mpirun_is_there};
use crate::cli::Place;
use crate::cli::train::{TRAIN, place};

/// Refused with exit code 2, and said once: by rank 0.
#[track_caller]
fn refused(place: &Place, each: &str, args: &str, parts: &[&str]) {
    let ran = job(place, 2, each, args);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    for part in parts {
        assert!(
            ran.stderr.contains(part),
            "{part:?} is not in: {}",
            ran.stderr
        );
    }
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
}

#[test]
fn commands_and_settings() {
    if !mpirun_is_there() {
        return;
    }
    let place = Place::new();
    let mpirun = "Open MPI's mpirun started 2 (OMPI_COMM_WORLD_SIZE=2)";
    refused(
        &place,
        "",
        "plan",
        &["rank 0 (", "sppo plan is for one process", mpirun],
    );
    let shard = "generate --model m --prompts p.jsonl --out r.jsonl --shard 0/2";
    refused(&place, "", shard, &["--shard is for one process", mpirun]);
    refused(
        &place,
        "",
        "run --config none.toml",
        &["rank 0 (", "none.toml"],
    );
    refused(
        &place,
        "",
        "run --nonsense",
        &["unexpected argument '--nonsense'"],
    );
    let help = job(&place, 2, "", "--help");
    assert_eq!(help.code, Some(0), "{}", help.stderr);
    assert_eq!(help.stdout.matches("Usage:").count(), 1);
}

#[test]
fn a_launcher_of_another_mpi() {
    let place = Place::new();
    let command = &mut place.command("run --config none.toml");
    let output = command.env("OMPI_COMM_WORLD_SIZE", "2").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("OMPI_COMM_WORLD_SIZE=2"), "{stderr}");
    assert!(
        stderr.contains("MPI knows 1 of them: this sppo was built for another MPI"),
        "{stderr}"
    );
}

/// Each rank works in a copy of the folder.
const OWN_FOLDER: &str = "mkdir $RANK; cp -r llama train.toml pairs.jsonl $RANK; cd $RANK";

fn in_one_output(place: &Place) -> String {
    format!("{TRAIN} --set output_dir={}", place.path("out").display())
}

#[test]
fn a_folder_that_not_all_see() {
    if !mpirun_is_there() {
        return;
    }
    let parts = ["output_dir out is not seen by rank 1 ("];
    refused(&place(), OWN_FOLDER, TRAIN, &parts);
}

#[test]
fn what_differs_between_the_ranks() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let args = format!("{TRAIN} --set train.epochs=$((RANK + 1))");
    let parts = [
        "rank 1 (",
        "the command line differs from rank 0's: train --config train.toml --set train.epochs=2 / train",
    ];
    refused(&place, "", &args, &parts);
    let each = format!("{OWN_FOLDER}; [ $RANK = 0 ] || echo max_length = 777 >> train.toml");
    let parts = [
        "rank 1 (",
        "the configuration differs from rank 0's: max_length = 777 / ",
    ];
    refused(&place, &each, &in_one_output(&place), &parts);
}

/// Each rank is on a host of its own, as far as it can see.
#[test]
fn files_that_differ_between_hosts() {
    let mut unshare = Command::new("unshare");
    unshare.args(["--uts", "hostname", "here"]);
    let unshared = unshare.output().is_ok_and(|output| output.status.success());
    if !mpirun_is_there() || !unshared {
        eprintln!("SKIPPED: a host's name of one's own needs unshare --uts");
        return;
    }
    let place = place();
    let args = in_one_output(&place);
    let each = format!(
        "{OWN_FOLDER}; [ $RANK = 0 ] || echo '{{}}' >> pairs.jsonl\n\
         exec unshare --uts sh -c \"hostname node$RANK; exec {} {args}\"",
        env!("CARGO_BIN_EXE_sppo")
    );
    let parts = ["rank 1 (node1): train.data pairs.jsonl differs from rank 0's: "];
    refused(&place, &each, &args, &parts);
}
