//! Errors have OpenAI's form on every path, and name the key.

use serde_json::{Value, json};

use super::Server;
use super::client::send;

const PATH: &str = "/v1/completions";

#[test]
fn paths_methods_and_types() {
    let server = Server::start("");
    let json = [("Content-Type", "application/json")];
    let ask = |method, path, headers: &[(&str, &str)], body: &str| {
        let answer = send(&server.address, method, path, headers, body.as_bytes());
        (
            answer.status,
            answer.error()["message"].as_str().unwrap().to_string(),
        )
    };
    assert_eq!(ask("GET", "/nowhere", &[], "").0, 404);
    assert_eq!(ask("POST", "/v1/embeddings", &json, "{}").0, 404);
    assert_eq!(ask("GET", PATH, &[], "").0, 405);
    assert_eq!(ask("DELETE", "/v1/models", &[], "").0, 405);
    let allowed = send(&server.address, "POST", "/health", &[], b"");
    assert_eq!(
        (allowed.status, allowed.header("allow")),
        (405, Some("GET"))
    );
    for kind in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonp",
        "\u{fe}",
    ] {
        let (status, message) = ask(
            "POST",
            PATH,
            &[("Content-Type", kind)],
            "{\"prompt\": \"a\"}",
        );
        assert_eq!(status, 415, "{kind}");
        assert!(message.contains("application/json"), "{message}");
    }
    assert_eq!(ask("POST", PATH, &[], "{}").0, 415);
    let answer = send(
        &server.address,
        "POST",
        PATH,
        &[("Content-Type", "Application/JSON; charset=utf-8")],
        b"{\"prompt\": \"a\"}",
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn bodies_that_are_no_json_object() {
    let server = Server::start("");
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"prompt\": {}", "{\"a\":".repeat(5_000));
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\"prompt\"",
        b"{\"prompt\": \"a\"} {}",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{\"prompt\": \"\\udc00x\"}",
        b"{\"prompt\": NaN}",
        b"{\"prompt\": \"a\", \"temperature\": Infinity}",
        b"{\"prompt\": \"a\", \"temperature\": 1e999}",
        b"{\"prompt\": \"a\", \"prompt\": \"b\"}",
        b"{\"prompt\": \"a\0\"}",
        deep.as_bytes(),
        nested.as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        for path in [PATH, "/v1/chat/completions", "/tokenize", "/detokenize"] {
            let answer = server.post_bytes(path, body);
            assert_eq!(answer.status, 400, "{path} {shown}: {}", answer.text());
            answer.error();
        }
    }
    assert_eq!(server.get("/health").status, 200);
}

