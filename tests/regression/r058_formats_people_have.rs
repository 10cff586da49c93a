//! JSON arrays, ShareGPT, HH-RLHF and Python's NaN were refused.

use serde_json::json;

use crate::cli::Place;

#[test]
fn the_same_pairs_in_other_formats_score_the_same() {
    let place = Place::with_model();
    place.write_rows(
        "plain.jsonl",
        &[json!({"prompt": "a river", "chosen": "rain", "rejected": "play"})],
    );
    let rows = json!([
        {"chosen": "\n\nHuman: a river\n\nAssistant: rain", "rejected": "\n\nHuman: a river\n\nAssistant: play"},
        {"conversations": [{"from": "human", "value": "a river"}],
            "chosen": {"from": "gpt", "value": "rain"}, "rejected": {"from": "gpt", "value": "play"}},
        {"question": "a river", "chosen": "rain", "rejected": "play", "score": "HERE"},
    ]);
    let rows = format!("{rows:#}").replace("\"HERE\"", "NaN");
    place.write("rows.json", rows);
    place.ok("score --model llama --data plain.jsonl --out plain-scores.jsonl");
    place.ok("score --model llama --data rows.json --out scores.jsonl --batch 1");
    let expected = &place.rows("plain-scores.jsonl")[0];
    let scores = place.rows("scores.jsonl");
    assert_eq!(scores.len(), 3);
    assert!(scores.iter().all(|row| row == expected), "{scores:?}");
}

#[test]
fn refusals_say_how_to_convert() {
    let place = Place::with_model();
    let generate = "generate --model llama --out out.jsonl --prompts";
    place.write("turns.jsonl", "{\"turns\": [\"a\", \"b\"]}\n");
    place.refused(
        &format!("{generate} turns.jsonl"),
        &["line 1: key `turns` holds 2", "jq -c"],
    );
    place.write("x.csv", "prompt\na\n");
    place.refused(&format!("{generate} x.csv"), &["load_dataset", "to_json"]);
    place.write("x.json", "{\"data\": [{\"prompt\": \"a\"}]}");
    place.refused(
        &format!("{generate} x.json"),
        &["an array of rows", "jq -c"],
    );
    place.write("x.jsonl", "{\"prompt\": \"a \\ud83d\"}\n");
    place.refused(
        &format!("{generate} x.jsonl"),
        &[
            "x.jsonl, line 1: key `prompt` holds `\\ud83d`",
            "surrogatepass",
        ],
    );
}
