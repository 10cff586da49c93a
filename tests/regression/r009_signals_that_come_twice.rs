//! `timeout -s INT` sends its signal to the process and to its group: the second, a millisecond
//! later, ended a training before its state was saved.
#![cfg(unix)]

use std::process::Command;

use crate::cli::signals::wait_until;

#[test]
fn the_state_is_saved() {
    let place = crate::cli::train::place();
    let args = format!("{} --set train.epochs=400", crate::cli::train::TRAIN);
    let mut child = place.start(&args);
    let begun = || std::fs::metadata(place.path("out/metrics.jsonl")).is_ok_and(|f| f.len() > 0);
    assert!(wait_until(&mut child, begun));
    let kill = format!("kill -INT {0}; kill -INT {0}; kill -INT {0}", child.id());
    Command::new("sh").args(["-c", &kill]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = std::fs::read_dir(place.path("out/checkpoints"))
        .unwrap()
        .count();
    assert_eq!(saved, 1);
}
