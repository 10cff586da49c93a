//! Chat templates that write the date made other prompts of the same rows each day.

use serde_json::{Value, json};

use crate::cli::Place;

fn place(date: &str) -> Place {
    let place = Place::with_model();
    place.edit("llama/tokenizer_config.json", |config| {
        let template = config["chat_template"].as_str().unwrap();
        config["chat_template"] = format!("{date}{template}").into();
    });
    let pair = json!({
        "prompt_id": "a", "prompt": "why seven?", "chosen": "a river", "rejected": "rain",
        "chosen_probs": 0.7, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.3,
    });
    place.write_rows("pairs.jsonl", &[pair]);
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "p", "prompt": "hi"})],
    );
    place
}

fn scores(place: &Place, flags: &str, out: &str) -> Vec<Value> {
    place.ok(&format!(
        "score --model llama --data pairs.jsonl --out {out} {flags}"
    ));
    place.rows(out)
}

#[test]
fn a_given_date_is_what_the_template_writes() {
    let dated = place("{{ strftime_now('Today: %d %b %Y') }}");
    let first = scores(&dated, "--date 2024-07-06", "first.jsonl");
    let other = scores(&dated, "--date 2025-11-30", "other.jsonl");
    assert_ne!(first, other);
    let written = place("Today: 06 Jul 2024");
    assert_eq!(scores(&written, "", "written.jsonl"), first);
    // A template without a date is not changed by one, which is said.
    let ran =
        written.sppo("score --model llama --data pairs.jsonl --out again.jsonl --date 2025-11-30");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("does not use the date"),
        "{}",
        ran.stderr
    );
    assert_eq!(written.rows("again.jsonl"), first);

    let generate = "generate --model llama --prompts prompts.jsonl --logprobs --temperature 0 \
                    --samples 1 --max-new-tokens 4 --out";
    dated.ok(&format!("{generate} dated.jsonl --date 2024-07-06"));
    written.ok(&format!("{generate} dated.jsonl"));
    assert_eq!(dated.rows("dated.jsonl"), written.rows("dated.jsonl"));
}

#[test]
fn a_date_is_a_day() {
    let place = place("");
    let score = "score --model llama --data pairs.jsonl --out no.jsonl --date";
    for bad in ["2024-02-30", "06.07.2024", "2024-7-6"] {
        place.refused(&format!("{score} {bad}"), &["--date", bad, "YYYY-MM-DD"]);
    }
    place.write("config.toml", "[model]\ndate = \"tomorrow\"\n");
    place.refused(
        "config --config config.toml",
        &["model.date", "YYYY-MM-DD", "tomorrow"],
    );
    for date in ["2024-07-06", "\"2024-07-06\""] {
        place.write("config.toml", format!("[model]\ndate = {date}\n"));
        let shown = place.ok("config --config config.toml");
        assert!(shown.contains("date = \"2024-07-06\""), "{shown}");
        let set = place.ok("config --config config.toml --set model.date=2025-01-02");
        assert!(set.contains("date = \"2025-01-02\""), "{set}");
    }
}
