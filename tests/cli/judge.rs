//! `sppo judge` with a PairRM: files in and out, parts, and going on after a stop.

use serde_json::{Value, json};

use super::Place;
use crate::close::assert_close;
use crate::golden::{self, numbers};

const JUDGE: &str = "judge --responses responses.jsonl --judge pairrm --model pairrm";

/// The tiny PairRM of the golden cases as `pairrm`, its cases as `responses.jsonl`.
fn with_pairrm() -> (Place, Vec<Value>) {
    let place = Place::new();
    place.copy_golden("pairrm");
    let cases = golden::json("pairrm/expected.json");
    let cases = cases.as_array().unwrap().clone();
    let rows = cases.iter().enumerate().map(|(i, case)| {
        json!({"prompt_id": format!("p{i}"), "prompt": case["source"], "responses": case["candidates"]})
    });
    place.write_rows("responses.jsonl", &rows.collect::<Vec<_>>());
    (place, cases)
}

#[track_caller]
fn close(found: &Value, expected: &Value) {
    let (found, expected) = (numbers(found), numbers(expected));
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(&expected) {
        assert_close(*a, *b, 1e-4, "score");
    }
}

#[test]
fn pairrm_from_file_to_file() {
    let (place, cases) = with_pairrm();
    place.ok(&format!("{JUDGE} --out judged.jsonl"));
    let judged = place.rows("judged.jsonl");
    assert_eq!(judged.len(), cases.len());
    for (row, case) in judged.iter().zip(&cases) {
        close(&row["rm_scores"], &case["scores"]);
        let logits = case["comparison_logits"].as_array().unwrap();
        for (found, expected) in row["comparison_logits"]
            .as_array()
            .unwrap()
            .iter()
            .zip(logits)
        {
            close(found, expected);
        }
        let scores = numbers(&row["rm_scores"]);
        let p = 1.0 / (1.0 + (scores[1] - scores[0]).exp());
        assert!((row["probability"][0][1].as_f64().unwrap() - p).abs() < 1e-12);
        let judge = &row["judge"];
        assert_eq!(
            (&judge["kind"], &judge["probability"]),
            (&json!("pairrm"), &json!("scores"))
        );
        assert_eq!(
            (&judge["temperature"], &judge["precision"]),
            (&json!(1.0), &json!("f32"))
        );
    }
}

#[test]
fn parts_and_stops_change_nothing() {
    let (place, _) = with_pairrm();
    place.ok(&format!("{JUDGE} --out whole.jsonl"));
    let whole = place.read("whole.jsonl");
    for i in 0..2 {
        place.ok(&format!(
            "{JUDGE} --out part{i}.jsonl --shard {i}/2 --set judge.batch_tokens=64"
        ));
    }
    let parts = [place.rows("part0.jsonl"), place.rows("part1.jsonl")];
    for (i, row) in place.rows("whole.jsonl").iter().enumerate() {
        let part = &parts[i % 2][i / 2];
        assert_eq!(row["prompt_id"], part["prompt_id"]);
        close(&row["rm_scores"], &part["rm_scores"]);
    }
    // Two whole rows, and a third that was being written.
    let end = whole.match_indices('\n').nth(1).unwrap().0 + 30;
    place.cut_as("whole.jsonl", "torn.jsonl", &whole[..end]);
    place.ok(&format!("{JUDGE} --out torn.jsonl"));
    assert_eq!(place.read("torn.jsonl"), whole);
}

#[test]
fn messages_reach_the_judge_by_the_template() {
    let (place, _) = with_pairrm();
    place.copy_model("llama");
    let chat = golden::json("llama/expected.json")["chat"][0].clone();
    let row = |prompt: &Value| json!({"prompt_id": "a", "prompt": prompt, "responses": ["rust answer", "why slow?", "maybe"]});
    place.write_rows("responses.jsonl", &[row(&chat["prompt"])]);
    place.ok(&format!("{JUDGE} --out text.jsonl"));
    place.write_rows("responses.jsonl", &[row(&chat["messages"])]);
    place.ok(&format!(
        "{JUDGE} --out messages.jsonl --chat-template llama"
    ));
    let (text, messages) = (place.rows("text.jsonl"), place.rows("messages.jsonl"));
    assert_eq!(
        text[0]["comparison_logits"],
        messages[0]["comparison_logits"]
    );
}

