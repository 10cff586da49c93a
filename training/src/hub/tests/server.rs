//! A server on loopback that speaks as the Hub does: lists of files, headers that name what a file
//! holds, large files on another server, and whatever can go wrong on the way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::files::hex;

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every question gets this status, with this `X-Error-Code`.
    pub status: Option<(u16, &'static str)>,
    /// So many questions get status 503 first.
    pub busy: usize,
    /// So many transfers of large files end after this many bytes.
    pub breaks: (usize, usize),
    /// Ranges are not heard of.
    pub no_ranges: bool,
    /// Bytes that the announced size has too many.
    pub announced_more: i64,
    /// What is sent has another first byte.
    pub altered: bool,
    /// Questions without this token get 401.
    pub token: Option<&'static str>,
    /// Repositories are asked for by their old name first.
    pub renamed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub method: String,
    /// With `cdn:` in front where it was the other server.
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

#[derive(Default)]
struct State {
    /// By path below the Hub's address and revision.
    files: BTreeMap<(String, String), BTreeMap<String, Vec<u8>>>,
    commits: BTreeMap<(String, String), String>,
    faults: Faults,
    asked: Vec<Asked>,
}

/// The server; threads end with the process.
pub struct FakeHub {
    state: Arc<Mutex<State>>,
    pub address: String,
}

/// Files of at least this many bytes lie on the other server.
pub const LARGE: usize = 1000;

impl FakeHub {
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let cdn = serve(state.clone(), None);
        let address = serve(state.clone(), Some(cdn));
        Self { state, address }
    }

    /// Puts a repository there (`org/name` or `datasets/org/name`).
    pub fn put(&self, page: &str, revision: &str, commit: char, files: &[(&str, &[u8])]) {
        let key = (page.to_string(), revision.to_string());
        let files = files
            .iter()
            .map(|(name, bytes)| (name.to_string(), bytes.to_vec()));
        let mut state = lock(&self.state);
        state.files.insert(key.clone(), files.collect());
        state.commits.insert(key, commit.to_string().repeat(40));
    }

    pub fn faults(&self, faults: Faults) {
        lock(&self.state).faults = faults;
    }

    /// What was asked since this was last called.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut lock(&self.state).asked)
    }

    /// The files whose bytes were asked for, in their order.
    pub fn transferred(&self) -> Vec<String> {
        let asked = self.asked().into_iter();
        let files = asked.filter(|asked| asked.method == "GET" && !asked.path.starts_with("cdn:"));
        let names = files.filter_map(|asked| {
            let (_, file) = asked.path.split_once("/resolve/")?;
            Some(file.split_once('/')?.1.to_string())
        });
        names.collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Answers on a port of its own; `cdn` is where large files lie, none for that server itself.
fn serve(state: Arc<Mutex<State>>, cdn: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, cdn) = (state.clone(), cdn.clone());
            std::thread::spawn(move || answer(stream, &state, cdn.as_deref()));
        }
    });
    address
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, cdn: Option<&str>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_string(), words.next()?.to_string());
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|l| !l.is_empty())
        .collect();
    let header = |name: &str| {
        let mut headers = headers.iter().filter_map(|line| line.split_once(": "));
        let (_, value) = headers.find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(value.to_string())
    };
    let asked = Asked {
        path: format!("{}{path}", if cdn.is_some() { "" } else { "cdn:" }),
        range: header("range"),
        token: header("authorization"),
        method: method.clone(),
    };
    let mut state = lock(state);
    state.asked.push(asked.clone());
    let reply = match cdn {
        Some(cdn) => hub(&mut state, &asked, cdn),
        None => bytes_of(&mut state, &asked),
    };
    drop(state);
    let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    let length = reply.length.unwrap_or(reply.body.len());
    text += &format!("Content-Length: {length}\r\n\r\n");
    stream.write_all(text.as_bytes()).ok()?;
    if method != "HEAD" {
        stream.write_all(&reply.body).ok()?;
    }
    stream.flush().ok()
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// What is announced, where it is not what is sent.
    length: Option<usize>,
}

fn status(status: u16, code: &str) -> Reply {
    Reply {
        status,
        headers: match code {
            "" => vec![],
            code => vec![("X-Error-Code", code.into())],
        },
        ..Reply::default()
    }
}

