//! `/v1/completions`: what is asked for is what comes.

use serde_json::{Value, json};

use super::{Server, greedy};
use crate::golden;

/// The golden tokens come over HTTP, in every form of a prompt.
#[test]
fn prompts_in_all_forms() {
    let server = Server::start("--served-name tiny");
    let expected = golden::json("llama/expected.json");
    let case = &expected["encode"][0];
    let text = case["text"].as_str().unwrap();
    let of_text = server.completion(greedy(text, 8));
    let of_ids = server.completion(greedy_ids(case["ids_with_bos"].clone()));
    assert_eq!(of_text["choices"], of_ids["choices"]);
    // No BOS is added to ids, and none to a text where that is said.
    let mut body = greedy(text, 8);
    body["add_special_tokens"] = false.into();
    let plain = server.completion(body);
    assert_eq!(
        plain["choices"],
        server.completion(greedy_ids(case["ids"].clone()))["choices"]
    );
    assert_eq!(
        plain["usage"]["prompt_tokens"],
        case["ids"].as_array().unwrap().len()
    );

    let mut body = greedy(text, 8);
    body["prompt"] = json!([text, "other", text]);
    body["n"] = 2.into();
    let many = server.completion(body);
    let choices = many["choices"].as_array().unwrap();
    let indices: Vec<_> = choices
        .iter()
        .map(|choice| choice["index"].as_u64().unwrap())
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    let texts: Vec<_> = choices.iter().map(|choice| &choice["text"]).collect();
    for same in [0, 1, 4, 5] {
        assert_eq!(*texts[same], of_text["choices"][0]["text"]);
    }
    assert!(texts[2] == texts[3] && texts[2] != texts[0]);
    assert_eq!(many["usage"]["completion_tokens"], 48);

    let body = |prompt: Value| json!({"prompt": prompt, "max_tokens": 4, "temperature": 0});
    let lists = server.completion(body(json!([case["ids_with_bos"], [1, 2, 3]])));
    assert_eq!(lists["choices"].as_array().unwrap().len(), 2);
    assert_eq!(lists["model"], "tiny");
    assert_eq!(lists["object"], "text_completion");
}

fn greedy_ids(ids: Value) -> Value {
    json!({"prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": true})
}

/// What the engine says by itself is what it says over HTTP, sampled and greedy.
#[test]
fn the_golden_tokens() {
    let server = Server::start("");
    let expected = golden::json("llama/expected.json");
    let tokens = expected["greedy_24"].as_array().unwrap();
    for (number, (tokens, (ids, _))) in tokens.iter().zip(golden::llama::cases()).enumerate() {
        let body = json!({"prompt": ids, "max_tokens": 24, "temperature": 0, "ignore_eos": true});
        let answer = server.completion(body);
        let detokenized = server.ok("/detokenize", json!({"tokens": tokens}));
        let text = answer["choices"][0]["text"].as_str().unwrap();
        // Special tokens make no text in an answer.
        let mut whole = detokenized["prompt"].as_str().unwrap().to_string();
        for special in [
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|end_of_text|>",
            "<|begin_of_text|>",
            "<|finetune_right_pad_id|>",
        ] {
            whole = whole.replace(special, "");
        }
        assert_eq!(text, whole, "case {number}");
    }
}

#[test]
fn seeds_and_counts() {
    let server = Server::start("");
    let body = |seed: Value| json!({"prompt": "hello", "max_tokens": 12, "seed": seed, "n": 3, "ignore_eos": true});
    let one = server.completion(body(7.into()));
    assert_eq!(one["choices"], server.completion(body(7.into()))["choices"]);
    assert_eq!(
        one["choices"],
        server.completion(body(json!(7.0)))["choices"]
    );
    assert_ne!(
        one["choices"],
        server.completion(body((-7).into()))["choices"]
    );
    // Without a seed each request has its own.
    let free = server.completion(body(Value::Null));
    assert_ne!(
        free["choices"],
        server.completion(body(Value::Null))["choices"]
    );
    // The samples of one request differ, and are those of a larger request's beginning.
    assert_ne!(one["choices"][0]["text"], one["choices"][1]["text"]);
    let mut alone = body(7.into());
    alone["n"] = 1.into();
    assert_eq!(server.completion(alone)["choices"][0], one["choices"][0]);
    // Equal prompts of one list with a seed have equal answers.
    let mut twice = body(7.into());
    twice["prompt"] = json!(["hello", "hello"]);
    let twice = server.completion(twice);
    assert_eq!(twice["choices"][0]["text"], twice["choices"][3]["text"]);
}

#[test]
fn ends() {
    let server = Server::start("");
    let whole = server.text(greedy("hello", 24));
    let letters: Vec<char> = whole.chars().collect();
    let stop: String = letters[letters.len() / 2..letters.len() / 2 + 2]
        .iter()
        .collect();
    let before = &whole[..whole.find(&stop).unwrap()];
    let mut body = greedy("hello", 24);
    for stops in [
        json!(stop),
        json!([stop]),
        json!(["never there", stop, null]),
    ] {
        body["stop"] = stops;
        let choice = server.completion(body.clone())["choices"][0].clone();
        assert_eq!(choice["text"], before);
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["stop_reason"], stop);
    }
    for none in [json!([]), json!(null), json!(["never there"])] {
        body["stop"] = none;
        let choice = server.completion(body.clone())["choices"][0].clone();
        assert_eq!(
            (&choice["text"], &choice["finish_reason"]),
            (&json!(whole), &json!("length"))
        );
        assert_eq!(choice["stop_reason"], json!(null));
    }
    // An id of the request, the model's own end off.
    let mut body = greedy("hello", 24);
    body["stop_token_ids"] = json!((0..426).collect::<Vec<_>>());
    let choice = server.completion(body)["choices"][0].clone();
    assert_eq!(
        (&choice["text"], &choice["finish_reason"]),
        (&json!(""), &json!("stop"))
    );
    assert!(choice["stop_reason"].is_u64(), "{choice}");
}

