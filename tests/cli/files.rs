//! generate → judge → pairs → score → eval and config, from files to files.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Place, golden_pairs};
use crate::close::assert_close;
use crate::golden;

const GREEDY: &str = "generate --model llama --prompts prompts.jsonl --samples 1 --temperature 0 --max-new-tokens 16";
const SAMPLED: &str = "generate --model llama --prompts prompts.jsonl --samples 3 --temperature 0.9 --top-p 0.9 \
                       --max-new-tokens 12 --seed 5";

/// Prompts of many lengths, some of several turns.
fn prompts() -> Vec<Value> {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let mut rows: Vec<Value> = (0..9)
        .map(|i| {
            let text = "explain the winter light ".repeat(1 + i * i % 5);
            json!({"prompt_id": format!("p{i}"), "prompt": format!("{text}{i}"), "reference": "yes"})
        })
        .collect();
    rows.push(json!({"prompt_id": "chat", "prompt": [
        turn("system", "be slow"), turn("user", "hello"), turn("assistant", "yes?"), turn("user", "Париж 2024")
    ]}));
    rows.push(json!({"prompt_id": "alpaca", "instruction": "add", "input": "3.14"}));
    rows.push(json!({"prompt_id": "messages", "messages": [turn("user", "hello"), turn("assistant", "no")]}));
    rows
}

fn place() -> Place {
    let place = Place::with_model();
    place.write_rows("prompts.jsonl", &prompts());
    place
}

fn by_id(rows: Vec<Value>) -> BTreeMap<String, Value> {
    let count = rows.len();
    let id = |row: &Value| row["prompt_id"].as_str().unwrap().to_string();
    let map: BTreeMap<_, _> = rows.into_iter().map(|row| (id(&row), row)).collect();
    assert_eq!(map.len(), count);
    map
}

#[test]
fn greedy_answers() {
    let place = place();
    let line = place.ok_json(&format!("{GREEDY} --out out.jsonl"));
    assert_eq!(line["path"], "out.jsonl");
    let rows = place.rows("out.jsonl");
    let ids: Vec<&Value> = rows.iter().map(|row| &row["prompt_id"]).collect();
    let given = prompts();
    assert_eq!(
        ids,
        given
            .iter()
            .map(|row| &row["prompt_id"])
            .collect::<Vec<_>>()
    );
    assert_eq!(rows[0]["reference"], "yes");
    assert_eq!(
        rows[0]["prompt"],
        json!([{"role": "user", "content": "explain the winter light 0"}])
    );
    assert_eq!(rows[10]["prompt"][0]["content"], "add\n\n3.14");
    assert_eq!(
        rows[11]["prompt"],
        json!([{"role": "user", "content": "hello"}])
    );
    for row in &rows {
        for key in ["responses", "finish_reasons", "tokens"] {
            assert_eq!(row[key].as_array().unwrap().len(), 1, "{key}");
        }
        let tokens = row["tokens"][0].as_u64().unwrap();
        match row["finish_reasons"][0].as_str().unwrap() {
            "length" => assert_eq!(tokens, 16),
            reason => assert!(reason == "stop" && tokens <= 16),
        }
    }
    // Greedy has one answer, whatever the seed.
    place.ok(&format!("{GREEDY} --out seed.jsonl --seed 9"));
    assert_eq!(place.read("seed.jsonl"), place.read("out.jsonl"));
    assert!(
        rows.iter()
            .any(|row| row["responses"][0] != rows[0]["responses"][0])
    );
}

