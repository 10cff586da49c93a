//! A model whose configs and chat template disagree never stopped at the template's end of turn, and
//! was trained on another token than the template's where that is not marked special.

use serde_json::{Value, json};

use crate::cli::Place;

const GENERATE: &str = "generate --prompts prompts.jsonl --samples 6 --temperature 1.3 --top-p 1 \
                        --max-new-tokens 80 --seed 3";

fn place() -> Place {
    let place = Place::with_model();
    let rows: Vec<Value> = (0..6)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": format!("a river {i}")}))
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    let pair = json!({
        "prompt_id": "a", "prompt": "why seven?", "chosen": "a river", "rejected": "rain",
        "chosen_probs": 0.7, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.3,
    });
    place.write_rows("pairs.jsonl", &[pair]);
    place
}

/// The configs and the tokenizer name `<|end_of_text|>`; `special` tells what `<|eot_id|>` is.
fn disagreeing(place: &Place, special: bool) {
    place.copy_model("other");
    for file in ["config.json", "generation_config.json"] {
        place.edit(&format!("other/{file}"), |config| {
            config["eos_token_id"] = json!(421)
        });
    }
    place.edit("other/tokenizer_config.json", |config| {
        config["eos_token"] = json!("<|end_of_text|>");
    });
    place.edit("other/tokenizer.json", |tokenizer| {
        tokenizer["added_tokens"][4]["special"] = json!(special);
    });
}

#[test]
fn sampling_stops_where_the_template_ends_a_turn() {
    let place = place();
    place.ok(&format!("{GENERATE} --model llama --out both.jsonl"));
    let both = place.rows("both.jsonl");
    for special in [true, false] {
        disagreeing(&place, special);
        let ran = place.sppo(&format!(
            "{GENERATE} --model other --out out-{special}.jsonl"
        ));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        for part in [
            "WARN",
            "424 (\"<|eot_id|>\")",
            "421 (\"<|end_of_text|>\")",
            "--stop-token-ids",
        ] {
            assert!(
                ran.stderr.contains(part),
                "{part} is not in: {}",
                ran.stderr
            );
        }
        assert_eq!(place.rows(&format!("out-{special}.jsonl")), both);
        std::fs::remove_dir_all(place.path("other")).unwrap();
    }
    let ends = |rows: &[Value]| {
        let reasons = rows
            .iter()
            .flat_map(|row| row["finish_reasons"].as_array().unwrap().clone());
        reasons.filter(|reason| reason == "stop").count()
    };
    assert!(ends(&both) > 0);
    // A given list takes the place of all.
    place.ok(&format!(
        "{GENERATE} --model llama --stop-token-ids 424,421 --out given.jsonl"
    ));
    assert_eq!(place.rows("given.jsonl"), both);
    place.ok(&format!(
        "{GENERATE} --model llama --stop-token-ids 419 --out never.jsonl"
    ));
    assert_ne!(place.rows("never.jsonl"), both);
    place.refused(
        &format!("{GENERATE} --model llama --stop-token-ids 426 --out no.jsonl"),
        &["--stop-token-ids", "426", "0 to 425"],
    );
}

#[test]
fn rows_end_as_the_template_writes_it() {
    let place = place();
    place.ok("score --model llama --data pairs.jsonl --out scores.jsonl");
    disagreeing(&place, false);
    let ran = place.sppo("score --model other --data pairs.jsonl --out other.jsonl");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("training ends a response with 424"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.rows("other.jsonl"), place.rows("scores.jsonl"));
}

#[test]
fn an_end_of_several_ordinary_tokens() {
    let place = place();
    place.edit("llama/tokenizer_config.json", |config| {
        let template = config["chat_template"].as_str().unwrap();
        config["chat_template"] = template.replace("<|eot_id|>", "\\n### End\\n").into();
    });
    let ran = place.sppo(&format!("{GENERATE} --model llama --out out.jsonl"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("WARN"), "{}", ran.stderr);
    assert_eq!(place.rows("out.jsonl").len(), 6);
}
