//! `sppo plan` reckoned with prompts that a run skips or cuts.

use serde_json::{Value, json};

use crate::cli::Place;

#[test]
fn that_are_skipped_or_cut() {
    let place = Place::with_model();
    let mut rows: Vec<Value> = (0..3)
        .map(|i| json!({"prompt_id": format!("long-{i}"), "prompt": "word ".repeat(600)}))
        .collect();
    rows.extend((0..7).map(|i| json!({"prompt_id": format!("short-{i}"), "prompt": "hi"})));
    place.write_rows("prompts.jsonl", &rows);
    place.write(
        "plan.toml",
        "iterations = 1\n[model]\npath = \"llama\"\n[prompts]\ntrain = \"prompts.jsonl\"\n[train]\nbatch_size = 1\n",
    );
    let plan = |set: &str| {
        place.ok_json(&format!(
            "plan --config plan.toml --response-tokens 50 {set}"
        ))
    };
    let note = |plan: &Value| plan["notes"].to_string();
    let stop = plan("");
    assert!(
        note(&stop).contains("3 of 10 prompts of an iteration have more than 511 tokens and end the run before it begins (prompts.on_too_long = stop)"),
        "{stop}"
    );
    let cut = plan("--set prompts.on_too_long=cut --set prompts.max_length=60");
    assert_eq!(cut["steps_per_iteration"], 10);
    assert!(note(&cut).contains("than 60 tokens and lose their beginning"));
    let skip = plan("--set prompts.on_too_long=skip --set prompts.max_length=60");
    assert_eq!(skip["steps_per_iteration"], 7);
    assert!(note(&skip).contains("are left out (prompts.on_too_long = skip)"));
    let operations = |plan: &Value| plan["flops_per_iteration"]["generation"].as_f64();
    assert!(operations(&skip) < operations(&cut), "{skip} {cut}");
    assert!(operations(&cut) < operations(&stop), "{cut} {stop}");
    let none = "plan --config plan.toml --set prompts.on_too_long=skip --set prompts.max_length=3";
    place.refused(none, &["all 10 prompts", "prompts.max_length"]);

    // Rows that cannot be read, too.
    rows.push(json!({"prompt": ""}));
    place.write_rows("prompts.jsonl", &rows);
    place.refused("plan --config plan.toml", &["line 11"]);
    plan("--on-bad-row skip");
}
