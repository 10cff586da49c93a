//! `sppo score` kept every row's text beside its ids: its memory grew by several KiB a pair.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::Stdio;

use serde_json::json;

use crate::cli::Place;

/// Peak memory of scoring `pairs` tiny pairs, read while the command runs, in KiB.
fn peak(pairs: usize) -> u64 {
    let place = Place::with_model();
    let rows: Vec<_> = (0..pairs)
        .map(|i| json!({"prompt": format!("{i}"), "chosen": "a", "rejected": "b"}))
        .collect();
    place.write_rows("pairs.jsonl", &rows);
    let mut command =
        place.command("score --model llama --data pairs.jsonl --out s.jsonl --batch 32");
    // What each thread keeps for itself is the machine's, not the rows'.
    command.envs([("RAYON_NUM_THREADS", "1"), ("MALLOC_ARENA_MAX", "1")]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let found = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok());
        most = found.map_or(most, |found: u64| most.max(found));
        // All is read and encoded once the first row is written; the rest is the model's work.
        let begun = fs::metadata(place.path("s.jsonl")).is_ok_and(|file| file.len() > 0);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        if begun {
            child.kill().unwrap();
            child.wait().unwrap();
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    most
}

#[test]
fn it_grows_by_the_ids_alone() {
    let (few, many) = (peak(1_000), peak(20_000));
    let grown = 1024 * many.saturating_sub(few) / 19_000;
    // Measured: 400 bytes; 810 with the rows kept.
    assert!(
        few > 1000 && grown < 640,
        "{few} KiB, {many} KiB: {grown} bytes a pair"
    );
}
