//! Streams say what whole answers say.

use std::io::{Read, Write};

use serde_json::{Value, json};

use super::Server;
use super::client::{connect, events, receive, request};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn streamed(mut body: Value) -> Value {
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    body
}

/// Choices put together from a stream's chunks, and its usage.
fn joined(chunks: &[Value], chat: bool) -> (Vec<Value>, Value) {
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let mut texts: Vec<String> = Vec::new();
    let mut ends: Vec<Value> = Vec::new();
    for chunk in chunks {
        assert_eq!((&chunk["usage"], &chunk["id"]), (&Value::Null, &last["id"]));
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts.resize(texts.len().max(index + 1), String::new());
        ends.resize(texts.len(), Value::Null);
        assert_eq!(ends[index], Value::Null, "nothing comes behind the end");
        let text = if chat {
            &choice["delta"]["content"]
        } else {
            &choice["text"]
        };
        texts[index] += text.as_str().unwrap_or_default();
        ends[index] = choice["finish_reason"].clone();
    }
    let choices = texts.into_iter().zip(ends);
    (
        choices.map(|(text, end)| json!([text, end])).collect(),
        last["usage"].clone(),
    )
}

#[test]
fn completions() {
    let server = Server::start("");
    let body = json!({"prompt": ["hello 🙂", "other"], "n": 2, "seed": 5, "max_tokens": 40, "ignore_eos": true, "temperature": 1.3});
    let whole = server.completion(body.clone());
    let chunks = events(&server.post(COMPLETIONS, &streamed(body)));
    let (choices, usage) = joined(&chunks, false);
    let expected = whole["choices"].as_array().unwrap().iter();
    let expected: Vec<_> = expected
        .map(|c| json!([c["text"], c["finish_reason"]]))
        .collect();
    assert_eq!(choices, expected);
    for key in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage[key], whole["usage"][key]);
    }
    // No half characters but those that the answer itself holds.
    assert!(chunks.len() > 40);
}

#[test]
fn chats() {
    let server = Server::start("");
    let body =
        json!({"messages": [{"role": "user", "content": "hello"}], "seed": 5, "max_tokens": 20});
    let whole = server.chat(body.clone());
    let chunks = events(&server.post(CHAT, &streamed(body)));
    assert_eq!(
        chunks[0]["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    let end = &chunks[chunks.len() - 2]["choices"][0];
    assert_eq!(end["delta"], json!({}));
    let (choices, _) = joined(&chunks, true);
    let choice = &whole["choices"][0];
    assert_eq!(
        choices,
        [json!([
            choice["message"]["content"],
            choice["finish_reason"]
        ])]
    );
}

#[test]
fn stop_strings_never_show() {
    let server = Server::start("");
    let body = json!({"prompt": "hello", "temperature": 0, "max_tokens": 30, "ignore_eos": true});
    let text = server.text(body.clone());
    let letters: Vec<char> = text.chars().collect();
    let stop: String = letters[letters.len() - 4..].iter().collect();
    let mut body = streamed(body);
    body["stop"] = json!([stop]);
    let chunks = events(&server.post(COMPLETIONS, &body));
    let (choices, _) = joined(&chunks, false);
    assert_eq!(
        choices,
        [json!([&text[..text.find(&stop).unwrap()], "stop"])]
    );
}

#[test]
fn log_probabilities_come_token_by_token() {
    let server = Server::start("");
    let body = json!({"prompt": "hello", "temperature": 0, "max_tokens": 12, "logprobs": 2, "echo": true, "ignore_eos": true});
    let whole = server.completion(body.clone())["choices"][0].clone();
    let chunks = events(&server.post(COMPLETIONS, &streamed(body)));
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let parts = chunks
            .iter()
            .filter_map(|c| c["choices"][0]["logprobs"][key].as_array());
        let parts: Vec<Value> = parts.flatten().cloned().collect();
        assert_eq!(Value::from(parts), whole["logprobs"][key], "{key}");
    }
    let (choices, _) = joined(&chunks, false);
    assert_eq!(choices[0][0], whole["text"]);
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, "temperature": 0, "logprobs": true, "top_logprobs": 1});
    let whole = server.chat(chat.clone());
    let chunks = events(&server.post(CHAT, &streamed(chat)));
    let parts = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    let parts: Vec<Value> = parts.flatten().cloned().collect();
    assert_eq!(
        Value::from(parts),
        whole["choices"][0]["logprobs"]["content"]
    );
}

#[test]
fn without_usage_there_is_none() {
    let server = Server::start("");
    let answer = server.post(
        COMPLETIONS,
        &json!({"prompt": "hello", "max_tokens": 2, "stream": true, "ignore_eos": true}),
    );
    assert!(
        events(&answer)
            .iter()
            .all(|chunk| chunk["choices"].as_array().unwrap().len() == 1)
    );
    let needs = json!({"prompt": "a", "stream_options": {"include_usage": true}});
    server.refused(COMPLETIONS, &needs, 400, "stream_options");
}

/// A client that leaves frees its slot, streaming or not.
#[test]
fn who_leaves_is_not_answered_on() {
    let server = Server::start("--batch 1");
    for stream in [true, false] {
        let before = server.metric("sppo:requests_cancelled_total");
        let body = json!({"prompt": "hello", "max_tokens": 500, "stream": stream, "ignore_eos": true, "logprobs": 20});
        let json = [("Content-Type", "application/json")];
        let mut socket = connect(&server.address);
        let bytes = request("POST", COMPLETIONS, &json, body.to_string().as_bytes());
        socket.write_all(&bytes).unwrap();
        if stream {
            let mut some = [0; 100];
            socket.read_exact(&mut some).unwrap();
        } else {
            while server.metric("sppo:num_requests_running") == 0.0 {}
        }
        drop(socket);
        let cancelled = || server.metric("sppo:requests_cancelled_total") == before + 1.0;
        server.wait_until(cancelled);
        server.settle();
    }
}

/// Requests on one connection are answered one after the other, also where they are sent at once.
#[test]
fn pipelined_requests() {
    let server = Server::start("");
    let json = [("Content-Type", "application/json")];
    let body = json!({"prompt": "hello", "max_tokens": 2}).to_string();
    let one = request("POST", COMPLETIONS, &json, body.as_bytes());
    let two = request("GET", "/health", &[], b"");
    let mut socket = connect(&server.address);
    socket.write_all(&[&one[..], &two[..]].concat()).unwrap();
    // Both may arrive in one piece, so that they are read together.
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while text.matches("HTTP/1.1 200").count() < 2 || !text.contains("\"ok\"") {
        let read = socket.read(&mut bytes).unwrap();
        assert!(read > 0, "{text}");
        text += &String::from_utf8_lossy(&bytes[..read]);
    }
    socket.write_all(&two).unwrap();
    assert_eq!(receive(&mut socket).unwrap().status, 200);
}
