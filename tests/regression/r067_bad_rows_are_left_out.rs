//! One row that could not be read ended a job of thousands; only prompts that are too long could be
//! left out.

use serde_json::{Value, json};

use crate::cli::{Place, Ran};

const GENERATE: &str = "generate --model llama --prompts prompts.jsonl --samples 2 --seed 3 \
                        --max-new-tokens 4";

/// Four prompts that can be used among six that cannot.
const PROMPTS: &str = r#"{"prompt_id": "a", "prompt": "hi"}
{"prompt_id": "broken", "prompt": "hi
{"prompt_id": "empty", "prompt": ""}
{"prompt_id": "b", "prompt": "a river"}
{"prompt_id": "number", "prompt": 7}
{"prompt_id": "none"}
{"prompt_id": "a", "prompt": "again"}
{"prompt_id": "c", "prompt": "why seven?"}
{"prompt_id": "no", "prompt": "refuse me"}
{"prompt_id": "d", "prompt": "rain"}
"#;

/// A model whose template refuses one text.
fn place() -> Place {
    let place = Place::with_model();
    refuse(&place, "llama", "refuse me");
    place.write("prompts.jsonl", PROMPTS);
    place
}

fn refuse(place: &Place, model: &str, text: &str) {
    place.edit(&format!("{model}/tokenizer_config.json"), |config| {
        let template = config["chat_template"].as_str().unwrap();
        let refuse = format!(
            "{{% if messages[0].content == '{text}' %}}{{{{ raise_exception('refused') }}}}{{% endif %}}"
        );
        config["chat_template"] = format!("{refuse}{template}").into();
    });
}

fn skipped(place: &Place, args: &str, parts: &[&str]) -> Ran {
    let ran = place.sppo(&format!("{args} --on-bad-row skip"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "{part:?} in: {}", ran.stderr);
    }
    ran
}

fn ids(rows: &[Value]) -> Vec<&str> {
    let ids = rows.iter().map(|row| row["prompt_id"].as_str().unwrap());
    ids.collect()
}

#[test]
fn of_prompts() {
    let place = place();
    let stop = [
        "prompts.jsonl: 5 rows cannot be used:",
        "line 2: not a JSON object",
        "line 7",
        "--on-bad-row skip",
    ];
    place.refused(&format!("{GENERATE} --out out.jsonl"), &stop);
    assert!(!place.path("out.jsonl").exists());
    let said = [
        "5 of 10 rows are left out (on_bad_row = skip): prompts.jsonl: 5 rows cannot be used:",
        "line 3: key `prompt`",
        "1 of 5 prompts cannot be used and are left out (on_bad_row = skip): row 9, prompt no: ",
    ];
    skipped(&place, &format!("{GENERATE} --out out.jsonl"), &said);
    let whole = place.rows("out.jsonl");
    assert_eq!(ids(&whole), ["a", "b", "c", "d"]);
    let mark = place.json("out.jsonl.sppo.json");
    assert_eq!(mark["settings"]["on_bad_row"], "skip");
    let again = skipped(&place, &format!("{GENERATE} --out out.jsonl"), &[]);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);

    // The rows are those of a file without the bad ones, and the default leaves no trace.
    let good: Vec<Value> = whole
        .iter()
        .map(|row| json!({"prompt_id": row["prompt_id"], "prompt": row["prompt"]}))
        .collect();
    place.write_rows("good.jsonl", &good);
    place.ok(&format!(
        "{} --out good-out.jsonl",
        GENERATE.replace("prompts.jsonl", "good.jsonl")
    ));
    assert_eq!(place.rows("good-out.jsonl"), whole);
    let mark = place.json("good-out.jsonl.sppo.json");
    assert_eq!(mark["settings"]["on_bad_row"], Value::Null);

    // Shards are parts of the file's rows, the bad ones counted.
    for shard in 0..2 {
        let args = format!("{GENERATE} --out r{shard}.jsonl --shard {shard}/2");
        skipped(&place, &args, &[]);
    }
    assert_eq!(ids(&place.rows("r0.jsonl")), ["a"]);
    assert_eq!(ids(&place.rows("r1.jsonl")), ["b", "c", "d"]);
    let join = "join --prompts prompts.jsonl --out joined.jsonl r0.jsonl r1.jsonl";
    place.refused(join, &["line 2"]);
    skipped(&place, join, &["1 of 5 prompts have no", "prompt_id no"]);
    assert_eq!(place.rows("joined.jsonl"), whole);
}

