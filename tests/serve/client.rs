//! HTTP as little as it takes, over a socket that a test holds in its hands.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// A response.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The error of a body that has OpenAI's form.
    pub(crate) fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        for key in ["message", "type"] {
            assert!(error[key].is_string(), "{key}: {}", self.text());
        }
        for key in ["param", "code"] {
            assert!(error.get(key).is_some(), "{key}: {}", self.text());
        }
        error
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

pub(crate) fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

/// The bytes of a request.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Asks on a connection of its own.
pub(crate) fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let close = [headers, &[("Connection", "close")]].concat();
    let mut stream = connect(address);
    // A server that refuses a long body need not read all of it.
    let _ = stream.write_all(&request(method, path, &close, body));
    receive(&mut stream).expect("an answer")
}

/// Reads one response to its end; none where the connection ended before one began.
pub(crate) fn receive(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = find(&bytes, b"\r\n\r\n") {
            break end;
        }
        if !more(stream, &mut bytes) {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut body = bytes.split_off(end + 4);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut answer = Answer {
        status,
        head,
        body: Vec::new(),
    };
    if answer.header("transfer-encoding") == Some("chunked") {
        while !body.ends_with(b"0\r\n\r\n") && more(stream, &mut body) {}
        answer.body = unchunked(&body);
    } else {
        let length = answer
            .header("content-length")
            .map_or(0, |n| n.parse().unwrap());
        while body.len() < length && more(stream, &mut body) {}
        assert_eq!(body.len(), length);
        answer.body = body;
    }
    Some(answer)
}

/// Reads what is there; false at the end.
fn more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> bool {
    let mut part = [0; 16384];
    match stream.read(&mut part) {
        Ok(read @ 1..) => {
            bytes.extend(&part[..read]);
            true
        }
        _ => false,
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|part| part == what)
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = find(bytes, b"\r\n") {
        let size = std::str::from_utf8(&bytes[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let Some(part) = bytes.get(end + 2..end + 2 + size) else {
            break;
        };
        body.extend(part);
        bytes = &bytes[end + 4 + size..];
        if size == 0 {
            break;
        }
    }
    body
}

/// The data of server-sent events, with `[DONE]` checked and left out.
pub(crate) fn events(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    let text = answer.text();
    let mut data: Vec<&str> = text
        .split("\n\n")
        .filter(|part| !part.is_empty() && !part.starts_with(':'))
        .map(|part| part.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}
