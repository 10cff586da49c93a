//! `sppo generate` over many prompts: kills, shards, log-probabilities, the cache's budget.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use sppo_model::tokenizer::Tokenizer;

use super::Place;
use super::signals::{Moments, interrupt, kill, wait_until};
use crate::close::assert_close;

const PROMPTS: usize = 120;

/// Prompts of many lengths, more of them than there are slots.
fn place() -> Place {
    let place = Place::with_model();
    let rows: Vec<Value> = (0..PROMPTS)
        .map(|i| {
            let text = "explain the winter light ".repeat(1 + i * i % 5);
            json!({"prompt_id": format!("p{i}"), "prompt": format!("{text}{i}")})
        })
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    place
}

fn into(out: &str) -> String {
    format!(
        "generate --model llama --prompts prompts.jsonl --samples 3 --temperature 1.1 --top-p 0.95 \
         --max-new-tokens 60 --seed 5 --out {out}"
    )
}

#[test]
fn killed_anywhere_it_gives_the_same_file() {
    let place = place();
    let begun = Instant::now();
    place.ok(&into("whole.jsonl"));
    let whole = begun.elapsed();
    let expected = place.bytes("whole.jsonl");
    assert_eq!(place.rows("whole.jsonl").len(), PROMPTS);
    let mut moments = Moments(7);
    for (name, slots) in [("a.jsonl", ""), ("b.jsonl", " --batch 3")] {
        let args = format!("{}{slots}", into(name));
        let mut kills = 0;
        for _ in 0..6 {
            let child = place.start(&args);
            std::thread::sleep(moments.pause(whole.mul_f64(0.3)));
            kills += usize::from(kill(child));
        }
        assert!(kills > 1, "only {kills} kills hit");
        let mut child = place.start(&args);
        // Behind what the kills left, something new has to be written first.
        let file = place.path(name);
        let size = || fs::metadata(&file).map_or(0, |m| m.len());
        let before = size();
        if wait_until(&mut child, || size() > before) {
            std::thread::sleep(moments.pause(Duration::from_millis(30)));
            let code = interrupt(child);
            assert!(code == Some(130) || code == Some(0), "{code:?}");
        }
        place.ok(&args);
        assert_eq!(place.bytes(name), expected, "{name}");
        assert!(!place.path(&format!("{name}.ahead.jsonl")).exists());
    }
}

#[test]
fn shards_join_to_the_whole_file() {
    let place = place();
    place.ok(&into("whole.jsonl"));
    for i in 0..3 {
        place.ok(&format!(
            "{} --shard {i}/3 --batch {}",
            into(&format!("r{i}.jsonl")),
            5 + i
        ));
    }
    let join = "join --prompts prompts.jsonl --out joined.jsonl";
    place.refused(
        &format!("{join} r0.jsonl r2.jsonl"),
        &[
            "40 of 120 prompts have no responses",
            "p1, p4, p7",
            "goes on where it stopped",
        ],
    );
    place.refused(
        &format!("{join} r0.jsonl r1.jsonl r2.jsonl r1.jsonl"),
        &[
            "prompt_id p1 is in r1.jsonl and in r1.jsonl",
            "each shard once",
        ],
    );
    assert!(!place.path("joined.jsonl").exists());
    let line = place.ok_json(&format!("{join} r2.jsonl r0.jsonl r1.jsonl"));
    assert_eq!(line["path"], "joined.jsonl");
    assert_eq!(place.bytes("joined.jsonl"), place.bytes("whole.jsonl"));
    let ran = place.sppo(&format!("{join} r2.jsonl r0.jsonl r1.jsonl"));
    assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
    place.ok(&into("r9.jsonl").replace("--seed 5", "--seed 9"));
    place.refused(
        &format!("{join} r9.jsonl"),
        &[
            "joined.jsonl was made from something else",
            "shard 1: was r2.jsonl (",
        ],
    );
    let few: Vec<Value> = (0..5)
        .map(|i| json!({"prompt_id": format!("p{}", 3 * i), "prompt": "x"}))
        .collect();
    place.write_rows("few.jsonl", &few);
    place.refused(
        "join --prompts few.jsonl --out other.jsonl r0.jsonl",
        &["r0.jsonl: prompt_id p102 is not among the prompts"],
    );
}

#[test]
fn log_probabilities_are_those_of_score() {
    let place = place();
    // Score closes every answer with the end of turn.
    place.edit("llama/generation_config.json", |config| {
        config["eos_token_id"] = 424.into();
    });
    let args = into("out.jsonl").replace("--samples 3", "--samples 48");
    let args = args.replace("--max-new-tokens 60", "--max-new-tokens 6");
    place.ok(&format!("{args} --logprobs"));
    let tokenizer = Tokenizer::from_dir(&place.path("llama")).unwrap();
    let mut pairs = Vec::new();
    let mut expected = Vec::new();
    for row in place.rows("out.jsonl") {
        // Ended by themselves, and the same tokens again when they are encoded.
        let kept = (0..48).filter(|&i| {
            let text = row["responses"][i].as_str().unwrap();
            let tokens = row["tokens"][i].as_u64().unwrap() as usize;
            row["finish_reasons"][i] == "stop"
                && !text.is_empty()
                && text.trim() == text
                && tokenizer.encode(text, false).unwrap().len() + 1 == tokens
        });
        let side = |i: usize| json!([{"role": "assistant", "content": row["responses"][i]}]);
        for i in kept {
            pairs.push(json!({
                "prompt_id": pairs.len().to_string(), "prompt": row["prompt"],
                "chosen": side(i), "rejected": side(i),
                "chosen_probs": 0.5, "chosen_probs_win": 0.5, "chosen_probs_lose": 0.5,
            }));
            expected.push(row["logprobs"][i].as_f64().unwrap());
        }
    }
    assert!(pairs.len() > 10, "{} answers", pairs.len());
    place.write_rows("pairs.jsonl", &pairs);
    place.ok("score --model llama --data pairs.jsonl --out logps.jsonl");
    for (found, expected) in place.rows("logps.jsonl").iter().zip(expected) {
        for key in ["chosen_logps", "rejected_logps"] {
            assert_close(found[key].as_f64().unwrap(), expected, 1e-4, key);
        }
    }
}

#[test]
fn a_cache_that_is_too_small_is_refused_before_the_run() {
    let place = place();
    let ample = format!("{} --cache-memory-mib 1", into("ample.jsonl"));
    place.ok(&ample);
    place.edit("llama/config.json", |config| {
        config["max_position_embeddings"] = 200_000.into();
    });
    let args = into("out.jsonl").replace("--max-new-tokens 60", "--max-new-tokens 100000");
    place.refused(
        &format!("{args} --cache-memory-mib 2"),
        &[
            "one sequence of 100",
            "MiB of cache, but the budget is 2 MiB",
            "--cache-memory-mib",
        ],
    );
    assert_eq!(place.rows("ample.jsonl").len(), PROMPTS);
}