/// lm-evaluation-harness gives the text of the end token as a stop string with one request at a
/// time, and not with several: both end alike.
#[test]
fn the_end_tokens_text_as_a_stop_string() {
    let server = Server::start("");
    // An end token that comes for certain, at once.
    let body = |stop: Value| {
        json!({"prompt": "hello", "max_tokens": 24, "temperature": 0,
        "logit_bias": {"424": 100}, "stop": stop})
    };
    let with = server.completion(body(json!(["<|eot_id|>"])));
    let without = server.completion(body(json!(null)));
    assert_eq!(with["choices"], without["choices"]);
    assert_eq!(with["choices"][0]["finish_reason"], "stop");
    assert_eq!(with["usage"]["completion_tokens"], 1);
    // A special token that is no end of the model ends where it is asked to.
    let body = |stop: Value| {
        json!({"prompt": "hello", "max_tokens": 4, "temperature": 0,
        "logit_bias": {"422": 100}, "stop": stop})
    };
    let header = server.completion(body(json!("<|start_header_id|>")));
    let choice = &header["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!("<|start_header_id|>"))
    );
    let on = server.completion(body(json!(null)));
    assert_eq!(on["usage"]["completion_tokens"], 4);
}

#[test]
fn lengths() {
    let server = Server::start("");
    let default = server.completion(json!({"prompt": "hello", "ignore_eos": true}));
    assert_eq!(default["usage"]["completion_tokens"], 16);
    // arena-hard asks for more than the context has.
    let long =
        server.completion(json!({"prompt": vec![5; 500], "max_tokens": 8196, "ignore_eos": true}));
    assert_eq!(long["usage"]["completion_tokens"], 12);
    assert_eq!(long["choices"][0]["finish_reason"], "length");
    let echoed = server.completion(json!({"prompt": "hello", "max_tokens": 0, "echo": true}));
    assert_eq!(echoed["choices"][0]["text"], "hello");
    assert_eq!(echoed["usage"]["completion_tokens"], 0);
    let whole = server.completion(json!({"prompt": vec![5; 512], "max_tokens": 0, "echo": true}));
    assert_eq!(whole["usage"]["prompt_tokens"], 512);
    let least =
        json!({"prompt": "hello", "max_tokens": 9, "min_tokens": 9, "logit_bias": {"424": 100}});
    assert_eq!(server.completion(least)["usage"]["completion_tokens"], 9);
    let message = server.refused(
        "/v1/completions",
        &json!({"prompt": vec![5; 512]}),
        400,
        "prompt",
    );
    assert!(message.contains("Please reduce"), "{message}");
    let answer = server.post("/v1/completions", &json!({"prompt": vec![5; 512]}));
    assert_eq!(answer.error()["code"], "context_length_exceeded");
}

/// Each key reaches the engine.
#[test]
fn sampling_keys() {
    let server = Server::start("");
    let base = json!({"prompt": "hello", "max_tokens": 16, "seed": 3, "ignore_eos": true, "temperature": 1.5});
    let plain = server.text(base.clone());
    let greedy = server.text(greedy("hello", 16));
    for (key, value) in [
        ("temperature", json!(0.2)),
        ("top_p", json!(0.1)),
        ("top_k", json!(2)),
        ("min_p", json!(0.5)),
        ("presence_penalty", json!(2)),
        ("frequency_penalty", json!(2)),
        ("repetition_penalty", json!(1.9)),
        ("logit_bias", json!({"64": 100})),
    ] {
        let mut body = base.clone();
        body[key] = value;
        assert_ne!(server.text(body), plain, "{key}");
    }
    for (key, value) in [
        ("top_k", json!(1)),
        ("top_p", json!(1e-6)),
        ("min_p", json!(1)),
        ("temperature", json!(1e-6)),
    ] {
        let mut body = base.clone();
        body[key] = value;
        assert_eq!(server.text(body), greedy, "{key}");
    }
    for (key, value) in [
        ("top_k", json!(-1)),
        ("top_k", json!(0)),
        ("top_p", json!(1)),
        ("min_p", json!(0)),
        ("best_of", json!(1)),
        ("user", json!("x")),
        ("suffix", json!("")),
        ("tools", json!([])),
        ("response_format", json!({"type": "text"})),
        ("unheard_of", json!({"a": 1})),
        ("stop", json!(null)),
    ] {
        let mut body = base.clone();
        body[key] = value;
        assert_eq!(server.text(body), plain, "{key}");
    }
    let mut body = base.clone();
    body["unheard_of"] = 1.into();
    server.completion(body);
    let said = || server.said().matches("unheard_of").count();
    server.wait_until(|| said() > 0);
    assert_eq!(said(), 1, "{}", server.said());
}

#[test]
fn cached_tokens_are_told() {
    let server = Server::start("");
    let body = json!({"prompt": vec![7; 200], "max_tokens": 1});
    let first = server.completion(body.clone());
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let second = server.completion(body);
    assert!(
        second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0),
        "{second}"
    );
    assert!(server.metric("sppo:prompt_tokens_cached_total") > 0.0);
}
