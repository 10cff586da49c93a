//! A command onto an output that was made from something else ended with exit code 0: with the old
//! file, or with a file of two models' rows.

use serde_json::{Value, json};

use crate::cli::{Place, golden_pairs};

fn prompts(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": format!("Say {i}.")}))
        .collect()
}

fn responses(count: usize) -> Vec<Value> {
    (0..count)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": "hi", "responses": ["One.", format!("Two {i}. Two.")]}))
        .collect()
}

/// Twice the same has nothing to do; each other command is refused by name, and the file stays;
/// with the flag it is replaced.
fn check(place: &Place, args: &str, out: &str, others: &[(&str, &str)]) {
    place.ok(args);
    let before = place.bytes(out);
    let mark = place.json(&format!("{out}.sppo.json"));
    for key in [
        "program", "format", "begun", "command", "settings", "inputs", "finished",
    ] {
        assert!(!mark[key].is_null(), "{key}: {mark}");
    }
    let again = place.sppo(args);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    for (other, difference) in others {
        let parts = ["was made from something else", difference, "--overwrite"];
        place.refused(other, &parts);
        assert_eq!(place.bytes(out), before, "{other}");
        place.ok(&format!("{other} --overwrite"));
        place.ok(&format!("{args} --overwrite"));
        assert_eq!(place.bytes(out), before, "{other}, and back");
    }
}

#[test]
fn of_generate() {
    let place = Place::with_model();
    place.copy_model("other");
    place.edit("other/generation_config.json", |config| {
        config["eos_token_id"] = json!([424, 17]);
    });
    place.copy_model("template");
    place.write("template/chat_template.jinja", "{{ messages[0].content }}");
    place.write_rows("prompts.jsonl", &prompts(3));
    place.write_rows("fewer.jsonl", &prompts(2));
    let mut changed = prompts(3);
    changed[1]["prompt"] = "Something else.".into();
    place.write_rows("changed.jsonl", &changed);
    let args = "generate --model llama --prompts prompts.jsonl --samples 2 --max-new-tokens 3 --out out.jsonl";
    let with = |more: &str| format!("{args} {more}");
    let (seed, cold) = (with("--seed 1"), with("--temperature 0"));
    let (nucleus, logprobs) = (with("--top-p 0.5"), with("--logprobs"));
    let stops = with("--stop-token-ids 5");
    let (other, template) = (
        args.replace("llama", "other"),
        args.replace("llama", "template"),
    );
    let fewer = args.replace("prompts.jsonl", "fewer.jsonl");
    let changed = args.replace("prompts.jsonl", "changed.jsonl");
    check(
        &place,
        args,
        "out.jsonl",
        &[
            (&seed, "seed: was 0, is 1"),
            (&cold, "temperature: was 0.7, is 0"),
            (&nucleus, "top_p: was 0.9, is 0.5"),
            (&logprobs, "logprobs: was false, is true"),
            (&stops, "stop_token_ids: was the default, is [5]"),
            (&other, "model: was llama ("),
            (&template, "model: was llama ("),
            (&fewer, "prompts: was prompts.jsonl ("),
            (&changed, "prompts: was prompts.jsonl ("),
        ],
    );
    // What changes nothing but the speed is the same, and so are the same prompts elsewhere.
    place.write_rows("copy.jsonl", &prompts(3));
    place.ok(&args.replace("prompts.jsonl", "copy.jsonl"));
    place.ok(&with("--batch 1"));
    // An unfinished one of another making is no more continued than a finished one.
    place.ok(args);
    place.cut("out.jsonl", &place.read("out.jsonl").as_bytes()[..40]);
    place.refused(&with("--seed 1"), &["seed: was 0, is 1"]);
    place.ok(args);
}

#[test]
fn of_score() {
    let place = Place::with_model();
    place.copy_model("other");
    place.edit("other/config.json", |config| {
        config["rms_norm_eps"] = 0.01.into()
    });
    place.write_rows("pairs.jsonl", &golden_pairs());
    place.write_rows("fewer.jsonl", &golden_pairs()[..4]);
    let args = "score --model llama --data pairs.jsonl --out out.jsonl";
    let (other, fewer) = (
        args.replace("llama", "other"),
        args.replace("pairs", "fewer"),
    );
    let rows = format!("{args} --rows official");
    check(
        &place,
        args,
        "out.jsonl",
        &[
            (&other, "model: was llama ("),
            (&fewer, "data: was pairs.jsonl ("),
            (&rows, "rows: was sampled, is official"),
        ],
    );
}

#[test]
fn of_judge_pairs_and_join() {
    let place = Place::new();
    place.write_rows("responses.jsonl", &responses(4));
    place.write_rows("fewer.jsonl", &responses(3));
    let args = "judge --responses responses.jsonl --judge rubric --out judged.jsonl";
    let fewer = args.replace("responses.jsonl", "fewer.jsonl");
    let rules = format!("{args} --set judge.rubric.length_target=9.0");
    let part = format!("{args} --shard 0/2");
    check(
        &place,
        args,
        "judged.jsonl",
        &[
            (&fewer, "responses: was responses.jsonl ("),
            (&rules, "judge.hash: was"),
            (&part, "responses: was responses.jsonl ("),
        ],
    );
    let pairs = "pairs --judged judged.jsonl --out pairs.parquet";
    place.ok(&fewer.replace("judged.jsonl", "other.jsonl"));
    let ties = format!("{pairs} --drop-ties");
    let other = pairs.replace("judged.jsonl", "other.jsonl");
    check(
        &place,
        pairs,
        "pairs.parquet",
        &[
            (&ties, "drop_ties: was false, is true"),
            (&other, "judged: was judged.jsonl ("),
        ],
    );
    place.write_rows("prompts.jsonl", &responses(4));
    place.write_rows("three.jsonl", &responses(3));
    let join = "join --prompts prompts.jsonl --out joined.jsonl responses.jsonl";
    let three = "join --prompts three.jsonl --out joined.jsonl fewer.jsonl";
    check(
        &place,
        join,
        "joined.jsonl",
        &[(three, "prompts: was prompts.jsonl (")],
    );
}

#[test]
fn no_pair_is_left() {
    let place = Place::new();
    let row = json!({"prompt_id": "a", "prompt": "hi", "responses": ["One.", "One."]});
    place.write_rows("responses.jsonl", &[row]);
    place.ok("judge --responses responses.jsonl --judge rubric --out judged.jsonl");
    let parts = ["judged.jsonl: the judge found no difference"];
    place.refused(
        "pairs --judged judged.jsonl --out pairs.jsonl --drop-ties",
        &parts,
    );
    assert!(!place.path("pairs.jsonl").exists());
}
