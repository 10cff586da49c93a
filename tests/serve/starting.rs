//! How it starts, who may ask, and what it refuses to begin with.

use std::net::TcpListener;

use serde_json::json;

use super::Server;
use super::client::send;
use crate::cli::Place;

#[test]
fn keys() {
    let place = Place::with_model();
    place.write("key.txt", "very-secret-0123\n");
    let server = Server::start_in(place, "--api-key-file key.txt -vv");
    let body = json!({"prompt": "a", "max_tokens": 1}).to_string();
    let ask = |method, path, key: Option<&str>| {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(key.map(|key| ("Authorization", key)));
        send(&server.address, method, path, &headers, body.as_bytes())
    };
    let right = Some("Bearer very-secret-0123");
    for (method, path) in [
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/nowhere"),
    ] {
        for wrong in [
            None,
            Some("Bearer very-secret-012"),
            Some("Basic very-secret-0123"),
            Some("very-secret-0123"),
            Some("Bearer "),
        ] {
            let answer = ask(method, path, wrong);
            assert_eq!(answer.status, 401, "{path} {wrong:?}");
            assert_eq!(answer.error()["code"], "invalid_api_key");
            assert!(!answer.text().contains("secret"));
        }
        assert!(
            [200, 404].contains(&ask(method, path, right).status),
            "{path}"
        );
    }
    assert_eq!(ask("GET", "/health", None).status, 200);
    assert!(!server.said().contains("secret"), "{}", server.said());
}

#[test]
fn what_it_does_not_begin_with() {
    let place = Place::with_model();
    place.refused(
        "serve --model llama --host 0.0.0.0 --port 0",
        &["--api-key-file", "--no-key"],
    );
    place.refused(
        "serve --model llama --host :: --port 0",
        &["--api-key-file"],
    );
    place.refused(
        "serve --model llama --host no.such.host.invalid",
        &["no.such.host.invalid"],
    );
    place.refused("serve --model llama --api-key-file none.txt", &["none.txt"]);
    for bad in ["", "\n", "two words\n", "two\nlines\n", "ключ"] {
        place.write("key.txt", bad);
        place.refused(
            "serve --model llama --api-key-file key.txt",
            &["key.txt", "one line"],
        );
    }
    place.refused("serve --model nowhere", &["nowhere"]);
    place.refused("serve --model llama --port 70000", &["70000"]);
    place.refused("serve --model llama --batch 0", &["--batch"]);
    place.refused(
        "serve --model llama --max-model-len 513 --port 0",
        &["--max-model-len", "512"],
    );
    place.refused("serve --model llama --adapter llama --port 0", &["adapter"]);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    place.refused(
        &format!("serve --model llama --port {port}"),
        &["in use", "--port"],
    );
    std::fs::remove_file(place.path("llama/tokenizer.json")).unwrap();
    place.refused("serve --model llama --port 0", &["tokenizer.json"]);
    let help = place.ok("serve --help");
    assert!(help.contains("Examples:") && help.contains("--drain-seconds"));
}

/// Anybody may come where that is said.
#[test]
fn open_to_all() {
    let server = Server::start("--host 0.0.0.0 --no-key");
    assert!(server.address.starts_with("0.0.0.0:"));
}

/// It listens before the model is there, and says so.
#[test]
fn while_it_loads() {
    let server = Server::begin(Place::with_model(), "");
    let first = server.get("/health");
    assert!([200, 503].contains(&first.status));
    if first.status == 503 {
        assert!(
            first.error()["message"]
                .as_str()
                .unwrap()
                .contains("loaded")
        );
        assert!(first.header("retry-after").is_some());
    }
    assert_eq!(server.get("/v1/models").status, 200);
}
