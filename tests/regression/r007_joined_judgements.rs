//! `sppo join` of judged shards dropped their scores, with exit code 0.

use serde_json::json;

use crate::cli::Place;

#[test]
fn all_that_rows_hold_is_joined() {
    let place = Place::new();
    let rows: Vec<_> = (0..5)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": "hi", "responses": ["One.", format!("Two {i}. Two.")]}))
        .collect();
    place.write_rows("responses.jsonl", &rows);
    let judge = "judge --responses responses.jsonl --judge rubric";
    place.ok(&format!("{judge} --out whole.jsonl"));
    for i in 0..2 {
        place.ok(&format!("{judge} --out j{i}.jsonl --shard {i}/2"));
    }
    let join = "join --prompts responses.jsonl --out";
    place.ok(&format!("{join} joined.jsonl j0.jsonl j1.jsonl"));
    assert_eq!(place.bytes("joined.jsonl"), place.bytes("whole.jsonl"));
    place.refused(
        &format!("{join} mixed.jsonl j0.jsonl responses.jsonl"),
        &["responses.jsonl"],
    );
    place.refused(
        &format!("{join} mixed.jsonl responses.jsonl j0.jsonl"),
        &["j0.jsonl holds judged rows"],
    );
    assert!(!place.path("mixed.jsonl").exists());
    // Pairs too.
    place.ok("pairs --judged whole.jsonl --out pairs.jsonl");
    place.ok(&format!("{join} all.jsonl pairs.jsonl"));
    assert_eq!(place.bytes("all.jsonl"), place.bytes("pairs.jsonl"));
}
