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
    // Tensors in pages, and what a step takes at least.
    let pages = gib(&training["pages"]);
    assert!((4.0..16.0).contains(&pages), "{training}");
    assert!(plan["judging"]["weights"].as_u64().unwrap() > 1 << 30);
    let roofline = &plan["roofline"];
    assert_eq!(roofline["products_reach"], 0.7);
    assert!(
        (0.36..0.7).contains(&roofline["mfu"].as_f64().unwrap()),
        "{roofline}"
    );
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
    let middle = place.ok(&format!("plan --config {recipe} --memory-gib 122"));
    assert!(middle.contains("set train.memory_mib"), "{middle}");
}

/// Every recipe can be planned before anything is downloaded.
#[test]
fn recipes() {
    let place = Place::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/configs");
    for entry in std::fs::read_dir(folder).unwrap() {
        let recipe = entry.unwrap().path();
        if recipe.is_dir() {
            continue;
        }
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
    // Ranks on one machine share its memory.
    let two = place.ok_json("plan --config train.toml --ranks 2 --memory-gib 10");
    assert_eq!(two["memory_bytes"], 5u64 << 30);
    place.refused(
        "plan --config train.toml --device tpu",
        &["unknown device \"tpu\""],
    );
    place.refused(
        "plan --config train.toml --set model.path=nobody/nothing",
        &["nobody/nothing"],
    );
}

/// ZeRO-2 on 8 cards: 26.2 GiB are fixed on each, 42 GB are sent a step, and the plan says what
/// would fit where the recipe does not.
#[test]
fn llama_3_8b_on_8_cards() {
    let place = Place::new();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/llama3-8b-8gpu.toml");
    let plan_of = |more: &str| place.ok_json(&format!("plan --config {recipe} --ranks 8 {more}"));
    let plan = plan_of("--card H100");
    assert_eq!(plan["fits"], true);
    assert_eq!(plan["refused"], Value::Null);
    let rows = plan["cluster"]["by_ranks"].as_array().unwrap();
    let ranks: Vec<u64> = rows.iter().map(|r| r["ranks"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [1, 2, 4, 8]);
    let last = &rows[3];
    assert!((gib(&last["fixed_bytes"]) - 26.2).abs() < 0.05, "{last}");
    assert!(gib(&last["usual_peak_bytes"]) <= 40.0, "{last}");
    assert!(gib(&last["training"]["peak"]) <= 50.0, "{last}");
    assert_eq!(last["training"], plan["training"]);
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
    // (n − 1)/n · P · (4 · parts of a rank + 2).
    for (row, parts) in rows.iter().zip([8.0, 4.0, 2.0, 1.0]) {
        let n = number(row, "ranks");
        assert_eq!(number(row, "parts_per_rank"), parts);
        let sent = (n - 1.0) / n * 8_030_261_248.0 * (4.0 * parts + 2.0);
        assert!((number(row, "bytes_sent_per_step") - sent).abs() < 1.0);
        let (alone, overlapped) = ("step_seconds", "step_seconds_overlapped");
        assert!(number(row, overlapped) <= number(row, alone), "{row}");
    }
    assert!(number(last, "step_seconds_overlapped") < number(last, "step_seconds"));
    assert!((number(last, "bytes_sent_per_step") / 1e9 - 42.2).abs() < 0.1);
    // Sampling is dealt row by row.
    let hours = |row: &Value| row["hours"]["generation"].as_f64().unwrap();
    assert!((hours(&rows[0]) / 8.0 * 1.13 / hours(last) - 1.0).abs() < 1e-9);
    assert!(last["hours"]["judging"].as_f64().unwrap() > 0.0);

    let shorter = "--set train.max_length=450 --set train.max_prompt_length=150";
    let shorter = plan_of(&format!("--memory-gib 80 {shorter}"));
    assert!(gib(&shorter["training"]["peak"]) <= 40.0);

    // A gradient of the vocabulary has 2 GB, for which CubeCL's pool takes a page of 10 GiB from such a
    // card: one pair at a time does not fit on 8 of them, four do on 16.
    let small = plan_of("--card a100-40gb");
    assert_eq!(small["fits"], false);
    assert_eq!(small["remedy"]["ranks"], 16);
    assert_eq!(small["remedy"]["batch_size"], 4);
    let four = "--set train.batch_size=4 --set train.gradient_accumulation=16";
    let more = format!("plan --config {recipe} --ranks 16 --nodes 2 --card a100-40gb {four}");
    assert_eq!(place.ok_json(&more)["fits"], true);
    for pairs in [1, 2, 4, 8] {
        let set = format!("--set train.batch_size={pairs}");
        let plan = plan_of(&format!("--card 4090 {set}"));
        assert_eq!(plan["fits"], false);
        assert_eq!(plan["remedy"]["more_ranks_help"], false);
    }
    let words = |more: &str| place.ok(&format!("plan --config {recipe} {more}"));
    let text = words("--ranks 8 --card a100-40gb");
    for part in [
        "does NOT fit",
        "start 16 ranks",
        "train.batch_size = 4 and train.gradient_accumulation = 16",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // One card of 80 GB is too small, more of them are not.
    assert!(words("--memory-gib 80").contains("start 2 ranks (docs/cluster.md)"));
}

/// Weights are whole on every rank.
#[test]
fn more_ranks_do_not_shard_the_weights_of_a_70b_model() {
    let place = Place::new();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/llama3-8b-8gpu.toml");
    let text = place.ok(&format!(
        "plan --config {recipe} --set model.path=meta-llama/Meta-Llama-3-70B-Instruct --ranks 8 --card h100 --set generate.cache_memory_mib=1024000"
    ));
    for part in ["131.4 GiB", "not sharded", "more ranks do not help"] {
        assert!(text.contains(part), "{text}");
    }
}

/// What is assumed is said; fewer parts than ranks are refused as the job would refuse them.
#[test]
fn four_nodes_of_eight() {
    let place = Place::new();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/llama3-8b-8gpu.toml");
    let cluster = "--ranks 32 --nodes 4 --link-gbs 360 --network-gbs 40";
    let refused = "train: a step has 8 parts for 32 ranks; set train.batch_size to at most 2 and gradient_accumulation to 32 or more";
    let text = place.ok(&format!("plan --config {recipe} {cluster}"));
    for part in [
        "H100 80GB, 989 TFLOP/s",
        "30 % (MFU)",
        "360 GB/s between ranks of a node",
        "40 GB/s from a node to others",
        refused,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let two = "--set train.batch_size=2 --set train.gradient_accumulation=32";
    let plan = place.ok_json(&format!("plan --config {recipe} {cluster} {two}"));
    assert_eq!(plan["refused"], Value::Null);
    let rows = plan["cluster"]["by_ranks"].as_array().unwrap();
    let nodes: Vec<u64> = rows.iter().map(|r| r["nodes"].as_u64().unwrap()).collect();
    assert_eq!(nodes, [1, 1, 1, 1, 2, 4]);
    // Between nodes a step waits for the network.
    let waits = |row: &Value| {
        row["bytes_sent_per_step"].as_f64().unwrap() / row["step_seconds"].as_f64().unwrap()
    };
    assert!(waits(&rows[5]) < 40e9);

    place.refused(
        "plan --config none.toml --ranks 6 --nodes 4",
        &["none.toml"],
    );
    let odd = format!("plan --config {recipe} --ranks 6 --nodes 4");
    place.refused(&odd, &["--ranks 6 --nodes 4", "a multiple of 4"]);
    let which = format!("plan --config {recipe} --card a100");
    place.refused(&which, &["which one: A100 40GB, A100 80GB?"]);
    let unknown = format!("plan --config {recipe} --card x1");
    place.refused(&unknown, &["unknown card", "RTX 4090 24GB"]);
}
