//! A command that failed before its first row left empty files, and one whose output was removed or
//! edited under it ended with exit code 0.
#![cfg(unix)]

use std::fs;

use serde_json::json;

use crate::cli::Place;
use crate::cli::signals::wait_until;

#[test]
fn what_fails_at_once_leaves_nothing() {
    let place = Place::with_model();
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "a", "prompt": "hello"})],
    );
    place.copy_model("broken");
    let name = "broken/model-00001-of-00002.safetensors";
    let weights = place.bytes(name);
    place.write(name, &weights[..weights.len() / 2]);
    place.write_rows(
        "pairs.jsonl",
        &[json!({"prompt": "a", "chosen": "b", "rejected": "c"})],
    );
    let before = place.tree();
    for args in [
        "generate --model broken --prompts prompts.jsonl --out deep/out.jsonl",
        "generate --model absent --prompts prompts.jsonl --out out.parquet",
        "score --model broken --data pairs.jsonl --out out.jsonl",
        "judge --responses prompts.jsonl --judge rubric --out out.jsonl",
        "pairs --judged prompts.jsonl --out out.jsonl",
        "join --prompts prompts.jsonl --out out.jsonl pairs.jsonl",
        "merge --model broken --adapter absent --out merged",
    ] {
        let ran = place.sppo(args);
        assert_ne!(ran.code, Some(0), "{args}");
        assert!(place.tree() == before, "{args} left something");
    }
}

fn disturbed(name: &str, disturb: impl Fn(&Place)) {
    let place = Place::with_model();
    let rows: Vec<_> = (0..400)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": format!("Say {i}.")}))
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    let args = "generate --model llama --prompts prompts.jsonl --max-new-tokens 40 --batch 4 --out out.jsonl";
    let mut child = place.start(args);
    let begun = || fs::metadata(place.path("out.jsonl")).is_ok_and(|file| file.len() > 0);
    assert!(wait_until(&mut child, begun), "it ended too soon");
    disturb(&place);
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(1), "{name}");
}

#[test]
fn what_others_do_to_it_is_an_error() {
    disturbed("removed", |place| {
        fs::remove_file(place.path("out.jsonl")).unwrap()
    });
    disturbed("emptied", |place| place.write("out.jsonl", ""));
    disturbed("replaced", |place| {
        let text = place.read("out.jsonl");
        fs::remove_file(place.path("out.jsonl")).unwrap();
        place.write("out.jsonl", text);
    });
}
