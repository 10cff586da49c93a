//! Model folders that cannot be used.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize};
use serde_json::{Value, json};

use super::super::Place;
use super::{GENERATE, SCORE, with_prompt};

type Tensor = (String, Vec<usize>, Vec<u8>);

/// Writes the golden weights anew, as one file, after `change`.
fn rewrite_weights(place: &Place, change: impl FnOnce(&mut Vec<Tensor>)) {
    let mut tensors: Vec<Tensor> = Vec::new();
    for shard in [
        "llama/model-00001-of-00002.safetensors",
        "llama/model-00002-of-00002.safetensors",
    ] {
        let bytes = place.bytes(shard);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        tensors.extend(file.iter().map(|(name, tensor)| {
            (
                name.to_string(),
                tensor.shape().to_vec(),
                tensor.data().to_vec(),
            )
        }));
        fs::remove_file(place.path(shard)).unwrap();
    }
    fs::remove_file(place.path("llama/model.safetensors.index.json")).unwrap();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, data)| {
        (
            name,
            TensorView::new(Dtype::BF16, shape.clone(), data).unwrap(),
        )
    });
    place.write("llama/model.safetensors", serialize(views, None).unwrap());
}

fn tensor<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    tensors.iter_mut().find(|(n, ..)| n == name).unwrap()
}

#[test]
fn a_model_that_is_nowhere() {
    let place = with_prompt();
    place.refused(
        &format!("{GENERATE} absent"),
        &[
            "model \"absent\" is not a folder",
            "give a checkpoint folder or a Hugging Face repository id",
        ],
    );
    place.refused(
        &format!("{GENERATE} org/absent"),
        &[
            "there is no folder org/absent",
            "models--org--absent",
            "sppo download org/absent",
        ],
    );
}

#[test]
fn a_folder_without_a_model() {
    let place = with_prompt();
    fs::create_dir(place.path("empty")).unwrap();
    let parts = ["empty/config.json", "a model folder needs a config.json"];
    place.refused(&format!("{GENERATE} empty"), &parts);
    fs::copy(
        place.path("llama/config.json"),
        place.path("empty/config.json"),
    )
    .unwrap();
    let parts = ["empty holds neither model.safetensors nor model.safetensors.index.json"];
    place.refused(&format!("{GENERATE} empty"), &parts);
}

#[test]
fn configs_of_other_models() {
    let config = "llama/config.json";
    let model = format!("{GENERATE} llama");
    let place = with_prompt();
    place.edit(config, |c| c["model_type"] = "mistral".into());
    let parts = [
        "llama: config.json: model_type = \"mistral\" is not supported",
        "only \"llama\"",
    ];
    place.refused(&model, &parts);
    place.edit(config, |c| {
        c["model_type"] = "llama".into();
        c["sliding_window"] = 4096.into();
    });
    let parts = [
        "llama: config.json: sliding_window = 4096 is not supported",
        "changes what the model computes",
    ];
    place.refused(&model, &parts);
    place.edit(config, |c| {
        c["sliding_window"] = Value::Null;
        c["num_key_value_heads"] = 3.into();
    });
    let parts = ["num_key_value_heads is 3; it must divide num_attention_heads = 4"];
    place.refused(&model, &parts);
    place.edit(config, |c| {
        c["num_key_value_heads"] = 2.into();
        c["hidden_size"] = 0.into();
    });
    place.refused(
        &model,
        &["hidden_size is 0; expected a whole number above 0"],
    );
    place.write(config, "{\"model_type\": ");
    place.refused(&model, &["llama/config.json is not valid JSON"]);
}

#[test]
fn truncated_weights() {
    let place = with_prompt();
    let shard = "llama/model-00002-of-00002.safetensors";
    for keep in [0, 5, 600, 100_000] {
        let bytes = place.bytes(shard);
        place.write(shard, &bytes[..bytes.len().min(keep)]);
        let parts = [shard, "no whole safetensors file", "copy it again"];
        place.refused(&format!("{GENERATE} llama"), &parts);
        fs::copy(crate::golden::path(shard), place.path(shard)).unwrap();
    }
}

