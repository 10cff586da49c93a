//! `sppo plan`: what it tells before anything is loaded or downloaded.

use serde_json::Value;

use super::train::place;
use super::{Place, golden_pairs};

fn gib(value: &Value) -> f64 {
    value.as_u64().unwrap() as f64 / (1u64 << 30) as f64
}

/// The published recipe, with nothing downloaded.
#[test]
fn llama_3_8b_on_one_card() {
    let place = Place::new();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/llama3-8b-h200.toml");
    let plan = place.ok_json(&format!("plan --config {recipe} --memory-gib 140"));
    assert_eq!(plan["parameters"], 8_030_261_248u64);
    assert_eq!(plan["pairs_per_step"], 64);
    // 20 000 prompts, 64 pairs a step, one pass.
    assert_eq!(plan["steps_per_iteration"], 313);
    let training = &plan["training"];
    assert!((gib(&training["weights"]) - 14.97).abs() < 0.02);
    for part in ["masters", "optimizer", "gradients"] {
        assert!((gib(&training[part]) - 29.92).abs() < 0.02, "{part}");
    }
    assert_eq!(plan["fits"], true);
    let fits = |set_up: &str, card: &str| {
        let all = plan["elsewhere"].as_array().unwrap();
        let found = all
            .iter()
            .find(|fit| fit["set_up"].as_str().unwrap().starts_with(set_up) && fit["card"] == card);
        found.unwrap()["pairs_at_a_time"].as_u64().unwrap() > 0
    };
    assert!(fits("all weights, 1 card", "141 GB"));
    assert!(!fits("all weights, 1 card", "80 GB"));
    assert!(fits("LoRA", "24 GB"));
    assert!(fits("all weights, masters", "80 GB"));
    let small = place.ok(&format!("plan --config {recipe} --memory-gib 80"));
    for part in ["does NOT fit", "[train.lora]", "not downloaded yet"] {
        assert!(small.contains(part), "{small}");
    }
    // Cutting batches would not help.
    assert!(!small.contains("train.memory_mib"), "{small}");
    let middle = place.ok(&format!("plan --config {recipe} --memory-gib 118"));
    assert!(middle.contains("set train.memory_mib"), "{middle}");
}

/// Every recipe can be planned before anything is downloaded.
#[test]
fn recipes() {
    let place = Place::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let recipe = entry.unwrap().path();
        let plan = place.ok_json(&format!("plan --config {}", recipe.display()));
        assert!(
            plan["peak_bytes"].as_u64().unwrap() > 0,
            "{}",
            recipe.display()
        );
    }
    let recipe = format!("{folder}/llama3-8b-lora-24gb.toml");
    let plan = place.ok_json(&format!("plan --config {recipe} --memory-gib 24"));
    assert_eq!(plan["fits"], true);
    // Rank 16 beside all seven linear layers of 32 blocks.
    assert_eq!(plan["trained_parameters"], 41_943_040u64);
}

/// Rows that are there are counted, and a device that the build lacks may be planned for.
#[test]
fn rows_at_hand_are_counted() {
    let place = place();
    let plan = place.ok_json("plan --config train.toml --device cuda:3");
    assert_eq!(plan["pairs_per_iteration"], 16);
    assert_eq!(plan["steps_per_iteration"], 8);
    let tokens = |row: &Value| {
        let count = |key: &str| row[key].as_array().unwrap().len();
        2 * count("prompt_ids") + count("chosen_ids") + count("rejected_ids")
    };
    let all: usize = golden_pairs().iter().map(tokens).sum();
    assert_eq!(plan["tokens_per_step"].as_f64().unwrap(), all as f64 / 4.0);
    assert_eq!(plan["notes"], Value::Array(vec![]));
    place.refused(
        "plan --config train.toml --device tpu",
        &["unknown device \"tpu\""],
    );
    place.refused(
        "plan --config train.toml --set model.path=nobody/nothing",
        &["nobody/nothing"],
    );
}