#[test]
fn but_not_all_of_them_and_not_the_file() {
    let place = place();
    let skip = format!("{GENERATE} --out out.jsonl --on-bad-row skip");
    place.write("prompts.jsonl", "{\"prompt\": 1}\n{}\n");
    place.refused(&skip, &["2 rows cannot be used", "line 1", "line 2"]);
    place.write_rows("prompts.jsonl", &[json!({"prompt": "refuse me"})]);
    place.refused(&skip, &["all 1 prompts are left out", "refused"]);
    // A prompt that is too long is not bad: it has its own key.
    let long = json!({"prompt_id": "long", "prompt": "word ".repeat(600)});
    place.write_rows("prompts.jsonl", &[long, json!({"prompt": "hi"})]);
    place.refused(&skip, &["prompt long has ", "--on-too-long"]);

    let skip = skip.replace("prompts.jsonl", "prompts.parquet");
    place.write("prompts.parquet", "PAR1, and no table");
    place.refused(&skip, &["prompts.parquet: not a readable Parquet file"]);
    let skip = skip.replace("prompts.parquet", "prompts.json");
    place.write("prompts.json", "[{\"prompt\": \"hi\"}, {\"prompt\": \"wh");
    place.refused(&skip, &["prompts.json, line 1: the array does not end"]);
    assert!(!place.path("out.jsonl").exists());
}

#[test]
fn of_pairs_and_sft_rows() {
    let place = place();
    let pair = |id: &str, chosen: u32| {
        json!({"prompt_id": id, "prompt_ids": [5, 6], "chosen_ids": [chosen], "rejected_ids": [8],
               "chosen_probs": 0.7, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.3})
    };
    let mut bare = pair("bare", 3);
    bare.as_object_mut().unwrap().remove("chosen_probs_win");
    let rows = [
        pair("a", 7),
        json!({"prompt_id": "none"}),
        pair("outside", 9999),
        bare,
        pair("b", 9),
    ];
    place.write_rows("pairs.jsonl", &rows);
    let score = "score --model llama --data pairs.jsonl --out scores.jsonl";
    let said = [
        "1 of 5 rows are left out",
        "line 2: ",
        "pairs.jsonl: 1 of 4 rows are left out (on_bad_row = skip): row 3, prompt_id outside",
    ];
    skipped(&place, score, &said);
    assert_eq!(place.rows("scores.jsonl").len(), 3);

    place.write(
        "train.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\nbatch_size = 2\n",
    );
    let train = "train --config train.toml";
    place.refused(train, &["line 2", "--on-bad-row skip"]);
    let said = [
        "line 2: ",
        "1 of 4 rows are left out (on_bad_row = skip): pairs.jsonl, row 4: key `chosen_probs_win`",
        "row 3, prompt_id outside",
    ];
    skipped(&place, train, &said);
    let metrics = place.rows("out/metrics.jsonl");
    assert_eq!(metrics.len(), 1);
    let mark = place.json("out/training.sppo.json");
    assert_eq!(mark["settings"]["on_bad_row"], "skip");

    let sft = [
        json!({"prompt": "a river", "response": "rain"}),
        json!({"prompt": "a river"}),
        json!({"prompt": "refuse me", "response": "rain"}),
    ];
    place.write_rows("sft.jsonl", &sft);
    let args = "sft --config train.toml --set output_dir=tuned --set sft.data=sft.jsonl";
    let said = ["1 of 3 rows are left out", "line 2", "row 3"];
    skipped(&place, args, &said);
}