/// Values of every key that cannot be honoured.
#[test]
fn values_are_refused_by_their_key() {
    let server = Server::start("");
    let huge = json!(u64::MAX);
    let numbers = [
        "temperature",
        "top_p",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
    ];
    let counts = [
        "max_tokens",
        "n",
        "top_k",
        "min_tokens",
        "seed",
        "logprobs",
        "prompt_logprobs",
        "best_of",
    ];
    let mut wrong: Vec<(&str, Value)> = Vec::new();
    for key in numbers {
        wrong.extend(
            [
                json!("1"),
                json!([]),
                json!({}),
                json!(true),
                json!(1e300),
                json!(-1e300),
                huge.clone(),
            ]
            .map(|v| (key, v)),
        );
    }
    for key in counts {
        wrong.extend(
            [
                json!("1"),
                json!([1]),
                json!({}),
                json!(1.5),
                json!(1e300),
                json!(-1e300),
            ]
            .map(|v| (key, v)),
        );
    }
    for key in ["stream", "echo", "ignore_eos", "add_special_tokens"] {
        wrong.extend([json!("true"), json!(1), json!([])].map(|v| (key, v)));
    }
    wrong.extend([
        ("temperature", json!(-0.1)),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("min_p", json!(-1)),
        ("min_p", json!(2)),
        ("top_k", json!(-2)),
        ("presence_penalty", json!(2.1)),
        ("frequency_penalty", json!(-2.1)),
        ("repetition_penalty", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("max_tokens", huge.clone()),
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", huge.clone()),
        ("min_tokens", json!(17)),
        ("logprobs", json!(21)),
        ("logprobs", json!(-1)),
        ("logprobs", huge.clone()),
        ("prompt_logprobs", json!(21)),
        ("best_of", json!(2)),
        ("seed", huge.clone()),
        ("user", json!(7)),
        ("model", json!(7)),
        ("suffix", json!("x")),
        ("stop", json!("")),
        ("stop", json!(7)),
        ("stop", json!([""])),
        ("stop", json!([7])),
        ("stop", json!({})),
        ("stop", json!("x".repeat(5000))),
        ("stop", json!(vec!["x"; 300])),
        ("stop_token_ids", json!(7)),
        ("stop_token_ids", json!([426])),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!(["a"])),
        ("stop_token_ids", json!([1.5])),
        ("logit_bias", json!([])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"426": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"99999999999": 1})),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!("text")),
        ("tools", json!([{}])),
        ("functions", json!([{}])),
        ("guided_json", json!({"a": 1})),
        ("guided_regex", json!("a")),
        ("guided_choice", json!(["a"])),
        ("structured_outputs", json!({"a": 1})),
        ("logits_processors", json!(["x"])),
        ("use_beam_search", json!(true)),
        ("truncate_prompt_tokens", json!(4)),
        ("skip_special_tokens", json!(false)),
        ("include_stop_str_in_output", json!(true)),
        ("allowed_token_ids", json!([1])),
        ("bad_words", json!(["a"])),
        ("messages", json!([{"role": "user", "content": "a"}])),
    ]);
    for (key, value) in wrong {
        let mut body = json!({"prompt": "a"});
        body[key] = value;
        server.refused(PATH, &body, 400, key);
    }
    for key in ["logit_bias.64"] {
        for bias in [json!(101), json!("1"), json!(null)] {
            server.refused(
                PATH,
                &json!({"prompt": "a", "logit_bias": {"64": bias}}),
                400,
                key,
            );
        }
    }
}

#[test]
fn prompts_that_are_none() {
    let server = Server::start("");
    for prompt in [
        json!(null),
        json!([]),
        json!({}),
        json!(7),
        json!(true),
        json!([[]]),
        json!([[], [1]]),
        json!([1, "a"]),
        json!(["a", 1]),
        json!(["a", null]),
        json!([null]),
        json!([{"a": 1}]),
        json!([426]),
        json!([-1]),
        json!([1.5]),
        json!([1e300]),
        json!([u64::MAX]),
        json!([[1], [426]]),
        json!([[[1]]]),
        json!(vec!["a"; 2049]),
    ] {
        let message = server.refused(PATH, &json!({"prompt": prompt}), 400, "prompt");
        assert!(!message.is_empty());
    }
    server.refused(PATH, &json!({}), 400, "prompt");
    // Without a BOS an empty text has nothing to go on from.
    server.refused(
        PATH,
        &json!({"prompt": "", "add_special_tokens": false}),
        400,
        "prompt",
    );
    server.completion(json!({"prompt": ""}));
    let many = json!({"prompt": vec![[5]; 2048], "n": 3, "max_tokens": 1});
    server.refused(PATH, &many, 400, "n");
}

#[test]
fn models_by_name() {
    let strict = Server::start("--served-name tiny --strict-model");
    for model in [json!("tiny"), json!(null)] {
        strict.completion(json!({"prompt": "a", "max_tokens": 1, "model": model}));
    }
    for path in [PATH, "/v1/chat/completions", "/tokenize", "/detokenize"] {
        let answer = strict.post(path, &json!({"model": "gpt-4"}));
        assert_eq!(
            (answer.status, &answer.error()["code"]),
            (404, &json!("model_not_found"))
        );
    }
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = Server::start("--batch 1 --max-queue 1");
    let body = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true, "n": 8});
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| server.post(PATH, &body)))
            .collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let full: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == 429)
        .collect();
    assert!(!full.is_empty() && full.len() < 8);
    for answer in &full {
        assert_eq!(answer.error()["type"], "rate_limit_error");
        assert!(answer.header("retry-after").is_some());
    }
    assert!(
        answers
            .iter()
            .all(|answer| [200, 429].contains(&answer.status))
    );
    server.settle();
}