#[test]
fn samples_depend_on_the_seed_only() {
    let place = place();
    place.ok(&format!("{SAMPLED} --out whole.jsonl"));
    let whole = place.read("whole.jsonl");
    for batch in [1, 2, 7, 64] {
        place.ok(&format!(
            "{SAMPLED} --batch {batch} --out batch{batch}.jsonl"
        ));
        assert_eq!(
            place.read(&format!("batch{batch}.jsonl")),
            whole,
            "batch {batch}"
        );
    }
    let expected = by_id(place.rows("whole.jsonl"));
    for part in 0..2 {
        place.ok(&format!(
            "{SAMPLED} --shard {part}/2 --out shard{part}.jsonl"
        ));
    }
    let mut shards = place.rows("shard0.jsonl");
    assert_eq!(shards.len(), 6);
    shards.extend(place.rows("shard1.jsonl"));
    assert_eq!(by_id(shards), expected);
    let mut reversed = prompts();
    reversed.reverse();
    place.write_rows("prompts.jsonl", &reversed);
    place.ok(&format!("{SAMPLED} --out reversed.jsonl"));
    assert_eq!(by_id(place.rows("reversed.jsonl")), expected);
    place.ok(&format!(
        "{} --out seed.jsonl",
        SAMPLED.replace("--seed 5", "--seed 6")
    ));
    assert_ne!(by_id(place.rows("seed.jsonl")), expected);
    let first = &expected["p0"]["responses"];
    assert!(first[0] != first[1] || first[1] != first[2], "{first}");
}

#[test]
fn a_torn_output_is_continued() {
    let place = place();
    let args = format!("{SAMPLED} --batch 6 --out out.jsonl");
    place.ok(&args);
    let whole = place.read("out.jsonl");
    // Within the first row, within a later one, between two rows, and none.
    let after_third = whole.match_indices('\n').nth(2).unwrap().0 + 1;
    for (keep, torn) in [
        (20, true),
        (after_third + 30, true),
        (after_third, false),
        (0, false),
    ] {
        place.cut("out.jsonl", &whole.as_bytes()[..keep]);
        let ran = place.sppo(&args);
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert_eq!(
            ran.stderr.contains("torn last line dropped"),
            torn,
            "{}",
            ran.stderr
        );
        assert_eq!(place.read("out.jsonl"), whole, "{keep} bytes kept");
    }
}

#[test]
fn parquet_rows_are_those_of_lines() {
    let place = place();
    place.ok(&format!("{SAMPLED} --out out.jsonl"));
    place.ok(&format!("{SAMPLED} --out out.parquet"));
    for kind in ["jsonl", "parquet"] {
        place.ok(&format!(
            "judge --responses out.{kind} --judge rubric --out judged-{kind}.jsonl"
        ));
    }
    assert_eq!(
        place.read("judged-parquet.jsonl"),
        place.read("judged-jsonl.jsonl")
    );
    assert!(!place.path("out.parquet.partial.jsonl").exists());
}

/// Responses and scores of the golden probability tables.
fn golden_scores() -> (Vec<Value>, Vec<Value>) {
    let cases = golden::json("probabilities.json");
    let cases = cases.as_array().unwrap().iter().enumerate();
    cases
        .map(|(i, case)| {
            let count = case["rm_scores"].as_array().unwrap().len();
            let responses: Vec<String> = (0..count).map(|k| format!("r{i}.{k}")).collect();
            let id = format!("case-{i}");
            (
                json!({"prompt_id": id, "prompt": "p", "responses": responses}),
                json!({"prompt_id": id, "rm_scores": case["rm_scores"]}),
            )
        })
        .unzip()
}