#[test]
fn an_index_that_names_wrong_files() {
    let index = "llama/model.safetensors.index.json";
    for (shard, message) in [
        ("model-00009-of-00002.safetensors", "which is not there"),
        ("../x.safetensors", "lies outside its folder; refused"),
        ("/etc/passwd", "lies outside its folder; refused"),
    ] {
        let place = with_prompt();
        fs::copy(
            place.path("llama/model-00001-of-00002.safetensors"),
            place.path("x.safetensors"),
        )
        .unwrap();
        place.edit(index, |i| {
            i["weight_map"]["model.norm.weight"] = shard.into()
        });
        place.refused(&format!("{GENERATE} llama"), &[index, shard, message]);
    }
    let place = with_prompt();
    place.edit(index, |i| {
        i["weight_map"]["model.norm.wait"] = "model-00001-of-00002.safetensors".into();
    });
    let parts = [index, "model-00001-of-00002.safetensors", "model.norm.wait"];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn every_tensor_that_does_not_fit_is_listed() {
    let place = with_prompt();
    rewrite_weights(&place, |tensors| {
        tensor(tensors, "model.norm.weight").0 = "model.norm.wait".into();
        tensor(tensors, "model.embed_tokens.weight").1 = vec![213, 128];
    });
    place.refused(
        &format!("{GENERATE} llama"),
        &[
            "llama does not fit its config.json",
            "missing: model.norm.weight [64]",
            "wrong shape: model.embed_tokens.weight is [213, 128], expected [426, 64]",
            "unexpected: model.norm.wait",
        ],
    );
}

#[test]
fn weights_that_are_nan() {
    let place = with_prompt();
    rewrite_weights(&place, |tensors| {
        // A quiet NaN in bf16.
        tensor(tensors, "model.norm.weight").2[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    let parts = [
        "llama/model.safetensors",
        "tensor model.norm.weight holds NaN or infinity",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn a_tokenizer_of_another_model() {
    let place = with_prompt();
    rewrite_weights(&place, |tensors| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let (_, shape, data) = tensor(tensors, name);
            shape[0] = 400;
            data.truncate(400 * 64 * 2);
        }
    });
    place.edit("llama/config.json", |c| c["vocab_size"] = 400.into());
    let parts = [
        "llama: the tokenizer knows 426 tokens",
        "vocab_size is 400",
        "do not belong together",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn a_model_that_cannot_read_text() {
    let place = with_prompt();
    let parts = ["text needs tokenizer.json and a chat template"];
    place.edit("llama/tokenizer_config.json", |c| {
        c.as_object_mut().unwrap().remove("chat_template");
    });
    place.refused(&format!("{GENERATE} llama"), &parts);
    fs::remove_file(place.path("llama/tokenizer.json")).unwrap();
    place.refused(&format!("{GENERATE} llama"), &parts);
    let row = json!({"prompt": "p", "chosen": "c", "rejected": "r"});
    place.write_rows("pairs.jsonl", &[row]);
    place.refused(
        SCORE,
        &["the model's folder has no tokenizer with a chat template"],
    );
}

#[test]
fn tokenizer_files_that_are_damaged() {
    let place = with_prompt();
    place.write("llama/tokenizer.json", "{}");
    place.refused(
        &format!("{GENERATE} llama"),
        &["llama/tokenizer.json is not a tokenizer"],
    );
    let place = with_prompt();
    place.edit("llama/tokenizer_config.json", |c| {
        c["eos_token"] = "<|fin|>".into()
    });
    let parts = [
        "llama/tokenizer_config.json: eos_token is `<|fin|>`",
        "tokenizer.json does not have",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn templates_that_refuse_or_fail() {
    for (template, parts) in [
        (
            "{{ raise_exception('Only one system prompt, please') }}",
            [
                "prompt a: ",
                "refuses these messages: Only one system prompt, please",
            ],
        ),
        (
            "{% for m in messages %}",
            ["llama/tokenizer_config.json", "not valid Jinja"],
        ),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
            ["prompt a: ", "the chat template"],
        ),
    ] {
        let place = with_prompt();
        place.edit("llama/tokenizer_config.json", |c| {
            c["chat_template"] = template.into()
        });
        place.refused(&format!("{GENERATE} llama"), &parts);
    }
}
