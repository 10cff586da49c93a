//! Requests that mean no good: the server stays as it is.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Server;
use super::client::{connect, receive, request, send};

const PATH: &str = "/v1/completions";
const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn sizes() {
    let server = Server::start("");
    // Said to be too long, and too long without saying so.
    let mut socket = connect(&server.address);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{{"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let answer = receive(&mut socket).unwrap();
    assert_eq!(answer.status, 413);
    answer.error();
    let body = vec![b' '; (16 << 20) + 1];
    assert_eq!(
        send(&server.address, "POST", PATH, &[JSON], &body).status,
        413
    );
    let mut socket = connect(&server.address);
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    for _ in 0..300 {
        if socket.write_all(&chunk).is_err() {
            break;
        }
    }
    // The answer may be lost where the server closes while it is written to.
    if let Some(answer) = receive(&mut socket) {
        assert_eq!(answer.status, 413);
    }

    let stops: Vec<String> = (0..1_000_000).map(|n| n.to_string()).collect();
    server.refused(PATH, &json!({"prompt": "a", "stop": stops}), 400, "stop");
    let keys: String = (0..100_000).map(|n| format!("\"key{n}\": 1, ")).collect();
    let body = format!("{{{keys} \"prompt\": \"a\", \"max_tokens\": 1}}");
    assert_eq!(server.post_bytes(PATH, body.as_bytes()).status, 200);
    assert!(server.said().len() < 100_000);
    let long = "word ".repeat(500_000);
    server.refused(PATH, &json!({"prompt": long}), 400, "prompt");
    server.refused(PATH, &json!({"prompt": vec![1; 1_000_000]}), 400, "prompt");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn headers() {
    let server = Server::start("");
    let many: Vec<(String, String)> = (0..5_000)
        .map(|n| (format!("X-{n}"), "y".repeat(50)))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let long = "y".repeat(200_000);
    for headers in [&many[..], &[("X-Long", long.as_str())], &many[..200]] {
        let mut socket = connect(&server.address);
        let _ = socket.write_all(&request("GET", "/health", headers, b""));
        let status = receive(&mut socket).map(|answer| answer.status);
        assert!(matches!(status, None | Some(431 | 400)), "{status:?}");
    }
    for rubbish in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
        b"POST /v1/completions HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut socket = connect(&server.address);
        socket.write_all(rubbish).unwrap();
        let mut end = Vec::new();
        let _ = socket.read_to_end(&mut end);
        assert!(!end.starts_with(b"HTTP/1.1 200"));
    }
    let long = format!("/{}", "a".repeat(20_000));
    assert_eq!(server.get(&long).status, 404);
    assert_eq!(server.get("/health").status, 200);
}

/// Heads and bodies that do not come end after the time that is given.
#[test]
fn those_who_take_their_time() {
    let server = Server::start("--timeout 1");
    let begun = Instant::now();
    let mut head = connect(&server.address);
    head.write_all(b"GET /health HTT").unwrap();
    let mut body = connect(&server.address);
    let start = format!(
        "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
    );
    body.write_all(start.as_bytes()).unwrap();
    let mut idle = connect(&server.address);
    let answer = receive(&mut body).unwrap();
    assert_eq!(answer.status, 408);
    answer.error();
    for socket in [&mut head, &mut idle] {
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// A reader that takes nothing loses its answer, and nobody waits for it.
#[test]
fn a_stream_that_nobody_reads() {
    let server = Server::start("--timeout 2 --batch 8");
    let body = json!({"prompt": "a", "max_tokens": 510, "stream": true, "ignore_eos": true, "logprobs": 20, "n": 128});
    let mut socket = connect(&server.address);
    socket
        .write_all(&request("POST", PATH, &[JSON], body.to_string().as_bytes()))
        .unwrap();
    // 65 thousand tokens with 20 others each are some 100 MB, more than sockets and channel hold.
    let others = json!({"prompt": "b", "max_tokens": 2});
    let deadline = Instant::now() + Duration::from_secs(120);
    while server.metric("sppo:requests_cancelled_total") == 0.0 {
        assert!(
            Instant::now() < deadline,
            "{}",
            server.get("/metrics").text()
        );
        server.completion(others.clone());
    }
    server.settle();
    drop(socket);
}