fn hub(state: &mut State, asked: &Asked, cdn: &str) -> Reply {
    if state.faults.busy > 0 {
        state.faults.busy -= 1;
        return status(503, "");
    }
    if let Some((code, name)) = state.faults.status {
        return status(code, name);
    }
    let expected = state.faults.token.map(|token| format!("Bearer {token}"));
    if expected.is_some() && asked.token != expected {
        return status(401, "");
    }
    let path = asked.path.split('?').next().unwrap_or_default();
    if let Some(rest) = path.strip_prefix("/api/") {
        let rest = rest.strip_prefix("models/").unwrap_or(rest);
        let Some((page, revision)) = rest.split_once("/revision/") else {
            return status(404, "RepoNotFound");
        };
        if state.faults.renamed && page == "org/old" {
            return Reply {
                status: 307,
                headers: vec![(
                    "Location",
                    format!("/api/models/org/new/revision/{revision}"),
                )],
                ..Reply::default()
            };
        }
        let key = (page.to_string(), revision.replace("%2F", "/"));
        let Some(files) = state.files.get(&key) else {
            let known = state.files.keys().any(|(known, _)| known == page);
            return status(
                404,
                if known {
                    "RevisionNotFound"
                } else {
                    "RepoNotFound"
                },
            );
        };
        let siblings: Vec<_> = files
            .keys()
            .map(|name| json!({"rfilename": name}))
            .collect();
        let body = json!({"sha": state.commits[&key], "siblings": siblings}).to_string();
        return Reply {
            status: 200,
            body: body.into_bytes(),
            ..Reply::default()
        };
    }
    let Some((page, commit, name)) = file_of(path) else {
        return status(404, "EntryNotFound");
    };
    if state.faults.renamed && page == "org/old" {
        return Reply {
            status: 307,
            headers: vec![("Location", format!("/org/new/resolve/{commit}/{name}"))],
            ..Reply::default()
        };
    }
    let Some((bytes, commit)) = find(state, page, commit, name) else {
        return status(404, "EntryNotFound");
    };
    let mut headers = vec![("X-Repo-Commit", commit)];
    if bytes.len() < LARGE {
        headers.push((
            "ETag",
            format!("\"{}\"", &hex(&Sha256::digest(&bytes))[..40]),
        ));
        return Reply {
            status: 200,
            headers,
            body: bytes,
            length: None,
        };
    }
    let size = bytes.len() as i64 + state.faults.announced_more;
    headers.extend([
        ("ETag", "\"of-the-redirect\"".into()),
        (
            "X-Linked-ETag",
            format!("\"{}\"", hex(&Sha256::digest(&bytes))),
        ),
        ("X-Linked-Size", size.to_string()),
        ("Location", format!("{cdn}{path}?signature=x")),
    ]);
    Reply {
        status: 302,
        headers,
        body: b"redirecting".to_vec(),
        length: None,
    }
}

fn bytes_of(state: &mut State, asked: &Asked) -> Reply {
    let path = asked
        .path
        .trim_start_matches("cdn:")
        .split('?')
        .next()
        .unwrap_or_default();
    let (page, commit, name) = file_of(path).unwrap();
    let (mut bytes, _) = find(state, page, commit, name).unwrap();
    if state.faults.altered {
        bytes[0] ^= 1;
    }
    let start = asked.range.as_deref().filter(|_| !state.faults.no_ranges);
    let start: Option<usize> = start.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .trim_end_matches('-')
            .parse()
            .ok()
    });
    let size = bytes.len();
    let mut reply = Reply {
        status: 200,
        headers: vec![("ETag", "\"of-the-other-server\"".into())],
        ..Reply::default()
    };
    if let Some(start) = start {
        if start >= size {
            return status(416, "");
        }
        bytes.drain(..start);
        reply.status = 206;
        reply.headers.push((
            "Content-Range",
            format!("bytes {start}-{}/{size}", size - 1),
        ));
    }
    reply.length = Some(bytes.len());
    let (times, after) = &mut state.faults.breaks;
    if *times > 0 {
        *times -= 1;
        bytes.truncate(*after);
    }
    reply.body = bytes;
    reply
}

/// `/PAGE/resolve/COMMIT/FILE`.
fn file_of(path: &str) -> Option<(&str, &str, &str)> {
    let (page, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
    let (commit, name) = rest.split_once('/')?;
    Some((page, commit, name))
}

/// A file by the commit or the name of its revision.
fn find(state: &State, page: &str, revision: &str, name: &str) -> Option<(Vec<u8>, String)> {
    let mut all = state.files.iter();
    let of = |key: &(String, String)| {
        key.0 == page && (state.commits[key] == revision || key.1 == revision)
    };
    let (key, files) = all.find(|(key, _)| of(key))?;
    Some((files.get(name)?.clone(), state.commits[key].clone()))
}