#[test]
fn golden_probabilities_from_scores_to_pairs() {
    let place = Place::new();
    let (responses, mut scores) = golden_scores();
    place.write_rows("responses.jsonl", &responses);
    scores.reverse();
    place.write_rows("scores.jsonl", &scores);
    let judge =
        "judge --responses responses.jsonl --judge scores --scores scores.jsonl --out judged.jsonl";
    assert_eq!(place.ok_json(judge)["path"], "judged.jsonl");
    let line = place.ok_json("pairs --judged judged.jsonl --out pairs.jsonl");
    assert_eq!(line["path"], "pairs.jsonl");
    let (judged, pairs) = (place.rows("judged.jsonl"), place.rows("pairs.jsonl"));
    let golden = golden::json("probabilities.json");
    let golden = golden.as_array().unwrap();
    assert_eq!((judged.len(), pairs.len()), (golden.len(), golden.len()));
    for ((case, judged), pair) in golden.iter().zip(&judged).zip(&pairs) {
        let scores = golden::numbers(&case["rm_scores"]);
        assert_eq!(golden::numbers(&judged["rm_scores"]), scores);
        for (row, expected) in judged["probability"]
            .as_array()
            .unwrap()
            .iter()
            .zip(case["probability"].as_array().unwrap())
        {
            for (p, q) in golden::numbers(row).iter().zip(golden::numbers(expected)) {
                assert!((p - q).abs() < 1e-12, "{p}, expected {q}");
            }
        }
        for side in ["chosen", "rejected"] {
            let expected = json!([{"role": "assistant", "content": case[side]}]);
            assert_eq!(pair[side], expected);
        }
        for key in ["chosen_probs", "chosen_probs_win", "chosen_probs_lose"] {
            let (found, expected) = (pair[key].as_f64().unwrap(), case[key].as_f64().unwrap());
            assert!(
                (found - expected).abs() < 1e-12,
                "{key}: {found}, expected {expected}"
            );
        }
    }
    // From judged rows that hold the golden matrix itself.
    let mut given = judged;
    for (row, case) in given.iter_mut().zip(golden) {
        row["probability"] = case["probability"].clone();
    }
    place.write_rows("given.jsonl", &given);
    place.ok("pairs --judged given.jsonl --out given-pairs.jsonl");
    for (pair, case) in place.rows("given-pairs.jsonl").iter().zip(golden) {
        assert_eq!(pair["chosen_probs"].as_f64(), case["chosen_probs"].as_f64());
        for key in ["chosen_probs_win", "chosen_probs_lose"] {
            let (found, expected) = (pair[key].as_f64().unwrap(), case[key].as_f64().unwrap());
            assert!(
                (found - expected).abs() < 1e-15,
                "{key}: {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn ties_are_kept_or_dropped() {
    let place = Place::new();
    let rows =
        ["a", "b"].map(|id| json!({"prompt_id": id, "prompt": "p", "responses": ["x", "y"]}));
    place.write_rows("responses.jsonl", &rows);
    let scores = [("a", [1.0, 1.0]), ("b", [1.0, 2.0])]
        .map(|(id, s)| json!({"prompt_id": id, "rm_scores": s}));
    place.write_rows("scores.jsonl", &scores);
    place.ok(
        "judge --responses responses.jsonl --judge scores --scores scores.jsonl --out judged.jsonl",
    );
    place.ok("pairs --judged judged.jsonl --out kept.jsonl");
    assert_eq!(place.rows("kept.jsonl").len(), 2);
    place.ok("pairs --judged judged.jsonl --out left.jsonl --drop-ties");
    let left = place.rows("left.jsonl");
    assert_eq!(left.len(), 1);
    assert_eq!(
        (&left[0]["prompt_id"], &left[0]["chosen"][0]["content"]),
        (&json!("b"), &json!("y"))
    );
}

#[test]
fn the_rubric_ranks_by_its_rules() {
    let place = Place::new();
    let row = json!({
        "prompt_id": "a", "prompt": "Is snow white?", "reference": "Yes, snow is white.",
        "responses": ["well well well well well well", "Yes, snow is white.", "Yes, snow is"],
        "finish_reasons": ["length", "stop", "length"],
    });
    place.write_rows("responses.jsonl", &[row]);
    place.write(
        "c.toml",
        "[judge.rubric]\nlength_target = 4.0\nlength_tolerance = 2.0\nsimilarity_weight = 2.0\n\
         forbidden = [{ pattern = '(?i)\\bwell\\b', weight = 1.0 }]\n",
    );
    place.ok("judge --responses responses.jsonl --judge rubric --config c.toml --out judged.jsonl");
    let judged = place.rows("judged.jsonl");
    let scores = golden::numbers(&judged[0]["rm_scores"]);
    assert!(scores[1] > scores[2] && scores[2] > scores[0], "{scores:?}");
    let table = judged[0]["probability"].as_array().unwrap();
    for (i, row) in table.iter().enumerate() {
        for (j, p) in golden::numbers(row).into_iter().enumerate() {
            let expected = 1.0 / (1.0 + (scores[j] - scores[i]).exp());
            assert!((p - expected).abs() < 1e-12);
        }
    }
    assert_eq!(judged[0]["judge"]["kind"], "rubric");
}

#[test]
fn judging_goes_on_where_it_stopped() {
    let place = Place::new();
    let (responses, _) = golden_scores();
    place.write_rows("responses.jsonl", &responses);
    let judge = "judge --responses responses.jsonl --judge rubric --out judged.jsonl";
    place.ok(judge);
    let whole = place.read("judged.jsonl");
    place.cut("judged.jsonl", &whole.as_bytes()[..whole.len() / 2]);
    place.ok(judge);
    assert_eq!(place.read("judged.jsonl"), whole);
}

#[test]
fn golden_log_probabilities() {
    let place = Place::with_model();
    place.write_rows("pairs.jsonl", &golden_pairs());
    let score = "score --model llama --data pairs.jsonl";
    let line = place.ok_json(&format!("{score} --out scores.jsonl"));
    assert_eq!(line["path"], "scores.jsonl");
    let rows = place.rows("scores.jsonl");
    let run = &golden::json("training_runs.json")["runs"][0];
    for side in ["chosen", "rejected"] {
        let steps = run["steps"].as_array().unwrap()[..4].iter();
        let expected = steps.flat_map(|s| golden::numbers(&s[format!("reference_{side}_logps")]));
        let found = rows
            .iter()
            .map(|row| row[format!("{side}_logps")].as_f64().unwrap());
        let pairs: Vec<(f64, f64)> = found.zip(expected).collect();
        assert_eq!(pairs.len(), 16);
        for (found, expected) in pairs {
            assert_close(found, expected, 1e-3, side);
        }
    }
    for batch in [1, 3] {
        place.ok(&format!("{score} --out batch{batch}.jsonl --batch {batch}"));
        for (a, b) in place.rows(&format!("batch{batch}.jsonl")).iter().zip(&rows) {
            for key in ["chosen_logps", "rejected_logps"] {
                assert_close(
                    a[key].as_f64().unwrap(),
                    b[key].as_f64().unwrap(),
                    1e-4,
                    key,
                );
            }
        }
    }
    // Continued behind whole batches, to the byte.
    let whole = place.read("scores.jsonl");
    let middle = whole.match_indices('\n').nth(7).unwrap().0 + 10;
    place.cut("scores.jsonl", &whole.as_bytes()[..middle]);
    place.ok(&format!("{score} --out scores.jsonl"));
    assert_eq!(place.read("scores.jsonl"), whole);
}

#[test]
fn a_cut_score_file_ends_the_same_wherever_it_was_cut() {
    let place = Place::with_model();
    place.write_rows("pairs.jsonl", &golden_pairs());
    let score = "score --model llama --data pairs.jsonl --out scores.jsonl --batch 4";
    place.ok(score);
    let whole = place.read("scores.jsonl");
    for rows in [1, 3, 6] {
        let end = whole.match_indices('\n').nth(rows - 1).unwrap().0 + 1;
        place.cut("scores.jsonl", &whole.as_bytes()[..end]);
        place.ok(score);
        assert_eq!(place.read("scores.jsonl"), whole, "{rows} rows kept");
    }
}

/// Text rows scored as `official` are the official trainer's token rows scored as they are.
#[test]
fn golden_official_rows_are_what_is_scored() {
    let place = Place::with_model();
    let cases = golden::json("official_rows.json");
    let cases = cases.as_array().unwrap();
    let limits = (&cases[0]["max_length"], &cases[0]["max_prompt_length"]);
    let cases: Vec<&Value> = cases
        .iter()
        .filter(|c| (&c["max_length"], &c["max_prompt_length"]) == limits)
        .collect();
    assert!(cases.len() > 2);
    let text = cases.iter().map(|case| {
        json!({"prompt": case["user"], "chosen": case["chosen"], "rejected": case["rejected"]})
    });
    place.write_rows("text.jsonl", &text.collect::<Vec<_>>());
    // Each side by itself: the prompts' ids may differ.
    let side = |case: &Value, side: &str| {
        let ids = golden::ids(&case[format!("{side}_input_ids")]);
        let labels = golden::numbers(&case[format!("{side}_labels")]);
        let start = labels.iter().position(|&l| l != -100.0).unwrap();
        json!({"prompt_ids": ids[..start], "chosen_ids": ids[start..], "rejected_ids": ids[start..]})
    };
    for name in ["chosen", "rejected"] {
        let rows: Vec<Value> = cases.iter().map(|case| side(case, name)).collect();
        place.write_rows(&format!("{name}.jsonl"), &rows);
        place.ok(&format!(
            "score --model llama --data {name}.jsonl --out {name}-logps.jsonl --batch 1"
        ));
    }
    let limits = format!("--max-length {} --max-prompt-length {}", limits.0, limits.1);
    place.ok(&format!(
        "score --model llama --data text.jsonl --out logps.jsonl --rows official --batch 1 {limits}"
    ));
    let found = place.rows("logps.jsonl");
    for name in ["chosen", "rejected"] {
        let key = format!("{name}_logps");
        for (row, alone) in found.iter().zip(place.rows(&format!("{name}-logps.jsonl"))) {
            let (a, b) = (row[&key].as_f64().unwrap(), alone[&key].as_f64().unwrap());
            assert_close(a, b, 1e-4 * (1.0 + b.abs()), &key);
        }
    }
}

#[test]
fn a_model_against_itself_and_another() {
    let place = place();
    place.copy_model("other");
    // Other answers from the same weights.
    place.edit("other/config.json", |c| c["rope_theta"] = 10.0.into());
    place.write(
        "c.toml",
        "output_dir = \"out\"\n[eval]\nmax_new_tokens = 12\n[prompts]\nheldout = \"prompts.jsonl\"\n",
    );
    let same = place.ok_json("eval --model llama --against llama --config c.toml");
    assert_eq!(same["win_rate"], 0.5);
    assert_eq!(same["win_rate_se"], 0.0);
    assert_eq!(same["prompts"], 12);
    let eval = "eval --config c.toml --prompts prompts.jsonl --out answers";
    let one = place.ok_json(&format!("{eval} --model llama --against other"));
    let turned = place.ok_json(&format!("{eval} --model other --against llama"));
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap();
    assert!((number(&one, "win_rate") + number(&turned, "win_rate") - 1.0).abs() < 1e-12);
    let errors = number(&one, "win_rate_se") - number(&turned, "win_rate_se");
    assert!(errors.abs() < 1e-12 && number(&one, "win_rate_se") > 0.0);
    assert_eq!(one["mean_length"], turned["mean_length_against"]);
    assert!(number(&one, "mean_length") > 0.0);
    let controlled = number(&one, "length_controlled_win_rate");
    assert!((0.0..=1.0).contains(&controlled));
    let limited = place.ok_json(&format!(
        "{eval} --model llama --against other --set eval.prompts=5"
    ));
    assert_eq!(limited["prompts"], 5);
}

#[test]
fn the_configuration_that_is_printed_loads_again() {
    let place = Place::new();
    place.write("documented.toml", place.ok("config"));
    let documented = place.ok_json("config --config documented.toml");
    let defaults = place.ok_json("config --set seed=42");
    assert_eq!(documented, defaults);
    place.write(
        "own.toml",
        "seed = 7\n[model]\npath = \"m\"\n[train]\neta = 8.0\nloss = \"sigmoid\"\nmax_grad_norm = 1\n\
         [judge.rubric]\nlength_target = 3.5\nrequired = [{ pattern = 'a\"b', weight = 2.0 }]\n",
    );
    let own =
        place.ok("config --config own.toml --set train.epochs=3 --set generate.temperature=1");
    place.write("resolved.toml", &own);
    assert_eq!(place.ok("config --config resolved.toml"), own);
    let values = place.ok_json("config --config resolved.toml");
    assert_eq!(values["seed"], 7);
    assert_eq!(values["train"]["beta"], 0.125);
    assert_eq!(values["train"]["loss"], "dpo");
    assert_eq!(values["train"]["epochs"], 3);
    assert_eq!(values["judge"]["rubric"]["required"][0]["pattern"], "a\"b");
    let keys = place.ok_json("config --keys");
    assert!(
        keys.as_array()
            .unwrap()
            .iter()
            .any(|section| section["name"] == "train")
    );
}

#[test]
fn what_is_printed_can_be_overridden() {
    let place = Place::new();
    place.write("my.toml", place.ok("config"));
    place.write(
        "one.toml",
        place.ok("config --config my.toml --set train.eta=8"),
    );
    for file in ["my.toml", "one.toml"] {
        let ran = place.sppo(&format!(
            "config --config {file} --set train.eta=100 --json"
        ));
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let told = format!("--set train.eta takes the place of train.beta, {file} line ");
        assert!(ran.stderr.contains(&told), "{}", ran.stderr);
        let values: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!(values["train"]["beta"], 0.01);
        for set in [
            "train.warmup_steps=5",
            "model.path=m",
            "model.init.tokenizer=t",
            "judge.kind=pairrm --set judge.model=m",
        ] {
            place.ok(&format!("config --config {file} --set {set}"));
        }
    }
    place.write(
        "rules.toml",
        "[judge.rubric]\nlength_target = 3\nending_weight = 2\n",
    );
    let ran = place.sppo("config --config rules.toml --set judge.kind=reward --set judge.model=m");
    let told = "--set judge.kind = \"reward\" leaves judge.rubric.ending_weight and the like, \
                rules.toml line 3, unused";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("length_target = 120.0"),
        "{}",
        ran.stdout
    );
}

#[test]
fn every_command_has_help_with_examples() {
    let place = Place::new();
    let all = place.ok("--help");
    let listed = all.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| !line.is_empty());
    // A description that goes on below its command is indented further.
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<&str> = names
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(names.len() > 12, "{all}");
    for command in names.into_iter().filter(|name| *name != "help") {
        let help = place.ok(&format!("{command} --help"));
        assert!(
            help.contains("Examples:") && help.contains(&format!("sppo {command}")),
            "{help}"
        );
    }
    assert_eq!(
        place.ok("--version"),
        format!("sppo {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn only_results_go_to_stdout() {
    let place = place();
    let ran = place.sppo(&format!("{GREEDY} --out out.jsonl"));
    assert_eq!(ran.stdout, "out.jsonl\n");
    assert!(
        ran.stderr.contains("generating: 12/12 prompts"),
        "{}",
        ran.stderr
    );
    let ran = place.sppo(&format!("{GREEDY} --out quiet.jsonl --quiet"));
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str()),
        ("quiet.jsonl\n", "")
    );
}

/// `sppo pairs` replaces pairs and nothing else.
#[test]
fn pairs_do_not_replace_other_files() {
    let place = Place::with_model();
    let rows = [serde_json::json!({
        "prompt_id": "a", "prompt": "hello", "responses": ["x", "y"],
        "rm_scores": [1.0, 0.0], "probability": [[0.5, 0.7], [0.3, 0.5]],
    })];
    place.write_rows("judged.jsonl", &rows);
    place.refused(
        "pairs --judged judged.jsonl --out judged.jsonl",
        &["judged.jsonl is there and is not this program's"],
    );
    assert_eq!(place.rows("judged.jsonl").len(), 1);
    place.ok("pairs --judged judged.jsonl --out pairs.parquet");
    place.ok("pairs --judged judged.jsonl --out pairs.parquet");
}
