//! What many processes cannot do, and what they must have in common.

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

#[test]
fn a_folder_that_not_all_see() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let each = "mkdir $RANK; cp -r llama train.toml pairs.jsonl $RANK; cd $RANK";
    refused(
        &place,
        each,
        TRAIN,
        &["output_dir out is not seen by rank 1 ("],
    );
}

#[test]
fn what_differs_between_the_ranks() {
    if !mpirun_is_there() {
        return;
    }
    let place = place();
    let (command, setting) = ("the command line differs from rank 0's: ", "train.epochs=1");
    let args = format!("{TRAIN} --set train.epochs=$RANK");
    let expected = format!("train --config train.toml --set {setting} / train --config");
    // Zero epochs would be refused by rank 0 alone.
    let each = "RANK=$((RANK + 1))";
    let expected = expected.replace(setting, "train.epochs=2");
    refused(&place, each, &args, &["rank 1 (", command, &expected]);
    let each = "cp train.toml $RANK.toml; [ $RANK = 0 ] || echo 'shuffle_seed = 7' >> $RANK.toml; \
                mkdir $RANK; mv $RANK.toml $RANK/train.toml; cp -r llama pairs.jsonl $RANK; cd $RANK";
    let args = format!("{TRAIN} --set output_dir={}", place.path("out").display());
    let each = each.replace("shuffle_seed = 7", "max_length = 77");
    let parts = [
        "rank 1 (",
        "the configuration differs from rank 0's: max_length = 77 / ",
    ];
    refused(&place, &each, &args, &parts);
}

/// Each rank on a host of its own, as far as it can see.
#[test]
fn files_that_differ_between_hosts() {
    let unshare = std::process::Command::new("unshare")
        .args(["--uts", "hostname", "here"])
        .output();
    if !mpirun_is_there() || !unshare.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: hosts need unshare --uts");
        return;
    }
    let place = place();
    let each = "mkdir $RANK; cp -r llama train.toml pairs.jsonl $RANK; cd $RANK\n\
                [ $RANK = 0 ] || echo '{}' >> pairs.jsonl\n\
                exec unshare --uts sh -c \"hostname node$RANK; exec $0 $*\" ||";
    let bin = env!("CARGO_BIN_EXE_sppo");
    let args = format!("{TRAIN} --set output_dir={}", place.path("out").display());
    let each = each
        .replace("$0 $*", &format!("{bin} {args}"))
        .replace("\" ||", "\"");
    let parts = ["rank 1 (node1): train.data pairs.jsonl differs from rank 0's: "];
    refused(&place, &each, &args, &parts);
}
