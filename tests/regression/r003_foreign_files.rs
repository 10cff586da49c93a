//! What merely had the right name was deleted, cut or appended to: a user's `model/src/lib.rs`,
//! `checkpoints/step-500`, `init/`, `report.md`, the configuration file itself, a text file.

use std::fs;

use serde_json::json;

use crate::cli::Place;

/// The command is refused, names what is foreign, and nothing at all has changed.
fn untouched(place: &Place, args: &str, part: &str) {
    let before = place.tree();
    for more in ["", " --overwrite"] {
        place.refused(&format!("{args}{more}"), &[part, "is not this program's"]);
        assert!(place.tree() == before, "{args}{more} changed something");
    }
}

fn put(place: &Place, name: &str) {
    let path = place.path(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "mine, without a last newline").unwrap();
}

#[cfg(unix)]
#[test]
fn of_trainings_and_runs() {
    for (name, part) in [
        ("out/model/src/lib.rs", "out/model"),
        ("out/checkpoints/step-500/weights", "out/checkpoints"),
        ("out/metrics.jsonl", "out/metrics.jsonl"),
    ] {
        let place = crate::cli::train::place();
        put(&place, name);
        untouched(&place, crate::cli::train::TRAIN, part);
        place.write_rows("sft.jsonl", &[json!({"prompt": "a", "response": "b"})]);
        place.write(
            "sft.toml",
            "output_dir = \"out\"\n[model]\npath = \"llama\"\n[sft]\ndata = \"sft.jsonl\"\n",
        );
        untouched(&place, "sft --config sft.toml", part);
    }
    let run = "run --config run.toml --set output_dir=out";
    for (name, part) in [
        ("out/init/notes", "out/init"),
        ("out/sft/model/notes", "out/sft/model"),
        ("out/report.md", "out/report.md"),
        ("out/config.toml", "out/config.toml"),
        ("out/iteration-2/pairs.jsonl", "out/iteration-2/pairs.jsonl"),
        (
            "out/iteration-1/checkpoints/x",
            "out/iteration-1/checkpoints",
        ),
        ("out/eval/first.jsonl", "out/eval/first.jsonl"),
    ] {
        let place = crate::cli::run::place();
        put(&place, name);
        untouched(&place, run, part);
    }
    // The configuration itself, and a link.
    let place = crate::cli::run::place();
    fs::rename(place.path("run.toml"), place.path("config.toml")).unwrap();
    untouched(&place, "run --set output_dir=.", "config.toml");
    let place = crate::cli::train::place();
    fs::create_dir_all(place.path("elsewhere")).unwrap();
    fs::create_dir_all(place.path("out")).unwrap();
    std::os::unix::fs::symlink(place.path("elsewhere"), place.path("out/model")).unwrap();
    untouched(&place, crate::cli::train::TRAIN, "out/model");
}

#[test]
fn of_files_and_folders() {
    let place = Place::with_model();
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "a", "prompt": "hello"})],
    );
    let row = json!({"prompt_id": "a", "prompt": "hi", "responses": ["One.", "Two. Two."]});
    place.write_rows("responses.jsonl", &[row]);
    for name in ["notes.jsonl", "notes.parquet"] {
        put(&place, name);
        for command in [
            "generate --model llama --prompts prompts.jsonl --max-new-tokens 2",
            "judge --responses responses.jsonl --judge rubric",
            "join --prompts prompts.jsonl responses.jsonl",
        ] {
            untouched(&place, &format!("{command} --out {name}"), name);
        }
    }
    // An input is no output of the command either, whoever made it.
    place.ok("judge --responses responses.jsonl --judge rubric --out judged.jsonl");
    let before = place.tree();
    for more in ["", " --overwrite"] {
        place.refused(
            &format!("pairs --judged judged.jsonl --out judged.jsonl{more}"),
            &["judged.jsonl is read by this command"],
        );
        assert!(place.tree() == before);
    }
    // Somebody else's file of the mark's name is no mark.
    put(&place, "other.jsonl");
    put(&place, "other.jsonl.sppo.json");
    untouched(
        &place,
        "judge --responses responses.jsonl --judge rubric --out other.jsonl",
        "other.jsonl",
    );
    fs::create_dir(place.path("project")).unwrap();
    place.write("project/sppo.json", "{\"name\": \"mine\"}");
    place.copy_model("base");
    let before = place.tree();
    for args in [
        "merge --model llama --adapter base --out project",
        "merge --model base --adapter llama --out base",
    ] {
        let ran = place.sppo(&format!("{args} --overwrite"));
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(place.tree() == before, "{args}");
    }
    let text = "generate --model llama --prompts prompts.jsonl --out notes.txt";
    put(&place, "notes.txt");
    let before = place.tree();
    place.refused(text, &["notes.txt"]);
    assert!(place.tree() == before);
}
