//! Two processes on one output doubled its rows, mixed their metrics and killed each other's
//! checkpoints.
#![cfg(unix)]

use std::fs;

use serde_json::json;
use sppo_training::files::Lock;

use crate::cli::{Place, golden_pairs};

/// While this process holds the lock the command is refused by our number; then it works, and
/// leaves no lock.
fn one_at_a_time(place: &Place, args: &str, lock: impl FnOnce() -> Lock) {
    let held = lock();
    let ours = format!("process {} on ", std::process::id());
    place.refused(args, &["is being written by", &ours, "which began at"]);
    drop(held);
    place.ok(args);
    let left = place.tree();
    let lock = left
        .iter()
        .find(|(path, _)| path.to_string_lossy().ends_with(".sppo.lock"));
    assert!(lock.is_none(), "{lock:?}");
}

#[test]
fn the_second_is_refused() {
    let place = Place::with_model();
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "a", "prompt": "hello"})],
    );
    place.write_rows("pairs.jsonl", &golden_pairs());
    let row = json!({"prompt_id": "a", "prompt": "hi", "responses": ["One.", "Two. Two."]});
    place.write_rows("responses.jsonl", &[row]);
    for (args, out) in [
        (
            "generate --model llama --prompts prompts.jsonl --max-new-tokens 2 --out r.jsonl",
            "r.jsonl",
        ),
        (
            "score --model llama --data pairs.jsonl --out s.parquet",
            "s.parquet",
        ),
        (
            "judge --responses responses.jsonl --judge rubric --out j.jsonl",
            "j.jsonl",
        ),
        ("pairs --judged j.jsonl --out p.jsonl", "p.jsonl"),
        (
            "join --prompts prompts.jsonl --out all.jsonl responses.jsonl",
            "all.jsonl",
        ),
    ] {
        one_at_a_time(&place, args, || Lock::beside(&place.path(out)).unwrap());
    }
    let place = crate::cli::train::place();
    let lock = || Lock::inside(&place.path("out")).unwrap();
    one_at_a_time(&place, crate::cli::train::TRAIN, lock);
    let place = crate::cli::run::place();
    let lock = || Lock::inside(&place.path("out")).unwrap();
    one_at_a_time(&place, "run --config run.toml --set output_dir=out", lock);
}

#[test]
fn a_dead_process_does_not_bind() {
    let place = crate::cli::train::place();
    fs::create_dir(place.path("out")).unwrap();
    place.write(
        "out/.sppo.lock",
        "{\"pid\":1,\"host\":\"gone\",\"since\":\"2026-01-01T00:00:00Z\"}",
    );
    place.ok(crate::cli::train::TRAIN);
    assert!(!place.path("out/.sppo.lock").exists());
}
