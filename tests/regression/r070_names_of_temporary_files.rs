//! Temporary files and folders had names that a user may have given: `.report.md.partial`,
//! `.model.partial`, `pairs.parquet.new` were overwritten or removed.

use std::fs;

use serde_json::json;

use crate::cli::Place;

#[test]
fn are_not_a_users_own() {
    let place = Place::new();
    let judged = json!({"prompt_id": "a", "prompt": "p", "responses": ["x", "y"], "rm_scores": [1, 2],
                        "probability": [[0.5, 0.3], [0.7, 0.5]]});
    place.write_rows("judged.jsonl", &[judged]);
    let mine = [
        "pairs.parquet.new",
        ".pairs.parquet.partial",
        ".pairs.parquet.sppo.json.partial",
        "pairs.parquet.partial.jsonl.new",
    ];
    for name in mine {
        place.write(name, "mine");
    }
    // What a kill left under names of the program's own goes.
    place.write(".pairs.parquet.sppo.json.sppo.partial", "half");
    place.write("pairs.parquet.sppo.new", "half");
    place.ok("pairs --judged judged.jsonl --out pairs.parquet");
    for name in mine {
        assert_eq!(place.read(name), "mine", "{name}");
    }
    let names: Vec<String> = fs::read_dir(place.path("."))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".sppo.") && !mine.contains(&name.as_str()))
        .collect();
    assert_eq!(names, ["pairs.parquet.sppo.json"]);
}

#[test]
fn nor_are_those_of_folders() {
    let place = crate::cli::train::place();
    let folders = ["out/.model.partial", "out/.model.old"];
    for folder in folders {
        fs::create_dir_all(place.path(folder)).unwrap();
        place.write(&format!("{folder}/mine"), "mine");
    }
    let args = "train --config train.toml";
    place.ok(args);
    place.ok(&format!("{args} --set train.beta=0.2 --overwrite"));
    for folder in folders {
        assert_eq!(place.read(&format!("{folder}/mine")), "mine");
    }
}
