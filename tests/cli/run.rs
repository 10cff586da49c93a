//! `sppo run`: the whole loop, micro-sized, undisturbed and killed at many moments.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::Place;
use super::signals::{Moments, interrupt, kill, wait_until};

pub const RUN: &str = "run --config run.toml";

const CONFIG: &str = r#"
seed = 3
iterations = 2

[model.init]
tokenizer = "tokenizer"
hidden_size = 32
intermediate_size = 64
layers = 1
heads = 2
kv_heads = 1
context = 128

[sft]
data = "sft.jsonl"
learning_rate = 5e-3
batch_size = 8
max_length = 96

[prompts]
train = "prompts.jsonl"
heldout = "heldout.jsonl"

[generate]
samples = 3
temperature = 1.0
max_new_tokens = 12

[judge.rubric]
length_target = 5.0
length_tolerance = 3.0

[pairs]
keep_ties = true

[train]
beta = 0.1
learning_rate = 1e-4
batch_size = 2
epochs = 2
checkpoint_every = 1
max_length = 96
max_prompt_length = 64

[eval]
max_new_tokens = 12
"#;

/// The configuration and the first rows of the default run's data.
pub fn place() -> Place {
    let place = Place::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    for (name, rows) in [("sft", 40), ("prompts", 12), ("heldout", 8)] {
        let name = format!("{name}.jsonl");
        let text = fs::read_to_string(data.join(&name)).unwrap();
        let head: Vec<&str> = text.split_inclusive('\n').take(rows).collect();
        assert_eq!(head.len(), rows);
        place.write(&name, head.concat());
    }
    fs::create_dir(place.path("tokenizer")).unwrap();
    for entry in fs::read_dir(data.join("tokenizer")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(
            &path,
            place.path("tokenizer").join(path.file_name().unwrap()),
        )
        .unwrap();
    }
    place.write("run.toml", CONFIG);
    place
}

fn at(output: &str) -> String {
    format!("{RUN} --set output_dir={output}")
}

/// All that a run must give again to the bit: every model, every file of rows, the report.
fn results(place: &Place, output: &str) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![
        "sft/model/model.safetensors".to_string(),
        "eval/first.jsonl".into(),
    ];
    for iteration in 1..=2 {
        for name in [
            "responses.jsonl",
            "judged.jsonl",
            "pairs.jsonl",
            "heldout.jsonl",
            "model/model.safetensors",
        ] {
            names.push(format!("iteration-{iteration}/{name}"));
        }
    }
    let read = |name: String| (name.clone(), place.bytes(&format!("{output}/{name}")));
    let mut found: Vec<_> = names.into_iter().map(read).collect();
    let report = place
        .read(&format!("{output}/report.json"))
        .replace(output, "");
    found.push(("report.json".into(), report.into_bytes()));
    found
}

fn assert_same(found: Vec<(String, Vec<u8>)>, expected: &[(String, Vec<u8>)]) {
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(
            found == expected,
            "{name} differs from the undisturbed run's"
        );
    }
}

#[test]
fn the_whole_loop() {
    let place = place();
    let line = place.ok_json(&at("out"));
    let iterations = line["iterations"].as_array().unwrap();
    assert_eq!(iterations.len(), 2);
    for (i, entry) in iterations.iter().enumerate() {
        let mut keys: Vec<&String> = entry.as_object().unwrap().keys().collect();
        keys.sort();
        let expected = [
            "checkpoint",
            "iteration",
            "mean_length",
            "win_rate",
            "win_rate_previous",
            "win_rate_se",
        ];
        assert_eq!(keys, expected);
        assert_eq!(entry["iteration"], i + 1);
        for key in ["win_rate", "win_rate_previous"] {
            assert!((0.0..=1.0).contains(&entry[key].as_f64().unwrap()), "{key}");
        }
        let checkpoint = entry["checkpoint"].as_str().unwrap();
        assert!(place.path(checkpoint).join("model.safetensors").is_file());
        let rows = place.rows(&format!("out/iteration-{}/responses.jsonl", i + 1));
        assert_eq!(rows.len(), 6);
        assert!(
            rows.iter()
                .all(|row| row["responses"].as_array().unwrap().len() == 3)
        );
    }
    // Each round has its own prompts.
    let ids = |i: usize| -> Vec<Value> {
        let rows = place.rows(&format!("out/iteration-{i}/responses.jsonl"));
        rows.iter().map(|row| row["prompt_id"].clone()).collect()
    };
    assert!(ids(1).iter().all(|id| !ids(2).contains(id)));
    let report = place.json("out/report.json");
    assert_eq!(report["iterations"].as_array().unwrap().len(), 2);
    assert_eq!(
        report["iterations"][1]["win_rate"],
        iterations[1]["win_rate"]
    );
    assert!(place.read("out/report.md").contains('%'));
    // The configuration that is saved with the run is the run's.
    let resolved = place.ok_json("config --config out/config.toml");
    assert_eq!(
        resolved,
        place.ok_json("config --config run.toml --set output_dir=out")
    );
    // Done again, it finds everything done, also where other settings make no difference.
    let before = results(&place, "out");
    let model = place.path("out/iteration-2/model/model.safetensors");
    let made = fs::metadata(&model).unwrap().modified().unwrap();
    assert_eq!(place.ok_json(&at("out")), line);
    let same = "--set generate.batch=3 --set generate.top_p=0.9 --set sft.checkpoint_every=5 \
                --set judge.rubric.length_unit=words --set train.beta2=0.5 --set eval.top_p=0.5";
    assert_eq!(place.ok_json(&format!("{} {same}", at("out"))), line);
    assert_eq!(fs::metadata(&model).unwrap().modified().unwrap(), made);
    assert_same(results(&place, "out"), &before);
}

