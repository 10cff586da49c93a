//! Settings on which nothing depends kept a model from being loaded: ids of −1 or beyond the
//! embeddings, whole numbers written as floats, a pad token that the tokenizer lacks.

use serde_json::{Value, json};

use super::r040_names_of_tensors::scored;
use crate::cli::Place;

fn with(file: &str, change: impl FnOnce(&mut Value)) -> String {
    let place = Place::with_model();
    place.edit(&format!("llama/{file}"), change);
    scored(&place)
}

#[test]
fn they_change_nothing() {
    let plain = with("config.json", |_| {});
    for (key, value) in [
        ("pad_token_id", json!(-1)),
        ("pad_token_id", json!(1_000_000)),
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([424.0, 1_000_000])),
        ("bos_token_id", json!(-1)),
        ("pretraining_tp", json!(2)),
        ("use_cache", json!(false)),
        ("attention_dropout", json!(0)),
        ("partial_rotary_factor", json!(1.0)),
        ("initializer_range", json!(0.0)),
        ("dtype", json!("float16")),
        ("torch_dtype", Value::Null),
        ("auto_map", json!({"AutoModel": "x.Y"})),
    ] {
        let found = with("config.json", |config| config[key] = value.clone());
        assert_eq!(found, plain, "{key} = {value}");
    }
    let floats = with("config.json", |config| {
        for (_, value) in config.as_object_mut().unwrap() {
            if let Some(n) = value.as_u64() {
                *value = json!(n as f64);
            }
        }
    });
    assert_eq!(floats, plain);
    let generation = with("generation_config.json", |config| {
        config["eos_token_id"] = json!([-1, 424.0, 1_000_000]);
    });
    assert_eq!(generation, plain);
    let padding = with("tokenizer_config.json", |config| {
        config["pad_token"] = json!("[PAD]");
    });
    assert_eq!(padding, plain);
}

#[test]
fn spellings_of_the_rotary_settings_are_one() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let of = |scaling: Value| with("config.json", |config| config["rope_scaling"] = scaling);
    let plain = of(Value::Null);
    let scaled = of(scaling.clone());
    assert_ne!(scaled, plain);
    let changed = |key: &str, value: Value| {
        let mut changed = scaling.clone();
        changed[key] = value;
        changed
    };
    assert_eq!(
        of(changed("original_max_position_embeddings", json!(64.0))),
        scaled
    );
    let mut older = changed("type", json!("llama3"));
    older.as_object_mut().unwrap().remove("rope_type");
    assert_eq!(of(older), scaled);
    assert_eq!(of(changed("attention_factor", Value::Null)), scaled);
    for nothing in [
        json!({}),
        json!({"type": "default"}),
        json!({"type": "linear", "factor": 1.0}),
    ] {
        assert_eq!(of(nothing.clone()), plain, "{nothing}");
    }
    let newer = with("config.json", |config| {
        let theta = config
            .as_object_mut()
            .unwrap()
            .remove("rope_theta")
            .unwrap();
        config["rope_scaling"] = json!({});
        config["rope_parameters"] = changed("rope_theta", theta);
    });
    assert_eq!(newer, scaled);
    let beside = with("config.json", |config| {
        let mut scaling = scaling.clone();
        scaling
            .as_object_mut()
            .unwrap()
            .remove("original_max_position_embeddings");
        config["rope_scaling"] = scaling;
        config["original_max_position_embeddings"] = json!(64);
    });
    assert_eq!(beside, scaled);
}

#[test]
fn what_would_change_the_result_is_refused() {
    for (key, value, parts) in [
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 2.0}),
            ["rope_scaling.rope_type", "\"linear\""],
        ),
        (
            "rope_scaling",
            json!({"rope_type": 3}),
            ["rope_scaling.rope_type", "3"],
        ),
        (
            "rope_parameters",
            json!({"partial_rotary_factor": 0.5}),
            ["rope_parameters.partial_rotary_factor", "0.5"],
        ),
        (
            "partial_rotary_factor",
            json!(0.25),
            ["partial_rotary_factor", "0.25"],
        ),
        (
            "num_hidden_layers",
            json!(2.5),
            ["num_hidden_layers", "2.5"],
        ),
        ("eos_token_id", json!(1.5), ["eos_token_id", "1.5"]),
    ] {
        let place = Place::with_model();
        place.edit("llama/config.json", |config| config[key] = value);
        place.write_rows(
            "pairs.jsonl",
            &[json!({"prompt": "a", "chosen": "b", "rejected": "c"})],
        );
        place.refused(
            "score --model llama --data pairs.jsonl --out s.jsonl",
            &parts,
        );
    }
}
