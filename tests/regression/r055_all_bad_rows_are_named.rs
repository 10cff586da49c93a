//! Of a file with many bad rows only the first was named, so each run found one more.

use serde_json::json;

use crate::cli::Place;

#[test]
fn ten_are_listed_and_the_rest_counted() {
    let place = Place::with_model();
    let mut rows = vec![json!({"prompt": "fine"})];
    rows.extend((0..14).map(|i| json!({"prompt": i})));
    place.write_rows("prompts.jsonl", &rows);
    place.refused(
        "generate --model llama --prompts prompts.jsonl --out out.jsonl",
        &[
            "prompts.jsonl: 14 rows cannot be used:",
            "line 2: key `prompt` must be a string",
            "line 11: key `prompt`",
            "and 4 more",
        ],
    );
    assert!(!place.path("out.jsonl").exists());
}

#[test]
fn rows_that_make_no_tokens_are_listed_together() {
    let place = Place::with_model();
    let ids = |id: &str, chosen: u32| json!({"prompt_id": id, "prompt_ids": [1], "chosen_ids": [chosen], "rejected_ids": [2]});
    let rows = [ids("a", 9999), ids("b", 3), ids("c", 8888)];
    place.write_rows("pairs.jsonl", &rows);
    place.refused(
        "score --model llama --data pairs.jsonl --out out.jsonl",
        &[
            "2 rows:",
            "row 1, prompt_id a: token id 9999",
            "row 3, prompt_id c: token id 8888",
        ],
    );
}

#[test]
fn a_file_of_something_else_is_not_replaced_by_pairs() {
    let place = Place::new();
    let judged = json!({"prompt": "p", "responses": ["x", "y"], "rm_scores": [1, 2], "probability": [[0.5, 0.3], [0.7, 0.5]]});
    place.write_rows("judged.jsonl", &[judged]);
    let mine = "{\"mine\": 1}\n{\"mine\": 2}\n";
    place.write("pairs.jsonl", mine);
    place.refused(
        "pairs --judged judged.jsonl --out pairs.jsonl",
        &["pairs.jsonl"],
    );
    assert_eq!(place.read("pairs.jsonl"), mine);
}