/// The page is there at the end, is made again the same, and stands beside another.
#[test]
fn the_page_of_a_run_and_of_two() {
    let place = place();
    let printed = place.ok(&at("out"));
    assert!(
        printed.ends_with("\nTo look at: out/report.html\n"),
        "{printed}"
    );
    let page = place.read("out/report.html");
    for part in [
        "After 2 iterations of self-play",
        "Win rate on held-out prompts",
        "Δ = log π − log π_ref, against its target",
        "Win probabilities, iteration 2",
        "answering held-out prompts",
        "default-src 'none'",
        "length_tolerance = 3.0",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for part in ["<script", "http://", "https://"] {
        assert!(!page.contains(part), "{part}");
    }
    assert_eq!(place.ok("report out"), "out/report.html\n");
    assert_eq!(place.read("out/report.html"), page);
    // Beside another run: in a file of its own, which another page does not replace.
    place.ok(&format!(
        "{} --set train.learning_rate=3e-4 --set iterations=1",
        at("other")
    ));
    assert_eq!(place.ok("report out other"), "comparison.html\n");
    let both = place.read("comparison.html");
    assert!(
        both.contains("train.learning_rate") && both.contains("A: out"),
        "{both}"
    );
    place.ok("report out other");
    place.refused("report other out", &["comparison.html", "--overwrite"]);
    place.ok("report other out --overwrite");
    let line = place.ok_json("report out --out page.html");
    assert_eq!(line["path"], "page.html");
    // What is not a run's, or not ours, stays.
    place.refused(
        "report tokenizer",
        &["tokenizer is no folder of a run", "config.toml"],
    );
    place.write("mine.html", "mine");
    place.refused("report out --out mine.html", &["mine.html"]);
    assert_eq!(place.read("mine.html"), "mine");
    let progress = place.json("out/progress.json");
    assert_eq!(progress["state"], "finished");
    let stages = progress["stages"].as_array().unwrap();
    let names: Vec<&str> = stages
        .iter()
        .filter(|stage| stage["iteration"] == 2)
        .map(|stage| stage["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "generating",
            "judging",
            "reference log-probabilities",
            "training",
            "answering held-out prompts",
            "judging held-out answers"
        ]
    );
}

/// Off a terminal there are lines: of the run itself, and of one that watches it.
#[test]
fn a_run_is_watched() {
    let place = place();
    place.refused("watch nowhere", &["nowhere is no folder"]);
    place.refused("watch tokenizer", &["tokenizer has no progress.json"]);
    let mut child = place.start(&at("out"));
    let metrics = place.path("out/iteration-1/metrics.jsonl");
    assert!(wait_until(&mut child, || metrics.exists()));
    let run = std::thread::spawn(move || child.wait().unwrap());
    let watched = place.ok("watch out");
    assert!(run.join().unwrap().success());
    assert!(watched.starts_with("iteration "), "{watched}");
    assert!(
        watched.contains("iteration 2 of 2: finished\n| iteration |"),
        "{watched}"
    );
    assert_eq!(place.ok_json("watch out")["state"], "finished");
    let ran = place.sppo(&format!("{} --dashboard", at("out")));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("lines instead of a dashboard"),
        "{}",
        ran.stderr
    );
    assert!(!ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
}

#[test]
fn cards_and_event_files_tell_of_the_iterations() {
    let place = place();
    let args = format!("{} --set logging.tensorboard=true", at("out"));
    place.ok(&args);
    let card = |stage: &str| place.read(&format!("out/{stage}/README.md"));
    assert!(card("init").contains("random weights"));
    let sft = card("sft/model");
    assert!(sft.contains("supervised fine-tuning on 40 rows"), "{sft}");
    for i in 1..=2 {
        let card = card(&format!("iteration-{i}/model"));
        for part in [
            &format!("# Llama-SPPO-Iter{i}\n")[..],
            &format!("iteration {i} of [Self-Play Preference Optimization]")[..],
            &format!("| {i}, this model |")[..],
            "rules (`[judge.rubric]`",
            "Answers: 3 a prompt",
            "`prompts.jsonl`, one of 2 parts",
        ] {
            assert!(card.contains(part), "{part}: {card}");
        }
        assert_eq!(card.contains("| 1 |"), i == 2, "{card}");
    }
    for stage in ["", "sft/", "iteration-1/", "iteration-2/"] {
        let folder = place.path(&format!("out/{stage}tensorboard"));
        let files: Vec<_> = fs::read_dir(&folder).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "{}", folder.display());
        assert!(files[0].metadata().unwrap().len() > 0);
    }
    // From the disk alone the same card comes; one that was edited stays when the run is done again.
    let before = card("iteration-1/model");
    place.ok("card --model out/iteration-1/model");
    assert_eq!(card("iteration-1/model"), before);
    place.write("out/iteration-2/model/README.md", "mine");
    place.ok(&args);
    assert_eq!(card("iteration-1/model"), before);
    assert_eq!(card("iteration-2/model"), "mine");
}

