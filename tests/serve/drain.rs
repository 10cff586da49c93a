//! The end: what is under way is finished, nothing new begins.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Server;
use super::client::{connect, events, receive, request};

const JSON: (&str, &str) = ("Content-Type", "application/json");

/// A stream of so many tokens that has begun.
fn stream(server: &Server, tokens: usize) -> TcpStream {
    let body = json!({"prompt": "hello", "max_tokens": tokens, "stream": true, "ignore_eos": true});
    let mut socket = connect(&server.address);
    let bytes = request(
        "POST",
        "/v1/completions",
        &[JSON],
        body.to_string().as_bytes(),
    );
    socket.write_all(&bytes).unwrap();
    let mut head = [0; 15];
    while socket.peek(&mut head).unwrap() < head.len() {}
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    socket
}

#[test]
fn ten_streams_are_finished() {
    let mut server = Server::start("--batch 4");
    let streams: Vec<_> = (0..10).map(|_| stream(&server, 400)).collect();
    // A connection that is kept from before.
    let mut kept = connect(&server.address);
    kept.write_all(&request("GET", "/health", &[], b""))
        .unwrap();
    assert_eq!(receive(&mut kept).unwrap().status, 200);
    server.signal("TERM");
    server.wait_until(|| server.said().contains("INFO finishing"));
    let body = json!({"prompt": "hello"}).to_string();
    std::thread::sleep(Duration::from_millis(150));
    kept.write_all(&request(
        "POST",
        "/v1/completions",
        &[JSON],
        body.as_bytes(),
    ))
    .unwrap();
    if let Some(answer) = receive(&mut kept) {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"));
        answer.error();
    }
    assert!(
        TcpStream::connect(&server.address).is_err(),
        "it accepts no more"
    );
    for mut socket in streams {
        let chunks = events(&receive(&mut socket).unwrap());
        let last = &chunks.last().unwrap()["choices"][0];
        assert_eq!(last["finish_reason"], "length");
        assert!(chunks.len() > 50, "{} chunks", chunks.len());
    }
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn what_takes_too_long_is_cut_off_and_told() {
    let mut server = Server::start("--batch 1 --drain-seconds 0.2");
    let streams: Vec<_> = (0..20).map(|_| stream(&server, 500)).collect();
    server.signal("INT");
    assert_eq!(server.exit_code(), Some(0));
    let told = streams.into_iter().filter(|socket| {
        let mut text = String::new();
        let mut socket = socket;
        let _ = socket.read_to_string(&mut text);
        text.contains("data: {\"error\":")
    });
    assert!(told.count() > 0);
    server.wait_until(|| server.said().contains("cut off"));
}

#[test]
fn an_idle_server_ends_at_once() {
    let mut server = Server::start("");
    let _kept = connect(&server.address);
    let begun = Instant::now();
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
}
