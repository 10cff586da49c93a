//! Row files, judges and outputs that are refused.

use std::fs;

use serde_json::{Value, json};

use super::super::{Place, golden_pairs};
use super::{GENERATE, JUDGE, SCORE, TRAIN, with_pairs, with_prompt, with_responses};

#[test]
fn prompt_files_that_are_absent_empty_or_of_another_kind() {
    let place = Place::with_model();
    let generate = format!("{GENERATE} llama");
    place.refused(&generate, &["prompts.jsonl: cannot read it: No such file"]);
    place.write("prompts.jsonl", "");
    place.refused(
        &generate,
        &["prompts.jsonl: holds no rows (prompts expected)"],
    );
    place.write("prompts.jsonl", "\n\n");
    place.refused(&generate, &["prompts.jsonl: holds no rows"]);
    for name in ["prompts.csv", "prompts"] {
        place.write(name, "x");
        let parts = [name, "the name must end in .jsonl or .parquet"];
        place.refused(&generate.replace("prompts.jsonl", name), &parts);
    }
    place.write("prompts.parquet", "PAR1 but no more");
    place.refused(
        &generate.replace("prompts.jsonl", "prompts.parquet"),
        &["prompts.parquet: "],
    );
}

#[test]
fn rows_that_are_malformed() {
    let generate = format!("{GENERATE} llama");
    for (second, parts) in [
        ("{\"prompt\": \"x\"", ["line 2: not a JSON object", "EOF"]),
        ("[1, 2]", ["line 2: not a JSON object", "found a list"]),
        ("{\"prompt\": NaN}", ["line 2", "JSON has no NaN"]),
        (
            "{\"text\": \"x\"}",
            [
                "line 2: key `prompt` is missing",
                "`instruction` or `messages`",
            ],
        ),
        (
            "{\"prompt\": 3}",
            [
                "line 2: key `prompt` must be a string or a list of messages",
                "found the number 3",
            ],
        ),
        (
            "{\"prompt\": \"\"}",
            ["line 2: key `prompt`", "found an empty string"],
        ),
        (
            "{\"prompt\": [{\"role\": \"user\"}]}",
            [
                "line 2: key `prompt[0].content` must be a string",
                "found nothing",
            ],
        ),
        (
            "{\"prompt\": \"x\", \"prompt_id\": \"a\"}",
            [
                "prompt_id `a` stands at line 1 and again at line 2",
                "must be unique",
            ],
        ),
    ] {
        let place = Place::with_model();
        let first = "{\"prompt\": \"hello\", \"prompt_id\": \"a\"}";
        place.write(
            "prompts.jsonl",
            format!("{first}\n{second}\n{{\"prompt\": \"y\"}}\n"),
        );
        place.refused(&generate, &parts);
        place.refused(&generate, &["prompts.jsonl"]);
    }
}

