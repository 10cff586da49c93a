//! An output folder that somebody removed from under a running command was called the user's input
//! (exit code 2).

use std::fs;
use std::io::{Error, ErrorKind};
use std::path::Path;

use sppo_training::data::DataError;
use sppo_training::files::{FileError, OutputError};
use sppo_training::stages::StageError;

use crate::cli::Place;

fn file(action: &'static str, kind: ErrorKind) -> FileError {
    FileError::new(action, Path::new("out/mark"))(Error::from(kind))
}

#[test]
fn are_no_mistake_of_the_command_line() {
    let missing = ErrorKind::NotFound;
    let output = |action| StageError::Output(OutputError::File(file(action, missing)));
    for action in ["write", "read", "rename", "flush"] {
        assert!(!output(action).is_input(), "{action}");
    }
    let data = |action, kind: ErrorKind| {
        StageError::Data(DataError::Io {
            path: "out/rows.jsonl".into(),
            action,
            source: kind.into(),
        })
    };
    assert!(!data("write it", missing).is_input());
    assert!(!StageError::File(file("write", missing)).is_input());
    // An input that is not there, and an output that may not be written, are.
    assert!(data("read it", missing).is_input());
    assert!(StageError::File(file("read", missing)).is_input());
    let denied = ErrorKind::PermissionDenied;
    assert!(data("write it", denied).is_input());
    assert!(StageError::Output(OutputError::File(file("write", denied))).is_input());
}

#[cfg(unix)]
#[test]
fn end_a_training_with_exit_code_1() {
    use crate::cli::signals::wait_until;
    let place: Place = crate::cli::train::place();
    let args = "train --config train.toml --set train.epochs=200 --set train.checkpoint_every=1";
    let mut child = place.start(args);
    let metrics = || fs::read_to_string(place.path("out/metrics.jsonl")).unwrap_or_default();
    wait_until(&mut child, || metrics().lines().count() > 2);
    fs::rename(place.path("out"), place.path("elsewhere")).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
