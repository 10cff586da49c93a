//! A server that replies what a test wants, and the judge's configuration for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::cli::Place;

pub const KEY: &str = "sk-test-Zx9Qw7rTyu2LmNpV";
pub const JUDGE: &str =
    "judge --responses responses.jsonl --judge http --config judge.toml --out judged.jsonl";
/// A verdict that every judge takes.
pub const VERDICT: &str = "{\"choices\": [{\"message\": {\"content\": \"A\"}}]}";

/// Replies to request number n (from 0), whose head and body are given; the reply has status line
/// and headers but no length. Gives the port and the number of requests so far.
pub fn start(
    reply: impl Fn(usize, &str) -> (String, String) + Send + Sync + 'static,
) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, reply) = (Arc::new(AtomicUsize::new(0)), Arc::new(reply));
    let counted = count.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (count, reply) = (count.clone(), reply.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                let (mut text, mut length) = (String::new(), 0);
                while !text.ends_with("\r\n\r\n") {
                    let from = text.len();
                    if reader.read_line(&mut text).ok()? == 0 {
                        return None;
                    }
                    let line = text[from..].to_lowercase();
                    if let Some(value) = line.strip_prefix("content-length:") {
                        length = value.trim().parse().ok()?;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).ok()?;
                text += &String::from_utf8(body).ok()?;
                let (head, body) = reply(count.fetch_add(1, Ordering::SeqCst), &text);
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                reader.into_inner().write_all(text.as_bytes()).ok()
            });
        }
    });
    (port, counted)
}

/// One row of two responses, and a judge at `address`, with more lines for `[judge.http]`.
pub fn place(address: &str, more: &str) -> Place {
    let place = Place::new();
    let row = json!({"prompt_id": "a", "prompt": "q", "responses": ["x", "yy"]});
    place.write_rows("responses.jsonl", &[row]);
    let config = format!(
        "[judge.http]\nbase_url = \"{address}\"\nmodel = \"m\"\nretry_seconds = 0.01\n\
         timeout_seconds = 5\nconcurrency = 1\nlogprobs = false\n{more}\n"
    );
    place.write("judge.toml", config);
    place
}

/// Runs the judge with a key; its exit code and all that it printed.
pub fn judge(place: &Place, more: &str) -> (Option<i32>, String) {
    let mut command = place.command(&format!("{JUDGE} {more}"));
    let Output {
        status,
        stdout,
        stderr,
    } = command.env("OPENAI_API_KEY", KEY).output().unwrap();
    let text = String::from_utf8([stdout, stderr].concat()).unwrap();
    (status.code(), text)
}