#[test]
fn killed_anywhere_it_ends_the_same() {
    let place = place();
    let begun = Instant::now();
    place.ok(&at("whole"));
    let whole = begun.elapsed();
    let expected = results(&place, "whole");
    let mut moments = Moments(11);
    let mut kills = 0;
    // Longer and longer lives, so that every stage is hit and the run still comes to its end.
    for round in 1..=12 {
        let child = place.start(&at("killed"));
        std::thread::sleep(whole.mul_f64(0.02 * f64::from(round)) + moments.pause(whole / 10));
        kills += usize::from(kill(child));
    }
    assert!(kills >= 4, "only {kills} kills hit");
    place.ok(&at("killed"));
    assert_same(results(&place, "killed"), &expected);
}

#[test]
fn ctrl_c_stops_and_the_next_run_goes_on() {
    let place = place();
    place.ok(&at("whole"));
    let expected = results(&place, "whole");
    let stages = [
        "sft/metrics.jsonl",
        "iteration-1/responses.jsonl",
        "iteration-1/metrics.jsonl",
        "iteration-2/responses.jsonl",
    ];
    for stage in stages {
        let path = place.path("stopped").join(stage);
        let mut child = place.start(&at("stopped"));
        assert!(wait_until(&mut child, || path.exists()), "{stage}");
        assert_eq!(interrupt(child), Some(130), "{stage}");
    }
    let report = place.json("stopped/report.json");
    assert_eq!(report["iterations"].as_array().unwrap().len(), 1);
    place.ok(&at("stopped"));
    assert_same(results(&place, "stopped"), &expected);
}

#[test]
fn other_settings_do_the_later_stages_again() {
    let place = place();
    place.ok(&at("out"));
    let before = results(&place, "out");
    place.ok(&format!("{} --set train.learning_rate=3e-4", at("out")));
    let after = results(&place, "out");
    let same = |name: &str| {
        let find =
            |list: &[(String, Vec<u8>)]| list.iter().find(|(n, _)| n == name).unwrap().1.clone();
        find(&before) == find(&after)
    };
    assert!(same("sft/model/model.safetensors") && same("iteration-1/pairs.jsonl"));
    assert!(!same("iteration-1/model/model.safetensors"));
    assert!(!same("iteration-2/model/model.safetensors"));
    // Back again, it is the first run's result.
    place.ok(&at("out"));
    assert_same(results(&place, "out"), &before);
}
