//! Readers of hostile files: whatever is in them, they end with an answer or an error; no panic, no
//! hang. `SPPO_FUZZ_ROUNDS` multiplies the seeded rounds.

use std::fs;
use std::path::Path;

use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sppo_model::checkpoint::Checkpoint;
use sppo_model::model_folder::ModelFolder;
use sppo_training::config::Config;
use sppo_training::data::{JudgedRow, LogpRow, PairRow, PromptRow, ResponseRow, SftRow, read_rows};
use sppo_training::files::{Mark, read_mark};

use crate::cli::{Place, golden_pairs};

fn rounds() -> usize {
    let given = std::env::var("SPPO_FUZZ_ROUNDS").ok();
    given.and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A few bytes changed, cut, doubled, or replaced by what readers trip over.
fn mutated(bytes: &[u8], random: &mut ChaCha12Rng) -> Vec<u8> {
    const WORDS: [&str; 20] = [
        "null",
        "-1",
        "1e999",
        "NaN",
        "18446744073709551616",
        "4294967296",
        "\"\\ud800\"",
        "[[[[[[[[",
        "{\"a\":",
        "}",
        "]",
        "\"\"",
        "true",
        "\u{0}",
        "\n",
        "\r\n",
        ",",
        "[]",
        "{}",
        "0.5",
    ];
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..bytes.len().max(1)).min(bytes.len());
        match random.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            2 => {
                let end = (at + random.random_range(1..60)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            3 => {
                let end = (at + random.random_range(1..30)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                // A whole value, if one begins here.
                let end = bytes[at..].iter().position(|b| b",]}\n".contains(b));
                let end = at + end.unwrap_or(0);
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.splice(at..end, word.bytes());
            }
            _ => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                bytes.splice(at..at, word.bytes());
            }
        }
    }
    bytes
}

fn each(name: &Path, count: usize, mut read: impl FnMut(&Path)) {
    let original = fs::read(name).unwrap();
    let mut random = ChaCha12Rng::seed_from_u64(original.len() as u64);
    for _ in 0..count * rounds() {
        fs::write(name, mutated(&original, &mut random)).unwrap();
        read(name);
    }
    fs::write(name, original).unwrap();
}

#[test]
fn of_rows() {
    let place = Place::new();
    let responses = json!({"prompt_id": "a", "prompt": [{"role": "user", "content": "hi"}], "responses": ["x", "y"], "finish_reasons": ["stop", "length"], "tokens": [1, 2], "response_ids": [[1], [2, 3]], "prompt_ids": [4]});
    let mut judged = responses.clone();
    judged["rm_scores"] = json!([0.5, -1.0]);
    judged["probability"] = json!([[0.5, 0.8], [0.2, 0.5]]);
    place.write_rows(
        "prompts.jsonl",
        &[
            json!({"instruction": "a", "input": "b"}),
            json!({"conversations": [{"from": "human", "value": "x"}], "tools": []}),
        ],
    );
    place.write_rows("sft.jsonl", &[json!({"prompt": "a", "completion": "b"}), json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "assistant", "content": "y"}]})]);
    place.write_rows("responses.jsonl", &[responses]);
    place.write_rows("judged.jsonl", &[judged]);
    place.write_rows("pairs.jsonl", &golden_pairs()[..2]);
    place.write_rows("text.jsonl", &[json!({"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c", "chosen_probs": 0.5})]);
    place.write_rows(
        "scores.jsonl",
        &[json!({"chosen_logps": -1.5, "rejected_logps": -2.0})],
    );
    place.write("array.json", "[{\"prompt\": \"a\"}, {\"prompt\": \"b\"}]");
    for name in [
        "prompts.jsonl",
        "sft.jsonl",
        "responses.jsonl",
        "judged.jsonl",
        "pairs.jsonl",
        "text.jsonl",
        "scores.jsonl",
        "array.json",
    ] {
        each(&place.path(name), 60, |path| {
            // What is one kind's file is another's mistake.
            let _ = read_rows::<PromptRow>(path);
            let _ = read_rows::<SftRow>(path);
            let _ = read_rows::<ResponseRow>(path);
            let _ = read_rows::<JudgedRow>(path);
            let _ = read_rows::<PairRow>(path);
            let _ = read_rows::<LogpRow>(path);
        });
    }
    place.ok("judge --responses responses.jsonl --judge rubric --out table.parquet");
    each(&place.path("table.parquet"), 300, |path| {
        let _ = read_rows::<JudgedRow>(path);
    });
}

#[test]
fn of_configurations_and_marks() {
    let place = Place::new();
    place.ok("config");
    place.write("config.toml", place.ok("config"));
    each(&place.path("config.toml"), 300, |path| {
        if let Ok(config) = Config::load(Some(path), &[]) {
            // What is accepted can be written and read again.
            let _ = config.to_toml();
        }
    });
    let row = json!({"prompt_id": "a", "prompt": "hi", "responses": ["One.", "Two. Two."]});
    place.write_rows("responses.jsonl", &[row]);
    place.ok("judge --responses responses.jsonl --judge rubric --out judged.jsonl");
    let mark = place.path("judged.jsonl.sppo.json");
    let whole: Mark = read_mark(&mark).unwrap().unwrap();
    each(&mark, 300, |path| {
        if let Ok(Some(found)) = read_mark::<Mark>(path) {
            assert_eq!(found, whole, "a changed mark is taken for whole");
        }
    });
}

#[test]
fn of_models() {
    let place = Place::with_model();
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    ] {
        each(&place.path(&format!("llama/{name}")), 100, |path| {
            let folder = path.parent().unwrap();
            if let Ok(folder) = ModelFolder::open(folder) {
                let _ = folder.end_of_turn();
                let _ = folder.generation_defaults();
            }
        });
    }
    // The header is at the beginning; of the weights a byte is as good as another.
    let weights = place.path("llama/model-00001-of-00002.safetensors");
    let head = fs::read(&weights).unwrap()[..4000].to_vec();
    let name = place.path("llama/head.safetensors");
    fs::write(&name, head).unwrap();
    each(&name, 300, |path| {
        let _ = Checkpoint::open_file(path);
    });
}
