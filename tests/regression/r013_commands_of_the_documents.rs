//! Commands in README.md and docs/guide.md that did not run as they were written.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cli::Place;

/// Beginnings of those that need a download, a server, a GPU, minutes, a finished run or another's
/// files.
const NEED_MORE: [&str; 20] = [
    "sppo run",
    "sppo warm-up ",
    "sppo watch ",
    "sppo serve ",
    "sppo eval leaderboard ",
    "sppo eval winrate ",
    "sppo card --model runs/llama3-8b-8gpu",
    "mpirun ",
    "CUDARC_CUDA_VERSION=13000 cargo ",
    "hf upload ",
    "sppo download ",
    "sppo chat ",
    "sppo report ",
    "cargo ",
    "sppo generate --model M ",
    "sppo join --prompts prompts.jsonl --out responses.jsonl r*.jsonl",
    "sppo merge --model models/my-llama --adapter runs/iteration-1/model",
    "sppo judge --responses responses.jsonl --judge pairrm",
    "sppo judge --responses responses.jsonl --judge reward",
    "sppo judge --responses responses.jsonl --judge http",
];
/// Needs scores that were made elsewhere.
const SCORES: &str = "sppo judge --responses responses.jsonl --judge scores";

/// Lines of the shell and configurations, in their order.
fn blocks(name: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(path).unwrap();
    let mut found = Vec::new();
    for part in text.split("\n```").skip(1).step_by(2) {
        let (kind, body) = part.split_once('\n').unwrap();
        found.push((kind.to_string(), body.replace("\\\n", " ")));
    }
    found
}

#[test]
fn they_run_as_written() {
    let place = Place::new();
    fs::create_dir(place.path("models")).unwrap();
    place.copy_model("models/my-llama");
    let data = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["prompts", "heldout"] {
        let text = fs::read_to_string(data.join(format!("data/{name}.jsonl"))).unwrap();
        let few: String = text.split_inclusive('\n').take(6).collect();
        place.write(&format!("{name}.jsonl"), few);
    }
    fs::copy(data.join("config.toml"), place.path("config.toml")).unwrap();
    std::os::unix::fs::symlink(data.join("data"), place.path("data")).unwrap();
    fs::create_dir(place.path("configs")).unwrap();
    for entry in fs::read_dir(data.join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, place.path("configs").join(path.file_name().unwrap())).unwrap();
        }
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_sppo")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let (mut ran, mut left) = (0, 0);
    for (kind, body) in [blocks("README.md"), blocks("docs/guide.md")].concat() {
        // The one configuration that the stages by hand are given.
        if kind == "toml" && body.contains("models/my-llama") {
            place.write("my.toml", &body);
        }
        if kind != "sh" {
            continue;
        }
        for line in body.lines().filter(|line| !line.trim().is_empty()) {
            if NEED_MORE.iter().any(|begin| line.starts_with(begin)) || line.starts_with(SCORES) {
                left += 1;
                continue;
            }
            // Tokens cost minutes here; the command is the same.
            let short = line.replace("--max-new-tokens 256", "--max-new-tokens 8");
            let output = Command::new("bash")
                .args(["-ec", &short])
                .current_dir(place.path(""))
                .env("PATH", &path)
                .env("HOME", place.path(""))
                .env("HF_HUB_OFFLINE", "1")
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {stderr}");
            ran += 1;
        }
    }
    assert!(ran >= 9 && left >= 9, "{ran} ran, {left} need more");
}
