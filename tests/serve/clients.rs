//! What clients sent (scripts/check_clients.sh recorded it) is answered as it was then, when they
//! agreed with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Server;
use super::client::send;

/// Other processors round otherwise.
const TOLERANCE: f64 = 1e-4;

/// What differs from one answer to the next.
const FREE: [&str; 6] = ["id", "created", "model", "cached_tokens", "root", "version"];

/// Whether the bodies agree; where they do not, the path to what differs.
fn difference(found: &Value, expected: &Value, path: &str) -> Option<String> {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => {
            let apart = (a.as_f64()? - b.as_f64()?).abs();
            (apart > TOLERANCE).then(|| format!("{path}: {a}, not {b}"))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let pairs = a.iter().zip(b).enumerate();
            pairs
                .filter_map(|(i, (a, b))| difference(a, b, &format!("{path}[{i}]")))
                .next()
        }
        (Value::Object(a), Value::Object(b)) => {
            let keys: Vec<&String> = a.keys().filter(|key| !b.contains_key(*key)).collect();
            let more = (!keys.is_empty()).then(|| format!("{path}: more keys {keys:?}"));
            let each = b.iter().filter(|(key, _)| !FREE.contains(&key.as_str()));
            more.or_else(|| {
                each.filter_map(|(key, value)| {
                    let found = a.get(key).unwrap_or(&Value::Null);
                    difference(found, value, &format!("{path}.{key}"))
                })
                .next()
            })
        }
        (a, b) => (a != b).then(|| format!("{path}: {a}, not {b}")),
    }
}

/// Of a stream: text, reason and number of log-probabilities of each choice, and the usage.
#[derive(Debug, Default, PartialEq)]
struct Streamed {
    choices: BTreeMap<u64, (String, Value, usize)>,
    usage: Option<Value>,
    done: bool,
}

fn streamed(text: &str) -> Streamed {
    let mut all = Streamed::default();
    for line in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if line == "[DONE]" {
            all.done = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(line).unwrap();
        all.usage = chunk
            .get("usage")
            .filter(|u| !u.is_null())
            .map(|usage| usage["total_tokens"].clone())
            .or(all.usage);
        for choice in chunk["choices"].as_array().unwrap() {
            let of = all
                .choices
                .entry(choice["index"].as_u64().unwrap())
                .or_default();
            let text = choice["text"]
                .as_str()
                .or(choice["delta"]["content"].as_str());
            of.0 += text.unwrap_or_default();
            if !choice["finish_reason"].is_null() {
                of.1 = choice["finish_reason"].clone();
            }
            let logprobs = choice["logprobs"]["content"].as_array();
            of.2 += logprobs.map_or(0, Vec::len);
        }
    }
    all
}

/// Whether draws are the same each time.
fn is_fixed(body: &Value) -> bool {
    !body["seed"].is_null() || body["temperature"] == 0.0 || body["max_tokens"] == 0
}

fn replay(server: &Server, record: &Value) {
    let text = |key: &str| record[key].as_str().unwrap();
    let headers = [
        ("Content-Type", "application/json"),
        ("Authorization", "Bearer sk-check"),
    ];
    let body = text("body");
    let answer = send(
        &server.address,
        text("method"),
        text("path"),
        &headers,
        body.as_bytes(),
    );
    let shown: String = format!("{} {body}", text("path"))
        .chars()
        .take(300)
        .collect();
    let status = u64::from(answer.status);
    assert_eq!(
        Some(status),
        record["status"].as_u64(),
        "{shown}: {}",
        answer.text()
    );
    let asked: Value = serde_json::from_str(body).unwrap_or_default();
    if status == 200 && !asked.is_null() && !is_fixed(&asked) {
        return;
    }
    if answer.text().starts_with("data: ") {
        assert_eq!(
            streamed(&answer.text()),
            streamed(text("answer")),
            "{shown}"
        );
        return;
    }
    let expected: Value = serde_json::from_str(text("answer")).unwrap();
    let difference = difference(&answer.json(), &expected, "");
    assert_eq!(difference, None, "{shown}");
}

#[test]
fn clients_get_the_answers_that_they_agreed_with() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clients");
    let server = Server::start("--served-name golden");
    let mut replayed = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let records = fs::read_to_string(&path).unwrap();
        for line in records.lines() {
            replay(&server, &serde_json::from_str(line).unwrap());
            *replayed.entry(path.clone()).or_insert(0) += 1;
        }
    }
    assert!(
        replayed.len() >= 4 && replayed.values().all(|&count| count > 2),
        "{replayed:?}"
    );
}
