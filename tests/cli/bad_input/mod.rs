//! Wrong input: exit code 2, and a message that names the file, line or key, what was found and
//! what to do.

mod config;
mod model;
mod reward;
mod rows;

use serde_json::{Value, json};

use super::{Place, golden_pairs};

const GENERATE: &str =
    "generate --samples 2 --max-new-tokens 2 --prompts prompts.jsonl --out out.jsonl --model";
const SCORE: &str = "score --model llama --data pairs.jsonl --out out.jsonl";
const JUDGE: &str = "judge --responses responses.jsonl --out out.jsonl --judge";
const TRAIN: &str = "train --config train.toml";

const TRAIN_TOML: &str =
    "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\n";

/// A golden checkpoint in `llama`, and one prompt.
fn with_prompt() -> Place {
    let place = Place::with_model();
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "a", "prompt": "hello"})],
    );
    place
}

/// A golden checkpoint, golden pairs after `change`, and a configuration to train on them.
fn with_pairs(change: impl FnOnce(&mut Vec<Value>)) -> Place {
    let place = Place::with_model();
    let mut rows = golden_pairs();
    change(&mut rows);
    place.write_rows("pairs.jsonl", &rows);
    place.write("train.toml", TRAIN_TOML);
    place
}

fn with_responses() -> Place {
    let place = Place::new();
    let row = json!({"prompt_id": "a", "prompt": "hi", "responses": ["One.", "Two. Two."]});
    place.write_rows("responses.jsonl", &[row]);
    place
}
