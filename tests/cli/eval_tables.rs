//! `sppo eval leaderboard`, `sppo eval winrate` and the files of `sppo generate --format`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::Place;

fn fixture(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/winrate")
        .join(name)
        .display()
        .to_string()
}

fn expected(case: &str) -> Value {
    let text = fs::read_to_string(fixture("expected.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["cases"][case].clone()
}

/// Within a thousandth of a percentage point.
#[track_caller]
fn close(found: &Value, expected: &Value) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((found - expected).abs() < 1e-3, "{found} is not {expected}");
}

#[test]
fn the_numbers_are_alpaca_evals() {
    let place = Place::new();
    let (rows, gamed) = (fixture("plain_120.json"), fixture("df_gamed.csv"));
    let args = format!("eval winrate --annotations {rows} --gamed {gamed}");
    let found = place.ok_json(&args);
    let expected = expected("plain_120.json");
    for key in [
        "win_rate",
        "standard_error",
        "discrete_win_rate",
        "length_controlled_winrate",
        "lc_standard_error",
        "n_wins",
    ] {
        close(&found[key], &expected[key]);
    }
    assert_eq!(found["annotator"], "synthetic_judge");
    assert_eq!(found["length_control"], "length_controlled_v1");
    assert!(
        found["df_gamed"]["path"]
            .as_str()
            .unwrap()
            .ends_with("df_gamed.csv")
    );
    let text = place.ok(&args);
    for part in [
        "policy against reference, judged by synthetic_judge",
        "win rate                     57.62   standard error 2.44",
        "discrete win rate            63.33",
        "length-controlled (LC)       54.50   standard error 0.36   length_controlled_v1 with",
        "120   76 won, 44 lost, 0 ties",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn without_the_gamed_file_no_number_is_called_length_controlled() {
    let place = Place::new();
    let rows = fixture("missing_60.json");
    let ran = place.sppo(&format!("eval winrate --annotations {rows} --json"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let last = ran.stdout.lines().last().unwrap();
    let found: Value = serde_json::from_str(last).unwrap();
    for key in ["length_controlled_winrate", "lc_standard_error"] {
        assert!(found.get(key).is_none(), "{key}");
    }
    let text = ran.stdout.replace(last, "");
    assert!(
        !text.contains("LC") && !text.contains("length-controlled ("),
        "{text}"
    );
    close(
        &found["length_controlled_minimal"],
        &expected("missing_60.json")["minimal"],
    );
    for part in [
        "length_controlled_minimal",
        "not the leaderboard's number",
        "sppo download hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv",
        "51   23 won, 28 lost, 0 ties; 9 rows have no preference",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn the_gamed_file_is_found_in_the_cache() {
    let place = Place::new();
    let snapshot = "hub/datasets--tatsu-lab--alpaca_eval/snapshots/abc";
    fs::create_dir_all(place.path(snapshot)).unwrap();
    fs::copy(
        fixture("df_gamed.csv"),
        place.path(&format!("{snapshot}/df_gamed.csv")),
    )
    .unwrap();
    let mut command = place.command("eval winrate --json --annotations");
    command
        .arg(fixture("all_300.jsonl"))
        .env("HF_HOME", place.path(""));
    let output = command.output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let found: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    close(
        &found["length_controlled_winrate"],
        &expected("all_300.jsonl")["length_controlled_winrate"],
    );
}

#[test]
fn bad_annotations_are_refused() {
    let place = Place::new();
    let good = json!({"instruction": "a", "output_1": "x", "output_2": "y", "annotator": "j",
        "generator_1": "b", "generator_2": "m", "preference": 1.5});
    let with = |key: &str, value: Value| {
        let mut row = good.clone();
        row[key] = value;
        Value::from(vec![good.clone(), row]).to_string()
    };
    for (text, parts) in [
        (
            with("preference", json!(3)),
            ["row 2", "`preference` must be a number from 1"],
        ),
        (
            with("preference", json!("1")),
            ["row 2", "found the string \"1\""],
        ),
        (
            with("output_2", json!(7)),
            ["row 2", "`output_2` must be a string"],
        ),
        (
            with("generator_2", json!("n\u{1b}[2J")),
            ["`generator_2` has 2 values", "n\\u{1b}[2J"],
        ),
        (
            with("index", json!(-1)),
            ["row 2", "`index` must be a whole number"],
        ),
        ("[]".into(), ["holds no rows", "annotations"]),
        (String::new(), ["holds no rows", "annotations"]),
        (
            r#"[{"instruction": "a""#.into(),
            ["a.json", "is the file cut off?"],
        ),
        (
            r#"[{"instruction": "a", "output": "x"}]"#.into(),
            ["none of its 1 rows has a `preference`", "not outputs"],
        ),
        (
            r#"[{"preference": NaN}]"#.into(),
            ["`preference`", "JSON has no NaN"],
        ),
    ] {
        place.write("a.json", text);
        place.refused("eval winrate --annotations a.json", &parts);
    }
    fs::create_dir(place.path("d.json")).unwrap();
    place.refused(
        "eval winrate --annotations d.json",
        &["d.json", "directory"],
    );
    place.refused("eval winrate --annotations none.json", &["none.json"]);
    place.write("a.json", Value::from(vec![good]).to_string());
    place.write("g.csv", "a,b\n");
    place.refused(
        "eval winrate --annotations a.json --gamed g.csv",
        &["g.csv", "column `index` is missing"],
    );
    place.write("r.json", "[{\"instruction\": \"a\"}]");
    place.refused(
        "eval winrate --annotations a.json --reference r.json",
        &["r.json", "`output` is missing"],
    );
}

/// One task's results, as lm_eval lays them down.
fn results(task: &str, key: &str, value: f64, shots: u64) -> Value {
    let error = key.replacen(',', "_stderr,", 1);
    json!({
        "results": {task: {"alias": task, key: value, error: 0.0125}},
        "n-shot": {task: shots},
        "n-samples": {task: {"original": 10, "effective": 10}},
        "config": {"model": "local-completions", "model_args": {"model": "my-model"}},
        "model_name": "my-model", "lm_eval_version": "0.4.13", "chat_template": null,
    })
}

#[test]
fn tables_name_what_is_missing_and_what_differs() {
    let place = Place::new();
    fs::create_dir_all(place.path("out/my-model")).unwrap();
    let put =
        |name: &str, value: Value| place.write(&format!("out/my-model/{name}"), value.to_string());
    put(
        "results_2026-01-01T00-00-00.1.json",
        results("arc_challenge", "acc_norm,none", 0.5, 25),
    );
    put(
        "results_2026-01-02T00-00-00.1.json",
        results("arc_challenge", "acc_norm,none", 0.61, 25),
    );
    put(
        "results_2026-01-03T00-00-00.1.json",
        results("gsm8k", "exact_match,strict-match", 0.4, 0),
    );
    put(
        "results_2026-01-04T00-00-00.1.json",
        results("leaderboard_musr_team_allocation", "acc_norm,none", 0.5, 0),
    );
    put("other.json", json!({"a": 1}));
    let text = place.ok("eval leaderboard --results out");
    for part in [
        "my-model, by lm_eval 0.4.13, 4 files of results",
        "ARC-c (25-shot)          61.00 ± 1.25",
        "HellaSwag (10-shot)          –   missing: hellaswag",
        "missing: mmlu_abstract_algebra, mmlu_anatomy, mmlu_astronomy, mmlu_business_ethics and 53 more",
        "GSM8K (5-shot)           40.00 ± 1.25   gsm8k has 0 shots, not 5",
        "1 of 3 tasks are there; missing: leaderboard_musr_murder_mysteries, leaderboard_musr_object_placements",
        "Average                      –   not all scores are there",
        "arc_challenge: out/my-model/results_2026-01-02T00-00-00.1.json is the newest of 2 files and counts",
        "Open LLM Leaderboard v1, no chat template",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let found = place.ok_json("eval leaderboard --results out");
    assert_eq!(found["v1"]["rows"][0]["score"], 61.0);
    assert_eq!(found["v1"]["average"], Value::Null);
    assert_eq!(
        found["v2"]["rows"][4]["missing"].as_array().unwrap().len(),
        2
    );
    assert_eq!(found["replaced"][0]["task"], "arc_challenge");
    // One file alone is a folder of one.
    let one =
        place.ok_json("eval leaderboard --results out/my-model/results_2026-01-01T00-00-00.1.json");
    assert_eq!(one["v1"]["rows"][0]["score"], 50.0);
}

#[test]
fn bad_results_are_refused() {
    let place = Place::new();
    fs::create_dir(place.path("out")).unwrap();
    place.refused(
        "eval leaderboard --results out",
        &["out: no results of lm_eval here", "--output_path"],
    );
    place.refused("eval leaderboard --results none", &["none"]);
    place.write("out/results_a.json", "{\"results\": {\"arc_ch");
    place.refused(
        "eval leaderboard --results out",
        &["out/results_a.json", "is no JSON", "cut off"],
    );
    let mut one = results("arc_challenge", "acc_norm,none", 0.5, 25);
    place.write("out/results_a.json", one.to_string());
    one["model_name"] = json!("other");
    place.write("out/results_b.json", one.to_string());
    place.refused(
        "eval leaderboard --results out",
        &[
            "results of 2 models",
            "my-model (out/results_a.json)",
            "other (out/results_b.json)",
        ],
    );
    fs::remove_file(place.path("out/results_b.json")).unwrap();
    place.edit("out/results_a.json", |value| {
        value["results"]["arc_challenge"]["acc_norm,none"] = json!("50 %");
    });
    place.refused(
        "eval leaderboard --results out",
        &["`results.arc_challenge.acc_norm,none` must be a number from 0 to 1, found \"50 %\""],
    );
}

#[test]
fn a_comparison_asks_for_its_models_as_ever() {
    let place = Place::new();
    place.refused("eval", &["--model <DIR>", "--against <DIR>"]);
    place.refused("eval leaderboard", &["--results <DIR>"]);
    place.refused(
        "eval --model a leaderboard --results out",
        &["cannot be used with"],
    );
    assert!(place.ok("eval winrate --help").contains("Examples:"));
    assert!(place.ok("eval leaderboard --help").contains("Examples:"));
}

fn prompts(place: &Place) {
    let rows = [
        json!({"instruction": "Say one", "dataset": "helpful_base", "uid": "u1"}),
        json!({"instruction": "Say two", "uid": "u2"}),
        json!({"prompt": "Say three", "uid": 3}),
    ];
    place.write("prompts.json", Value::from(rows.to_vec()).to_string());
}

const MAKE: &str = "generate --model llama --prompts prompts.json --max-new-tokens 6 --seed 3";

#[test]
fn answers_for_alpaca_eval() {
    let place = Place::with_model();
    prompts(&place);
    let args = format!("{MAKE} --format alpaca-eval --out outputs.json");
    let ran = place.sppo(&args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("2 of 3 prompts have no `dataset`"),
        "{}",
        ran.stderr
    );
    let found = place.json("outputs.json");
    place.ok(&format!("{MAKE} --samples 1 --out rows.jsonl"));
    let rows = place.rows("rows.jsonl");
    for (i, (dataset, instruction)) in [
        ("helpful_base", "Say one"),
        ("alpaca_eval", "Say two"),
        ("alpaca_eval", "Say three"),
    ]
    .iter()
    .enumerate()
    {
        let output = &rows[i]["responses"][0];
        let expected = json!({"dataset": dataset, "instruction": instruction, "output": output,
            "generator": "llama"});
        assert_eq!(found[i], expected);
    }
    // The same again, and what was made otherwise.
    let before = place.bytes("outputs.json");
    let again = place.sppo(&args);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    place.refused(
        &format!("{args} --model-name other"),
        &[
            "outputs.json was made from something else",
            "model_name: was llama, is other",
        ],
    );
    assert_eq!(place.bytes("outputs.json"), before);
    place.ok(&format!("{args} --model-name other --overwrite"));
    assert_eq!(place.json("outputs.json")[0]["generator"], "other");
    assert_eq!(
        place.json("outputs.json")[0]["output"],
        rows[0]["responses"][0]
    );
    // Somebody else's file.
    place.write("mine.json", "[]");
    place.refused(
        &format!("{MAKE} --format alpaca-eval --out mine.json --overwrite"),
        &["mine.json is there and is not this program's"],
    );
    assert_eq!(place.read("mine.json"), "[]");
}

#[test]
fn answers_go_on_where_they_stopped() {
    let place = Place::with_model();
    prompts(&place);
    let args = format!("{MAKE} --format alpaca-eval --out outputs.json");
    place.ok(&args);
    let expected = place.bytes("outputs.json");
    let rows = ".outputs.rows.jsonl";
    let whole = place.bytes(rows);
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // A kill behind the first row, before the answers were written.
    fs::remove_file(place.path("outputs.json")).unwrap();
    place.cut(rows, &whole[..first + 20]);
    place.ok(&args);
    assert_eq!(place.bytes("outputs.json"), expected);
    assert_eq!(place.bytes(rows), whole);
    // Bytes that somebody changed are not passed off as ours.
    place.write("outputs.json", "[{}]");
    place.refused(&args, &["outputs.json", "when it was finished"]);
}

#[test]
fn answers_for_arena_hard() {
    let place = Place::with_model();
    prompts(&place);
    fs::create_dir(place.path("model_answer")).unwrap();
    place.ok(&format!(
        "{MAKE} --format arena-hard --out model_answer/my-llama.jsonl --model-name my-llama"
    ));
    // arena-hard-auto reads every *.jsonl of the folder.
    let names = fs::read_dir(place.path("model_answer")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let shown: Vec<String> = names
        .filter(|name| name.ends_with(".jsonl") && !name.starts_with('.'))
        .collect();
    assert_eq!(shown, ["my-llama.jsonl"]);
    let rows = place.rows("model_answer/my-llama.jsonl");
    let responses = place.rows("model_answer/.my-llama.rows.jsonl");
    assert_eq!(rows.len(), 3);
    for (i, (row, response)) in rows.iter().zip(&responses).enumerate() {
        assert_eq!(row["uid"], ["u1", "u2", "3"][i]);
        assert_eq!(row["model"], "my-llama");
        assert_eq!(row["ans_id"].as_str().unwrap().len(), 22);
        assert!(row["tstamp"].as_f64().unwrap() > 1.7e9);
        let turns = row["messages"].as_array().unwrap();
        let asked = ["Say one", "Say two", "Say three"][i];
        assert_eq!(turns[0], json!({"role": "user", "content": asked}));
        let answer = json!({"role": "assistant", "content": {"answer": response["responses"][0]}});
        assert_eq!(turns[1], answer);
        let stop = u64::from(response["finish_reasons"][0] == "stop");
        let tokens = response["tokens"][0].as_u64().unwrap() - stop;
        let metadata = row["metadata"].as_object().unwrap();
        assert_eq!(metadata["token_len"], tokens);
        let keys: Vec<&String> = metadata.keys().collect();
        assert_eq!(
            keys,
            ["token_len", "header_count", "list_count", "bold_count"]
        );
    }
}

#[test]
fn what_has_no_place_in_a_format_is_refused() {
    let place = Place::with_model();
    prompts(&place);
    let refused = |args: &str, parts: &[&str]| place.refused(&format!("{MAKE} {args}"), parts);
    refused(
        "--format alpaca-eval --samples 5 --out o.json",
        &["--samples 5", "give --samples 1"],
    );
    refused(
        "--format alpaca-eval --shard 0/2 --out o.json",
        &["--shard"],
    );
    refused(
        "--format alpaca-eval --out o.jsonl",
        &["o.jsonl", "writes a .json file"],
    );
    refused(
        "--format arena-hard --out o.json",
        &["o.json", "writes a .jsonl file"],
    );
    refused("--model-name x --out o.jsonl", &["--model-name"]);
    refused("--format alpaca --out o.json", &["alpaca-eval"]);
    let rows = [
        json!({"prompt": "no uid"}),
        json!({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}], "uid": "u"}),
    ];
    place.write("prompts.json", Value::from(rows.to_vec()).to_string());
    refused(
        "--format alpaca-eval --out o.json",
        &["row 2 is a conversation"],
    );
    refused(
        "--format arena-hard --out o.jsonl",
        &["row 1 has no `uid`", "question.jsonl"],
    );
    assert!(!place.path(".o.rows.jsonl").exists());
}
