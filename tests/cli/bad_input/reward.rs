//! Folders and rows that the reward judge cannot use.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize};
use serde_json::json;

use super::super::Place;
use super::super::reward::place;
use crate::golden;

const REWARD: &str = "judge --responses responses.jsonl --judge reward --out out.jsonl --model";

/// Writes `score.weight` anew as `dtype`.
fn rewrite_score(place: &Place, dtype: Dtype, data: &[u8]) {
    let bytes = place.bytes("reward/model.safetensors");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let views = file.iter().map(|(name, tensor)| match name {
        "score.weight" => (
            name,
            TensorView::new(dtype, tensor.shape().to_vec(), data).unwrap(),
        ),
        _ => (name, tensor),
    });
    place.write("reward/model.safetensors", serialize(views, None).unwrap());
}

#[test]
fn folders_that_hold_no_reward_model() {
    let place = place();
    place.copy_model("llama");
    let wanted = "a reward judge is a LlamaForSequenceClassification";
    place.refused(
        &format!("{REWARD} llama"),
        &[
            "llama: config.json",
            "architectures",
            "LlamaForCausalLM",
            wanted,
        ],
    );
    let pairrm = golden::path("pairrm");
    place.refused(
        &format!("{REWARD} {}", pairrm.display()),
        &["pairrm: config.json", "architectures", wanted],
    );
    place.refused(&format!("{REWARD} absent"), &["\"absent\" is not a folder"]);
    // What the configuration says, the weights must hold.
    place.edit("llama/config.json", |config| {
        config["architectures"] = json!(["LlamaForSequenceClassification"]);
        config["num_labels"] = json!(1);
    });
    place.refused(
        &format!("{REWARD} llama"),
        &[
            "missing: score.weight [1, 64]",
            "unexpected: lm_head.weight",
        ],
    );
}

#[test]
fn two_labels() {
    let place = place();
    place.edit("reward/config.json", |config| {
        config["id2label"] = json!({"0": "bad", "1": "good"});
    });
    place.refused(
        &format!("{REWARD} reward"),
        &["num_labels = 2 is not supported", "one label"],
    );
    place.edit("reward/config.json", |config| {
        config["id2label"] = json!(null);
    });
    place.refused(
        &format!("{REWARD} reward"),
        &["num_labels = 2", "takes 2 where both are missing"],
    );
}

#[test]
fn weights_of_no_use() {
    let place = place();
    rewrite_score(&place, Dtype::BF16, &[0xc0, 0x7f].repeat(32));
    place.refused(
        &format!("{REWARD} reward"),
        &["tensor score.weight holds NaN or infinity"],
    );
    rewrite_score(&place, Dtype::I16, &[0; 64]);
    place.refused(
        &format!("{REWARD} reward"),
        &["tensor score.weight has dtype I16; known are F32, F16 and BF16"],
    );
}

#[test]
fn no_chat_template() {
    let place = place();
    place.edit("reward/tokenizer_config.json", |config| {
        config["chat_template"] = json!(null);
    });
    place.refused(
        &format!("{REWARD} reward"),
        &["judge.model: ", "reward has no chat template"],
    );
}

#[test]
fn a_response_that_is_too_long() {
    let place = place();
    let row =
        json!({"prompt_id": "long", "prompt": "hi", "responses": ["Fine.", "a ".repeat(2000)]});
    place.write_rows("responses.jsonl", &[row]);
    place.refused(
        &format!("{REWARD} reward"),
        &[
            "prompt_id `long`",
            "response 1",
            "reads at most 512 (max_position_embeddings)",
        ],
    );
    assert!(!fs::exists(place.path("out.jsonl")).unwrap());
}
