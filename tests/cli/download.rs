//! Models and rows of the Hub: downloaded by the commands that name them, and read from its cache.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::Place;

const SET: &str = "hf://datasets/org/set/train";
const PROMPTS: &str = "{\"prompt\": \"hello\"}\n{\"prompt\": \"world\"}\n";

/// A hub with the model org/tiny, which is a folder, and the rows of org/set.
struct Hub {
    address: String,
    asked: Arc<AtomicUsize>,
}

impl Hub {
    fn of(folder: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                lines
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .for_each(drop);
                let words: Vec<&str> = first.split(' ').collect();
                let (status, body) = match answer(words[1], &folder) {
                    Some(body) => (200, body),
                    None => (404, Vec::new()),
                };
                let etag: u64 = body.iter().fold(7, |hash, byte| {
                    (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
                });
                let head = format!(
                    "HTTP/1.1 {status} X\r\nConnection: close\r\nETag: \"{etag:x}\"\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes());
                if words[0] == "GET" {
                    let _ = stream.write_all(&body);
                }
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

fn answer(path: &str, folder: &std::path::Path) -> Option<Vec<u8>> {
    let list = |names: Vec<String>| {
        let files: Vec<Value> = names
            .iter()
            .map(|name| json!({"rfilename": name}))
            .collect();
        json!({"sha": "a".repeat(40), "siblings": files})
            .to_string()
            .into_bytes()
    };
    match path {
        "/api/models/org/tiny/revision/main" => {
            let entries = fs::read_dir(folder).unwrap().flatten();
            Some(list(
                entries
                    .map(|entry| entry.file_name().into_string().unwrap())
                    .collect(),
            ))
        }
        "/api/datasets/org/set/revision/main" => Some(list(vec!["train.jsonl".into()])),
        path if path.starts_with("/datasets/org/set/resolve/") => Some(PROMPTS.into()),
        path => {
            let (_, name) = path.strip_prefix("/org/tiny/resolve/")?.split_once('/')?;
            fs::read(folder.join(name)).ok()
        }
    }
}

fn run(place: &Place, hub: &Hub, args: &str) -> Output {
    let mut command = place.command(args);
    command
        .env_remove("HF_HUB_OFFLINE")
        .env("HF_ENDPOINT", &hub.address);
    command.output().unwrap()
}

#[test]
fn what_a_command_names_is_downloaded_once() {
    let place = Place::with_model();
    let hub = Hub::of(place.path("llama"));
    place.write("prompts.jsonl", PROMPTS);
    let generate = |model: &str, prompts: &str, out: &str| {
        format!(
            "generate --model {model} --prompts {prompts} --out {out} --samples 1 --max-new-tokens 4"
        )
    };
    let first = run(&place, &hub, &generate("org/tiny", SET, "hub.jsonl"));
    let said = String::from_utf8_lossy(&first.stderr).into_owned();
    assert_eq!(first.status.code(), Some(0), "{said}");
    assert!(said.contains("downloading org/tiny"), "{said}");
    assert!(hub.asked() > 4);
    place.ok(&generate("llama", "prompts.jsonl", "own.jsonl"));
    assert_eq!(place.read("hub.jsonl"), place.read("own.jsonl"));
    // Nobody is asked for what is there, and it does without a network.
    let again = run(&place, &hub, &generate("org/tiny", SET, "again.jsonl"));
    assert_eq!((again.status.code(), hub.asked()), (Some(0), 0));
    place.ok(&generate("org/tiny", SET, "offline.jsonl"));
    assert_eq!(place.read("offline.jsonl"), place.read("own.jsonl"));
}

#[test]
fn download_prints_where_it_is() {
    let place = Place::with_model();
    let hub = Hub::of(place.path("llama"));
    place.write(
        "run.toml",
        format!(
            "[model]\npath = \"org/tiny\"\n[prompts]\ntrain = {SET:?}\nheldout = \"own.jsonl\"\n"
        ),
    );
    let ran = run(&place, &hub, "download --config run.toml --json");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(0), "{said}");
    let found: Value = serde_json::from_slice(&ran.stdout).unwrap();
    let found = found["downloaded"].as_array().unwrap();
    let ids: Vec<_> = found
        .iter()
        .map(|entry| entry["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["org/tiny", SET]);
    let folder = PathBuf::from(found[0]["paths"][0].as_str().unwrap());
    let config = fs::read(folder.join("config.json")).unwrap();
    assert_eq!(config, place.bytes("llama/config.json"));
    let rows = found[1]["paths"][0].as_str().unwrap();
    assert_eq!(fs::read_to_string(rows).unwrap(), PROMPTS);
}

#[test]
fn what_is_not_on_the_hub_is_said() {
    let place = Place::with_model();
    let hub = Hub::of(place.path("llama"));
    let refused = |args: &str, code: i32, parts: &[&str]| {
        let ran = run(&place, &hub, args);
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(code), "{args}: {said}");
        for part in parts {
            assert!(said.contains(part), "{part}: {said}");
        }
    };
    refused(
        "download org/other",
        2,
        &["the Hub has no org/other", "404"],
    );
    refused(
        "download hf://datasets/org/set/test",
        2,
        &["no such split", "train.jsonl"],
    );
    refused("download tiny", 2, &["org/name@revision"]);
    refused("download hf://org/set", 2, &["hf://datasets/org/name"]);
    place.refused(
        "download org/tiny",
        &["HF_HUB_OFFLINE", "models--org--tiny"],
    );
    place.refused(
        &format!("pairs --judged {SET} --out pairs.jsonl"),
        &[&format!("sppo download {SET}")],
    );
    let nobody = Hub {
        address: "http://127.0.0.1:9".into(),
        asked: Arc::default(),
    };
    let ran = run(&place, &nobody, "serve --model org/tiny");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("gives no answer"), "{said}");
}
