//! Routes beside the answers: tokens, models, numbers.

use serde_json::{Value, json};

use super::Server;
use crate::cli::Place;
use crate::golden;

#[test]
fn tokens_there_and_back() {
    let server = Server::start("");
    for case in golden::json("llama/expected.json")["encode"]
        .as_array()
        .unwrap()
    {
        for prefix in ["", "/v1"] {
            let tokenize = format!("{prefix}/tokenize");
            let answer = server.ok(&tokenize, json!({"prompt": case["text"]}));
            assert_eq!(answer["tokens"], case["ids_with_bos"]);
            assert_eq!(answer["count"], answer["tokens"].as_array().unwrap().len());
            assert_eq!(
                (&answer["max_model_len"], &answer["token_strs"]),
                (&json!(512), &Value::Null)
            );
            let plain = json!({"prompt": case["text"], "add_special_tokens": false});
            assert_eq!(server.ok(&tokenize, plain)["tokens"], case["ids"]);
            let back = server.ok(
                &format!("{prefix}/detokenize"),
                json!({"tokens": case["ids"]}),
            );
            assert_eq!(back["prompt"], case["text"]);
        }
    }
    for case in golden::json("llama/expected.json")["chat"]
        .as_array()
        .unwrap()
    {
        let answer = server.ok(
            "/tokenize",
            json!({"messages": case["messages"], "return_token_strs": true}),
        );
        let back = server.ok("/detokenize", json!({"tokens": answer["tokens"]}));
        assert_eq!(back["prompt"], case["prompt"]);
        assert_eq!(answer["token_strs"][0], "<|begin_of_text|>");
    }
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        (
            "/tokenize",
            json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
            "prompt",
        ),
        ("/tokenize", json!({"prompt": ["a"]}), "prompt"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [426]}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
    ] {
        server.refused(path, &body, 400, param);
    }
    assert_eq!(
        server.ok("/detokenize", json!({"tokens": []}))["prompt"],
        ""
    );
}

#[test]
fn what_the_server_says_of_itself() {
    let server = Server::start("--served-name tiny --max-model-len 100");
    let models = server.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!(
        (&model["id"], &model["object"], &model["max_model_len"]),
        (&json!("tiny"), &json!("model"), &json!(100))
    );
    assert!(model["created"].as_u64() > Some(1_700_000_000) && model["owned_by"].is_string());
    assert_eq!(
        server.get("/version").json()["version"],
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(server.get("/tokenizer_info").status, 404);
    server.get("/tokenizer_info").error();
    server.refused(
        "/v1/completions",
        &json!({"prompt": vec![1; 100]}),
        400,
        "prompt",
    );
    let long =
        server.completion(json!({"prompt": vec![1; 90], "max_tokens": 50, "ignore_eos": true}));
    assert_eq!(long["usage"]["completion_tokens"], 10);
}

#[test]
fn tokenizer_info() {
    let place = Place::with_model();
    place.edit("llama/tokenizer_config.json", |config| {
        config["eos_token"] = json!({"content": "<|eot_id|>", "special": true});
    });
    let server = Server::start_in(place, "--tokenizer-info");
    let info = server.get("/tokenizer_info").json();
    assert_eq!(
        (&info["eos_token"], &info["bos_token"]),
        (&json!("<|eot_id|>"), &json!("<|begin_of_text|>"))
    );
    assert!(
        info["chat_template"]
            .as_str()
            .unwrap()
            .contains("bos_token")
    );
}

#[test]
fn metrics() {
    let server = Server::start("");
    server.completion(json!({"prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": true}));
    server.post("/v1/completions", &json!({"prompt": []}));
    server.settle();
    let answer = server.get("/metrics");
    assert!(
        answer
            .header("content-type")
            .unwrap()
            .starts_with("application/openmetrics-text")
    );
    for (name, value) in [
        ("sppo:num_requests_running", 0.0),
        ("sppo:num_requests_waiting", 0.0),
        ("sppo:prompt_tokens_computed_total", 3.0),
        ("sppo:prompt_tokens_cached_total", 0.0),
        ("sppo:generation_tokens_total", 5.0),
        ("sppo:requests_accepted_total", 1.0),
        ("sppo:requests_cancelled_total", 0.0),
        ("sppo:requests_refused_total{reason=\"400\"}", 1.0),
        ("sppo:answers_finished_total{reason=\"length\"}", 1.0),
        ("sppo:time_to_first_token_seconds_count", 1.0),
        ("sppo:time_per_output_token_seconds_count", 4.0),
    ] {
        assert_eq!(server.metric(name), value, "{name}: {}", answer.text());
    }
    let text = answer.text();
    assert!(
        text.contains("sppo:kv_cache_usage_perc ") && text.ends_with("# EOF\n"),
        "{text}"
    );
}

/// `--adapter` answers as the merged model does.
#[test]
fn adapters() {
    let place = Place::with_model();
    place.copy_golden_as("../lora", "peft");
    let server = Server::start_in(place, "--adapter peft");
    let body = super::greedy("hello", 24);
    let adapted = server.completion(body.clone())["choices"].clone();
    server
        .place
        .ok("merge --model llama --adapter peft --out merged --precision f32");
    let merged = Place::with_model();
    std::fs::remove_dir_all(merged.path("llama")).unwrap();
    std::fs::rename(server.place.path("merged"), merged.path("llama")).unwrap();
    let merged = Server::start_in(merged, "");
    assert_eq!(merged.completion(body.clone())["choices"], adapted);
    assert_ne!(Server::start("").completion(body)["choices"], adapted);
}