#[test]
fn identical_responses_and_the_estimate() {
    let (place, _) = with_pairrm();
    let responses = ["rust answer", "why slow?", "rust answer", "maybe"];
    let row = json!({"prompt_id": "a", "prompt": "play the what?", "responses": responses});
    place.write_rows("responses.jsonl", &[row]);
    let estimate =
        "--set judge.probability=comparisons --set judge.temperature=0.5 --set judge.samples=2";
    place.ok(&format!("{JUDGE} --out judged.jsonl {estimate}"));
    let judged = &place.rows("judged.jsonl")[0];
    let logits: Vec<Vec<f64>> =
        serde_json::from_value(judged["comparison_logits"].clone()).unwrap();
    assert_eq!((logits[0][1], logits[1][0]), (logits[2][1], logits[1][2]));
    let p: Vec<Vec<f64>> = serde_json::from_value(judged["probability"].clone()).unwrap();
    assert!((p[0][2] - 0.5).abs() < 1e-12);
    let won = |x: f64| 1.0 / (1.0 + (-x / 0.5).exp());
    let expected = (won(logits[0][1]) + won(-logits[1][0])) / 2.0;
    assert!((p[0][1] - expected).abs() < 1e-12);
    assert_eq!(judged["judge"]["samples"], 2);
    place.ok("pairs --judged judged.jsonl --out pairs.jsonl");
    let scores = numbers(&judged["rm_scores"]);
    let best = (0..4)
        .reduce(|a, b| if scores[b] > scores[a] { b } else { a })
        .unwrap();
    let win = place.rows("pairs.jsonl")[0]["chosen_probs_win"]
        .as_f64()
        .unwrap();
    assert!((win - (p[best][0] + p[best][1]) / 2.0).abs() < 1e-12);
}

#[test]
fn folders_that_are_no_pairrm() {
    let (place, _) = with_pairrm();
    place.copy_model("llama");
    let judge = "judge --responses responses.jsonl --out out.jsonl --judge pairrm";
    place.refused(judge, &["judge.model"]);
    place.refused(
        &format!("{judge} --model llama"),
        &[
            "model_type = \"llama\" is not supported",
            "needs a PairRM folder",
        ],
    );
    let judge = format!("{judge} --model pairrm");
    let broken = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let before = place.read("pairrm/config.json");
        place.edit("pairrm/config.json", change);
        place.refused(&judge, parts);
        place.write("pairrm/config.json", before);
    };
    broken(
        &|config| config["cand1_prefix_id"] = json!(99),
        &["cand1_prefix_id is 99", "<|candidate1|> is 204"],
    );
    broken(
        &|config| config["pos_att_type"] = json!(["c2p"]),
        &["pos_att_type", "expected c2p and p2c"],
    );
    broken(
        &|config| config["conv_kernel_size"] = json!(3),
        &["conv_kernel_size = 3"],
    );
    broken(
        &|config| config["num_hidden_layers"] = json!(2),
        &["unexpected: pretrained_model.encoder.layer.2"],
    );
    broken(
        &|config| config["hidden_size"] = json!(96),
        &["wrong shape: head_layer.1.weight is [48, 96], expected [96, 192]"],
    );
    broken(
        &|config| config["vocab_size"] = json!(100),
        &["vocab_size is 100"],
    );
    let tokenizer = place.read("pairrm/tokenizer.json");
    let unknown = tokenizer.replace("<|candidate2|>", "<|candidate3|>");
    place.write("pairrm/tokenizer.json", unknown);
    place.refused(&judge, &["no token <|candidate2|>, so it is not PairRM's"]);
    place.write("pairrm/tokenizer.json", tokenizer);
    let weights = place.bytes("pairrm/model.safetensors");
    place.write("pairrm/model.safetensors", &weights[..weights.len() / 2]);
    place.refused(&judge, &["pairrm/model.safetensors", "truncated"]);
    let mut nan = weights.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    place.write("pairrm/model.safetensors", nan);
    place.refused(&judge, &["holds NaN or infinity"]);
}

#[test]
fn rows_that_cannot_be_compared() {
    let (place, _) = with_pairrm();
    let judge = format!("{JUDGE} --out out.jsonl");
    let refused = |row: Value, parts: &[&str]| {
        let good = json!({"prompt_id": "good", "prompt": "what?", "responses": ["rust", "why"]});
        place.write_rows("responses.jsonl", &[good, row]);
        place.refused(&judge, parts);
        assert!(
            !place.path("out.jsonl").exists(),
            "refused before the first row"
        );
    };
    refused(
        json!({"prompt_id": "a", "prompt": "what?", "responses": ["one"]}),
        &[
            "prompt_id `a`",
            "it has 1 response(s), and comparing needs two",
        ],
    );
    refused(
        json!({"prompt_id": "a", "prompt": "what?", "responses": []}),
        &["responses"],
    );
    let messages = json!([{"role": "user", "content": "what?"}]);
    refused(
        json!({"prompt_id": "a", "prompt": messages, "responses": ["one", "two"]}),
        &["prompt_id `a`", "a list of messages", "--chat-template DIR"],
    );
    place.refused(
        &format!("{judge} --set judge.batch_tokens=0"),
        &["judge.batch_tokens must be 1 or more"],
    );
    place.refused(
        &format!("{judge} --set judge.samples=3"),
        &["judge.samples = 3"],
    );
    place.refused(&format!("{judge} --chat-template nowhere"), &["nowhere"]);
    // An empty text is a response like any other.
    let row = json!({"prompt_id": "a", "prompt": "what?", "responses": ["", "two"]});
    place.write_rows("responses.jsonl", &[row]);
    place.ok(&judge);
}
