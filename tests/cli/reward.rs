//! `sppo judge --judge reward`.

use std::fs;

use super::Place;
use crate::close::assert_close;
use crate::golden::{numbers, reward};

const JUDGE: &str = "judge --responses responses.jsonl --judge reward --model reward --out";

/// Golden conversations, and the reward model in `reward`.
pub fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.path("reward")).unwrap();
    for entry in fs::read_dir(reward::folder()).unwrap() {
        let from = entry.unwrap().path();
        let name = from.file_name().unwrap();
        if name != "expected.json" {
            fs::copy(&from, place.path("reward").join(name)).unwrap();
        }
    }
    place.write_rows("responses.jsonl", &reward::response_rows());
    place
}

#[test]
fn golden_scores_with_resume_and_shards() {
    let place = place();
    place.ok(&format!("{JUDGE} whole.jsonl"));
    let rows = place.rows("whole.jsonl");
    for (row, case) in rows.iter().zip(reward::cases()) {
        assert_eq!(row["judge"]["kind"], "reward");
        let found = numbers(&row["rm_scores"]);
        let expected = numbers(&case["scores"]);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_close(*found, *expected, 1e-4, "score");
        }
        let won = 1.0 / (1.0 + (found[1] - found[0]).exp());
        assert!((numbers(&row["probability"][0])[1] - won).abs() < 1e-12);
    }

    // A batch a conversation, so that what is left is computed in the same company.
    let alone = JUDGE.replace("judge --", "judge --set judge.batch_tokens=1 --");
    place.ok(&format!("{alone} alone.jsonl"));
    let whole = place.read("alone.jsonl");
    place.cut_as(
        "alone.jsonl",
        "cut.jsonl",
        &whole.as_bytes()[..whole.len() / 2],
    );
    place.ok(&format!("{alone} cut.jsonl"));
    assert_eq!(place.read("cut.jsonl"), whole);

    place.ok(&format!("{alone} 0.jsonl --shard 0/2"));
    place.ok(&format!("{alone} 1.jsonl --shard 1/2"));
    let parts = [place.rows("0.jsonl"), place.rows("1.jsonl")];
    for (i, row) in place.rows("alone.jsonl").iter().enumerate() {
        assert_eq!(parts[i % 2][i / 2], *row);
    }
    assert_eq!(parts[0].len() + parts[1].len(), 5);
}
