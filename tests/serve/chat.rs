//! `/v1/chat/completions`.

use serde_json::{Value, json};

use super::Server;
use crate::cli::Place;

const PATH: &str = "/v1/chat/completions";

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn body(messages: Value) -> Value {
    json!({"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": true})
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .into()
}

#[test]
fn a_conversation_is_what_the_template_makes_of_it() {
    let server = Server::start("");
    let answer = server.chat(body(user("hello")));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    let ids = server.ok("/tokenize", json!({"messages": user("hello")}))["tokens"].clone();
    let raw = server
        .completion(json!({"prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": true}));
    assert_eq!(raw["choices"][0]["text"], content(&answer));
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], ids.as_array().unwrap().len());
    assert_eq!(
        (&usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(8), &json!(8 + ids.as_array().unwrap().len()))
    );

    // Parts, developer for system, and names pass.
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "hello"}], "name": "x"}]);
    assert_eq!(content(&server.chat(body(parts))), content(&answer));
    let system = |role: &str| {
        body(json!([{"role": role, "content": "be brief"}, {"role": "user", "content": "hello"}]))
    };
    assert_eq!(
        content(&server.chat(system("developer"))),
        content(&server.chat(system("system")))
    );
}

#[test]
fn lengths() {
    let server = Server::start("");
    for (tokens, both, expected) in [
        (json!(3), json!(null), 3),
        (json!(null), json!(4), 4),
        (json!(9), json!(2), 2),
        (json!(2), json!(9), 2),
    ] {
        let mut body = body(user("hello"));
        body["max_tokens"] = tokens;
        body["max_completion_tokens"] = both;
        assert_eq!(server.chat(body)["usage"]["completion_tokens"], expected);
    }
    // All that the context leaves, unless it is said.
    let free = json!({"messages": user("hello"), "temperature": 0, "ignore_eos": true, "max_tokens": null});
    assert_eq!(server.chat(free)["usage"]["total_tokens"], 512);
    let long = json!({"messages": user(&"long words ".repeat(400))});
    let message = server.refused(PATH, &long, 400, "messages");
    assert!(message.contains("Please reduce"), "{message}");
}

#[test]
fn an_open_turn_goes_on() {
    let server = Server::start("");
    let turns = json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "The answer"}]);
    let mut open = body(turns.clone());
    open["continue_final_message"] = true.into();
    open["add_generation_prompt"] = false.into();
    let tokens =
        json!({"messages": turns, "add_generation_prompt": false, "continue_final_message": true});
    let ids = server.ok("/tokenize", tokens)["tokens"].clone();
    let text = server.ok("/detokenize", json!({"tokens": ids}))["prompt"].clone();
    assert!(
        text.as_str()
            .unwrap()
            .ends_with("<|end_header_id|>\n\nThe answer"),
        "{text}"
    );
    let raw = server
        .completion(json!({"prompt": ids, "max_tokens": 8, "temperature": 0, "ignore_eos": true}));
    assert_eq!(
        content(&server.chat(open.clone())),
        raw["choices"][0]["text"]
    );
    open["add_generation_prompt"] = true.into();
    server.refused(PATH, &open, 400, "continue_final_message");
    let mut closed = body(turns);
    closed["add_generation_prompt"] = false.into();
    assert!(
        server.chat(closed)["usage"]["prompt_tokens"].as_u64()
            > ids.as_array().map(|ids| ids.len() as u64)
    );
}

#[test]
fn log_probabilities() {
    let server = Server::start("");
    let mut body = body(user("hello 🙂"));
    body["logprobs"] = true.into();
    body["top_logprobs"] = 3.into();
    let choice = server.chat(body.clone())["choices"][0].clone();
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 8);
    let mut bytes: Vec<u8> = Vec::new();
    for entry in content {
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest.
        assert_eq!(
            (&top[0]["token"], &top[0]["logprob"]),
            (&entry["token"], &entry["logprob"])
        );
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
        let of = entry["bytes"].as_array().unwrap();
        if !entry["token"].as_str().unwrap().starts_with("<|") {
            bytes.extend(of.iter().map(|byte| byte.as_u64().unwrap() as u8));
        }
    }
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), text);
    body["top_logprobs"] = json!(null);
    let choice = server.chat(body.clone())["choices"][0].clone();
    assert_eq!(choice["logprobs"]["content"][0]["top_logprobs"], json!([]));
    body["logprobs"] = json!(null);
    body["top_logprobs"] = 2.into();
    server.refused(PATH, &body, 400, "top_logprobs");
}

#[test]
fn what_is_refused() {
    let server = Server::start("");
    let turn = |turn: Value| body(json!([turn]));
    for (body, param) in [
        (json!({}), "messages"),
        (body(json!([])), "messages"),
        (
            turn(json!({"role": "tool", "content": "x"})),
            "messages[0].role",
        ),
        (turn(json!({"content": "x"})), "messages[0].role"),
        (turn(json!({"role": "user"})), "messages[0].content"),
        (
            turn(json!({"role": "user", "content": 7})),
            "messages[0].content",
        ),
        (
            turn(json!({"role": "user", "content": [{"type": "image_url"}]})),
            "messages[0].content[0]",
        ),
        (
            turn(json!({"role": "assistant", "content": "x", "tool_calls": [1]})),
            "messages[0].tool_calls",
        ),
        (turn(json!("x")), "messages[0]"),
    ] {
        server.refused(PATH, &body, 400, param);
    }
    for (key, value) in [
        ("response_format", json!({"type": "json_object"})),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {}}),
        ),
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("functions", json!([{}])),
        ("echo", json!(true)),
        ("prompt", json!("x")),
        ("chat_template", json!("{{ x }}")),
        ("logprobs", json!(3)),
        ("max_tokens", json!(0)),
        ("max_completion_tokens", json!(-1)),
    ] {
        let mut body = body(user("hello"));
        body[key] = value;
        server.refused(PATH, &body, 400, key);
    }
}

#[test]
fn a_folder_without_a_template_completes_but_does_not_chat() {
    let place = Place::with_model();
    place.edit("llama/tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    let server = Server::start_in(place, "");
    let message = server.refused(PATH, &body(user("hello")), 400, "messages");
    assert!(message.contains("chat template"), "{message}");
    server.completion(json!({"prompt": "hello"}));
    server.wait_until(|| server.said().contains("chat is off"));
}
