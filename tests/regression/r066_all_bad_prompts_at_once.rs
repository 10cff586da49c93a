//! A prompt that is too long ended the job with its own name only, so that a file had to be mended
//! prompt by prompt; none could be left out or cut.

use serde_json::{Value, json};

use crate::cli::Place;

const GENERATE: &str = "generate --model llama --prompts prompts.jsonl --samples 1 --temperature 0 \
                        --max-new-tokens 3 --out";

fn place() -> Place {
    let place = Place::with_model();
    let long = "word ".repeat(600);
    let rows: Vec<Value> = (0..15)
        .map(|i| match i % 5 {
            0 => json!({"prompt_id": format!("short-{i}"), "prompt": "hi"}),
            _ => json!({"prompt_id": format!("long-{i}"), "prompt": long}),
        })
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    place
}

#[test]
fn they_are_all_named() {
    let place = place();
    let parts = [
        "12 rows:",
        "row 2, prompt long-1 has ",
        "leaves no room in the model's context of 512",
        "row 13, prompt long-12 ",
        "and 2 more",
        "--on-too-long",
    ];
    place.refused(&format!("{GENERATE} out.jsonl"), &parts);
    assert!(!place.path("out.jsonl").exists());
    // Rows of the file, whatever the shard.
    let parts = ["row 2, prompt long-1 ", "row 4, prompt long-3 "];
    place.refused(&format!("{GENERATE} out.jsonl --shard 1/2"), &parts);
    let parts = ["row 1, prompt short-0 has ", "(--max-prompt-length) is 5"];
    place.refused(
        &format!("{GENERATE} out.jsonl --max-prompt-length 5"),
        &parts,
    );
}

#[test]
fn they_are_left_out_or_cut() {
    let place = place();
    let ran = place.sppo(&format!("{GENERATE} out.jsonl --on-too-long skip"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let said = "12 of 15 prompts have more than 511 tokens and are left out";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
    let ids: Vec<Value> = place
        .rows("out.jsonl")
        .iter()
        .map(|r| r["prompt_id"].clone())
        .collect();
    assert_eq!(ids, ["short-0", "short-5", "short-10"]);
    // The same again has nothing to do.
    place.ok(&format!("{GENERATE} out.jsonl --on-too-long skip"));

    let cut = format!("{GENERATE} cut.jsonl --on-too-long cut --max-prompt-length 60");
    let ran = place.sppo(&cut);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("12 of 15 prompts have more than 60 tokens"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.rows("cut.jsonl").len(), 15);

    let none = format!("{GENERATE} none.jsonl --on-too-long skip --max-prompt-length 5");
    place.refused(&none, &["all 15 prompts", "--max-prompt-length"]);
}

#[test]
fn pairs_that_cannot_be_used_are_all_named() {
    let place = Place::with_model();
    let row = |i: usize| {
        json!({"prompt_id": format!("pair-{i}"), "prompt_ids": [5, 6], "chosen_ids": [7],
               "rejected_ids": [if i % 2 == 1 { 9999 } else { 8 }]})
    };
    let rows: Vec<Value> = (0..30).map(row).collect();
    place.write_rows("pairs.jsonl", &rows);
    let parts = [
        "15 rows:",
        "row 2, prompt_id pair-1: token id 9999 is outside",
        "row 20, prompt_id pair-19: ",
        "and 5 more",
    ];
    place.refused(
        "score --model llama --data pairs.jsonl --out scores.jsonl",
        &parts,
    );
}