#[test]
fn a_torn_last_line_is_dropped_with_a_warning() {
    let place = with_prompt();
    let whole = place.read("prompts.jsonl");
    place.write(
        "prompts.jsonl",
        format!("{whole}{{\"prompt_id\": \"b\", \"pro"),
    );
    let ran = place.sppo(&format!("{GENERATE} llama"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("WARN"), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("prompts.jsonl, line 2: torn last line dropped"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.rows("out.jsonl").len(), 1);
}

#[test]
fn a_prompt_that_is_too_long() {
    let place = Place::with_model();
    let long = "word ".repeat(600);
    let rows = [
        json!({"prompt": "hi"}),
        json!({"prompt_id": "long-one", "prompt": long}),
    ];
    place.write_rows("prompts.jsonl", &rows);
    let parts = [
        "prompt long-one has ",
        "tokens, which leaves no room in the model's context of 512",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn pairs_without_the_probabilities_of_the_loss() {
    let place = with_pairs(|rows| {
        rows[3].as_object_mut().unwrap().remove("chosen_probs_lose");
    });
    let parts = [
        "pairs.jsonl, row 4: key `chosen_probs_lose` is missing",
        "the loss `sppo` needs it",
        "pair-3",
    ];
    place.refused(TRAIN, &parts);
}

#[test]
fn pairs_with_probabilities_that_are_none() {
    for (value, part) in [
        (
            json!(1.5),
            "key `chosen_probs_win` must be a number from 0 to 1, found 1.5",
        ),
        (
            json!(-0.1),
            "key `chosen_probs_win` must be a number from 0 to 1, found -0.1",
        ),
        (
            json!("NaN"),
            "key `chosen_probs_win` must be a finite number, found the string \"NaN\"",
        ),
    ] {
        let place = with_pairs(|rows| rows[1]["chosen_probs_win"] = value);
        place.refused(TRAIN, &["pairs.jsonl, line 2", part]);
    }
    let place = with_pairs(|_| {});
    let text =
        place
            .read("pairs.jsonl")
            .replacen("\"chosen_probs\":", "\"chosen_probs\":NaN,\"x\":", 1);
    place.write("pairs.jsonl", text);
    place.refused(
        TRAIN,
        &["pairs.jsonl, line 1: not a JSON object", "JSON has no NaN"],
    );
}

#[test]
fn pairs_that_the_model_cannot_take() {
    let place = with_pairs(|rows| rows[2]["chosen_ids"] = json!([5, 426]));
    let parts = ["row 3, prompt_id pair-2: token id 426 is outside the model's vocabulary of 426"];
    place.refused(TRAIN, &parts);
    place.refused(SCORE, &parts);
    let place = with_pairs(|rows| rows[0]["rejected_ids"] = json!(vec![7; 600]));
    let parts = [
        "row 1, prompt_id pair-0: ",
        "has 605 tokens, the model's context 512; lower train.max_length",
    ];
    place.refused(TRAIN, &parts);
    place.refused(SCORE, &parts);
    let parts = [
        "row 1, prompt_id pair-0: ",
        "rejected response have 605 ids together; max_length is 500",
    ];
    place.refused(
        &format!("{SCORE} --max-length 500 --max-prompt-length 100"),
        &parts,
    );
    let place = with_pairs(|rows| rows[0]["chosen_ids"] = json!([]));
    place.refused(TRAIN, &["line 1: key `chosen_ids`", "found an empty list"]);
    let place = with_pairs(|rows| rows[0]["chosen_ids"] = json!([-1]));
    place.refused(
        TRAIN,
        &["line 1: key `chosen_ids[0]` must be an integer from 0"],
    );
}

#[test]
fn outputs_that_cannot_be_written() {
    let place = with_prompt();
    place.write("file", "");
    let below = "generate --model llama --prompts prompts.jsonl --out file/out.jsonl";
    place.refused(below, &["cannot make file: "]);
    fs::create_dir(place.path("folder.jsonl")).unwrap();
    let folder = "generate --model llama --prompts prompts.jsonl --out folder.jsonl";
    place.refused(folder, &["folder.jsonl is there and is not this program's"]);
    let place = with_pairs(|_| {});
    place.write("file", "");
    place.refused(
        &format!("{TRAIN} --set output_dir=file"),
        &["file", "cannot make"],
    );
    place.refused(
        &format!("{TRAIN} --set output_dir=file/below"),
        &["file/below", "cannot make"],
    );
}

#[test]
fn outputs_that_hold_other_work() {
    let place = with_prompt();
    let generate = format!("{GENERATE} llama");
    place.ok(&generate);
    let other = "out.jsonl was made from something else:";
    let help = "give --overwrite to replace it, or write elsewhere";
    let parts = [other, "samples: was 2, is 3", help];
    place.refused(&generate.replace("--samples 2", "--samples 3"), &parts);
    place.write_rows("prompts.jsonl", &[json!({"prompt_id": "b", "prompt": "x"})]);
    place.refused(&generate, &[other, "prompts: was prompts.jsonl (", help]);

    let place = with_pairs(|_| {});
    place.ok(SCORE);
    place.write_rows("pairs.jsonl", &golden_pairs()[..3]);
    place.refused(SCORE, &[other, "data: was pairs.jsonl (", help]);

    let place = with_responses();
    place.ok(&format!("{JUDGE} rubric"));
    let args = format!("{JUDGE} rubric --set judge.rubric.length_target=9.0");
    place.refused(&args, &[other, "judge.hash: was", help]);
}

#[test]
fn judges_that_there_are_not() {
    let place = with_responses();
    let parts = [
        "is not one of pairrm, reward, rubric, http, scores",
        "did you mean rubric?",
    ];
    place.refused(&format!("{JUDGE} rubrik"), &parts);
    place.refused(&format!("{JUDGE} scores"), &["--scores <FILE>"]);
    let args = format!("{JUDGE} rubric --model llama");
    let part = "judge.model is given but judge.kind is \"rubric\"";
    place.refused(&args, &[part]);
}

#[test]
fn rubrics_that_make_no_sense() {
    let place = with_responses();
    let judge = format!("{JUDGE} rubric --config c.toml");
    for (rules, parts) in [
        (
            "lenght_target = 3.0",
            [
                "c.toml line 2: unknown key judge.rubric.lenght_target",
                "did you mean judge.rubric.length_target?",
            ],
        ),
        (
            "length_target = \"x\"",
            [
                "c.toml line 2: judge.rubric.length_target must be a finite number",
                "found the string \"x\"",
            ],
        ),
        (
            "required = [{ pattern = '(a', weight = 1.0 }]",
            [
                "c.toml line 2: judge.rubric.required[0].pattern",
                "not a regular expression: unclosed group",
            ],
        ),
        (
            "forbidden = [{ pattern = 'a', weight = -1.0 }]",
            [
                "c.toml line 2: judge.rubric.forbidden[0].weight",
                "found -1",
            ],
        ),
        (
            "temperature = 0.0",
            [
                "c.toml line 2: judge.rubric.temperature",
                "must be a number above 0, found 0",
            ],
        ),
        (
            "ending_weight = 0.0\nlength_weight = 0.0\nrepetition_weight = 0.0",
            ["judge.rubric.", "all weights are 0"],
        ),
    ] {
        place.write("c.toml", format!("[judge.rubric]\n{rules}\n"));
        place.refused(&judge, &parts);
    }
}

#[test]
fn a_rubric_that_needs_references() {
    let place = with_responses();
    let args = format!("{JUDGE} rubric --set judge.rubric.similarity_weight=1.0");
    place.refused(&args, &["prompt_id `a`", "similarity_weight", "reference"]);
}

#[test]
fn scores_that_do_not_fit() {
    let place = with_responses();
    let judge = format!("{JUDGE} scores --scores scores.jsonl");
    for (row, parts) in [
        (
            json!({"prompt_id": "b", "rm_scores": [1, 2]}),
            ["prompt_id `a`", "scores.jsonl has no scores for it"],
        ),
        (
            json!({"prompt_id": "a", "rm_scores": [1, 2, 3]}),
            [
                "prompt_id `a`",
                "`rm_scores` is for 3 responses, but the row has 2",
            ],
        ),
        (
            json!({"prompt_id": "a"}),
            ["scores.jsonl, line 1", "`rm_scores` or `comparison_logits`"],
        ),
        (
            json!({"rm_scores": [1, 2]}),
            [
                "scores.jsonl, line 1: key `prompt_id` is missing",
                "joined to the responses",
            ],
        ),
        (
            json!({"prompt_id": "a", "comparison_logits": [[0, 1], [1]]}),
            [
                "scores.jsonl, line 1: key `comparison_logits[1]`",
                "the matrix is square",
            ],
        ),
    ] {
        place.write_rows("scores.jsonl", &[row]);
        place.refused(&judge, &parts);
    }
    let row = |id: &str| json!({"prompt_id": id, "rm_scores": [1, 2]});
    place.write_rows("scores.jsonl", &[row("a"), row("z")]);
    let parts = ["prompt_id `z`", "but there are no responses to it"];
    place.refused(&judge, &parts);
    place.write(
        "scores.jsonl",
        "{\"prompt_id\": \"a\", \"rm_scores\": [NaN, 1]}\n",
    );
    place.refused(&judge, &["scores.jsonl", "JSON has no NaN"]);
    fs::remove_file(place.path("scores.jsonl")).unwrap();
    place.refused(&judge, &["scores.jsonl: cannot read it"]);
}

#[test]
fn judged_rows_that_make_no_pairs() {
    let row = |responses: Value, scores: Value, probability: Value| json!({"prompt_id": "a", "prompt": "p", "responses": responses, "rm_scores": scores, "probability": probability});
    for (row, parts) in [
        (
            row(json!(["x"]), json!([1]), json!([[0.5]])),
            ["prompt_id `a`", "a pair needs at least two"],
        ),
        (
            row(json!(["x", "y"]), json!([1]), json!([[0.5]])),
            ["line 1: key `rm_scores`", "2 long, one for each response"],
        ),
        (
            row(
                json!(["x", "y"]),
                json!([1, 2]),
                json!([[0.5, 2], [0, 0.5]]),
            ),
            ["line 1: key `probability[0][1]`", "from 0 to 1, found 2"],
        ),
        (
            json!({"prompt": "p", "responses": ["x", "y"]}),
            [
                "line 1: key `rm_scores` is missing",
                "sppo judge writes them",
            ],
        ),
    ] {
        let place = Place::new();
        place.write_rows("judged.jsonl", &[row]);
        place.refused("pairs --judged judged.jsonl --out pairs.jsonl", &parts);
    }
}