#[test]
fn of_responses_and_judged_rows() {
    let place = Place::new();
    let row = |id: &str, responses: &[&str]| json!({"prompt_id": id, "prompt": "p", "responses": responses});
    let rows = [
        row("a", &["A river.", "rain"]),
        json!({"prompt_id": "none", "prompt": "p"}),
        row("one", &["alone"]),
        row("b", &["rain", "A river."]),
    ];
    place.write_rows("responses.jsonl", &rows);
    place.write_rows(
        "scores.jsonl",
        &["a", "b", "none"].map(|id| json!({"prompt_id": id, "rm_scores": [1, 2]})),
    );
    let judge =
        "judge --responses responses.jsonl --judge scores --scores scores.jsonl --out judged.jsonl";
    let said = ["line 2", "row 3, prompt_id `one`"];
    skipped(&place, judge, &said);
    assert_eq!(ids(&place.rows("judged.jsonl")), ["a", "b"]);

    let mut judged = place.rows("judged.jsonl");
    judged.insert(1, json!({"prompt_id": "bad", "responses": ["x", "y"]}));
    let mut alone = judged[0].clone();
    alone["prompt_id"] = "alone".into();
    alone["responses"] = json!(["x"]);
    alone["rm_scores"] = json!([1]);
    alone["probability"] = json!([[0.5]]);
    judged.push(alone);
    place.write_rows("mine.jsonl", &judged);
    let pairs = "pairs --judged mine.jsonl --out pairs.jsonl";
    place.refused(pairs, &["line 2", "--on-bad-row skip"]);
    skipped(&place, pairs, &["line 2", "row 4, prompt_id `alone`"]);
    assert_eq!(ids(&place.rows("pairs.jsonl")), ["a", "b"]);
}

#[test]
fn of_held_out_prompts() {
    let place = place();
    place.copy_model("other");
    refuse(&place, "other", "rain");
    place.write("eval.toml", "[eval]\nmax_new_tokens = 4\n");
    let eval = "eval --config eval.toml --model llama --against other --prompts prompts.jsonl --out compared";
    place.refused(eval, &["prompts.jsonl: 5 rows cannot be used"]);
    let said = [
        "row 9, prompt no: ",
        "row 10, prompt d: ",
        // `no` is refused by the one, `d` by the other.
        "2 prompts are answered by one of the models only and are left out",
    ];
    let ran = skipped(&place, eval, &said);
    assert!(ran.stdout.contains("over 3 prompts"), "{}", ran.stdout);
}

#[cfg(unix)]
#[test]
fn and_the_report_counts_them() {
    let place = crate::cli::run::place();
    let mut prompts = place.read("prompts.jsonl");
    prompts.insert_str(0, "{\"prompt\": \"\"}\n");
    let long = json!({"prompt": "word ".repeat(200)});
    prompts.push_str(&format!("[1]\n{long}\n"));
    place.write("prompts.jsonl", prompts);
    place.write(
        "heldout.jsonl",
        format!("{{}}\n{}", place.read("heldout.jsonl")),
    );
    place.write("sft.jsonl", format!("7\n{}", place.read("sft.jsonl")));
    let run = "run --config run.toml --set output_dir=out --set prompts.on_too_long=skip";
    place.refused(run, &["prompts.jsonl: 2 rows cannot be used"]);
    skipped(&place, run, &[]);
    let report = place.json("out/report.json");
    let left_out = json!({"train": 2, "heldout": 1, "sft": 1});
    assert_eq!(report["left_out"], left_out);
    let counts =
        |answered, long| json!({"answered": answered, "unusable": 0, "too_long": long, "cut": 0});
    assert_eq!(report["heldout"], counts(8, 0));
    // 12 good prompts and the long one.
    assert_eq!(report["iterations"][0]["prompts"], counts(6, 0));
    assert_eq!(report["iterations"][1]["prompts"], counts(6, 1));
    assert_eq!(report["iterations"][0]["left_out"], 0);
    let text = place.read("out/report.md");
    for part in [
        "2 rows of prompts.train could not be used and are left out.",
        "1 rows of prompts.heldout",
        "1 rows of sft.data",
        "Iteration 2: prompts: 6 answered, 0 left out because they cannot be used, 1 because they are too long; 0 cut.",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    // The same rows are left the second time.
    let first = place.bytes("out/iteration-1/responses.jsonl");
    let ran = skipped(&place, run, &[]);
    assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
    assert!(place.bytes("out/iteration-1/responses.jsonl") == first);
    assert_eq!(place.json("out/report.json"), report);
}
