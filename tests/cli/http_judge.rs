//! `sppo judge --judge http` against a server that fails, stalls, lies and drops connections.

use std::collections::HashMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::Place;
use super::signals::{Moments, kill, wait_until};

const KEY: &str = "sk-test-0123456789abcdef";
const JUDGE: &str =
    "judge --responses responses.jsonl --judge http --config judge.toml --out judged.jsonl";

/// What the server does with a question it hears for the first time.
#[derive(Clone, Copy, PartialEq)]
enum Manners {
    Good,
    Bad,
    /// Says no to everything, and sends the key back.
    Forbids,
    /// Never makes sense.
    Babbles,
}

/// How often each question was asked, and how often it was answered in full.
#[derive(Default)]
struct Log {
    asked: HashMap<String, usize>,
    answered: HashMap<String, usize>,
    keys: Vec<String>,
}

/// A server on a port of its own, for as long as the test runs.
struct Server {
    port: u16,
    log: Arc<Mutex<Log>>,
}

impl Server {
    fn start(manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            port: listener.local_addr().unwrap().port(),
            log: Arc::default(),
        };
        let log = server.log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let log = log.clone();
                std::thread::spawn(move || serve(stream, manners, &log));
            }
        });
        server
    }

    /// Questions asked, requests made, answers given in full.
    fn counts(&self) -> (usize, usize, usize) {
        let log = self.log.lock().unwrap();
        let sum = |counts: &HashMap<String, usize>| counts.values().sum::<usize>();
        (log.asked.len(), sum(&log.asked), sum(&log.answered))
    }
}

/// One request; a client that is gone is no error.
fn serve(stream: TcpStream, manners: Manners, log: &Mutex<Log>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let (mut length, mut key) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if lower.starts_with("authorization:") {
            key = line["authorization:".len()..].trim().to_string();
        }
        match line.as_str() {
            "\r\n" => break,
            // The client was killed.
            "" => return None,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let first = {
        let mut log = log.lock().unwrap();
        log.keys.push(key.clone());
        let asked = log.asked.entry(body.clone()).or_default();
        *asked += 1;
        *asked == 1
    };
    let mut hash = DefaultHasher::new();
    body.hash(&mut hash);
    let number = hash.finish();
    // Answers come late and out of order.
    std::thread::sleep(Duration::from_millis(number % 20));
    let answer = completion(&body);
    let ok = |body: &str| reply(&stream, "200 OK", "", body, body.len());
    match (manners, first, number % 7) {
        (Manners::Forbids, ..) => reply(&stream, "401 Unauthorized", "", &key, key.len()),
        (Manners::Babbles, ..) => ok("{\"choices\": [{\"message\": {\"content\": \"Hm.\"}}]}"),
        (Manners::Bad, true, 0) => reply(&stream, "500 Oh", "", &key, key.len()),
        (Manners::Bad, true, 1) => reply(&stream, "429 Slowly", "Retry-After: 0\r\n", "", 0),
        (Manners::Bad, true, 2) => Some(()),
        (Manners::Bad, true, 3) => ok("{\"choices\": [{\"message\": {\"content\": \"Well\"}}]}"),
        (Manners::Bad, true, 4) => reply(&stream, "200 OK", "", &answer[..20], answer.len()),
        (Manners::Bad, true, 5) => {
            std::thread::sleep(Duration::from_millis(700));
            Some(())
        }
        _ => {
            ok(&answer)?;
            *log.lock().unwrap().answered.entry(body).or_default() += 1;
            Some(())
        }
    }
}

fn reply(
    mut stream: &TcpStream,
    status: &str,
    header: &str,
    body: &str,
    length: usize,
) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(format!("{head}{body}").as_bytes()).ok()
}

/// Log-probabilities that depend on the two responses' lengths.
fn completion(request: &str) -> String {
    let request: Value = serde_json::from_str(request).unwrap();
    let text = request["messages"][0]["content"].as_str().unwrap();
    let parts: Vec<&str> = text.split('|').collect();
    let (a, b) = (-0.1 * parts[1].len() as f64, -0.1 * parts[2].len() as f64);
    let top = json!([{"token": "A", "logprob": a}, {"token": " B", "logprob": b}]);
    let token = json!({"token": "A", "logprob": a, "top_logprobs": top});
    json!({"choices": [{"message": {"content": "A"}, "logprobs": {"content": [token]}}]})
        .to_string()
}

/// Rows, of which some have identical responses, and a configuration for the server.
fn place(server: &Server, rows: usize, more: &str) -> Place {
    let place = Place::new();
    let text = |n: usize| "x".repeat(n % 5 + 1);
    let rows = (0..rows).map(|i| {
        json!({"prompt_id": format!("p{i}"), "prompt": format!("q{i}"),
               "responses": [text(i), text(i + 1), text(i + 2), text(i)]})
    });
    place.write_rows("responses.jsonl", &rows.collect::<Vec<_>>());
    let config = format!(
        "[judge.http]\nbase_url = \"http://127.0.0.1:{}/v1\"\nmodel = \"m\"\nretry_seconds = 0.01\n\
         timeout_seconds = 0.4\nconcurrency = 4\ntemplate = '{{prompt}}|{{response_a}}|{{response_b}}'\n{more}\n",
        server.port
    );
    place.write("judge.toml", config);
    place
}

fn judge(place: &Place, more: &str) -> (Option<i32>, String) {
    let mut command = place.command(&format!("{JUDGE} {more}"));
    let output = command.env("OPENAI_API_KEY", KEY).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains(KEY), "the key is shown: {text}");
    for entry in fs::read_dir(place.path(".")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(KEY.len()).any(|part| part == KEY.as_bytes());
        assert!(!found, "the key is in {}", path.display());
    }
    (output.status.code(), text)
}

/// Every row's matrix is what the server's answers make it.
fn assert_judged(place: &Place, rows: usize) {
    let judged = place.rows("judged.jsonl");
    assert_eq!(judged.len(), rows);
    for (i, row) in judged.iter().enumerate() {
        assert_eq!(row["prompt_id"], format!("p{i}"));
        let lengths: Vec<f64> = row["responses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap().len() as f64)
            .collect();
        for (a, from) in lengths.iter().enumerate() {
            for (b, to) in lengths.iter().enumerate() {
                let found = row["comparison_logits"][a][b].as_f64().unwrap();
                let expected = if a == b { 0.0 } else { 0.1 * (to - from) };
                assert!((found - expected).abs() < 1e-9, "{i} {a} {b}: {found}");
            }
        }
    }
}

#[test]
fn no_comparison_is_lost_or_doubled() {
    let server = Server::start(Manners::Bad);
    let place = place(&server, 12, "");
    let (code, text) = judge(&place, "");
    assert_eq!(code, Some(0), "{text}");
    assert_judged(&place, 12);
    // Three distinct responses a row, the fourth is the first again.
    let (questions, requests, answers) = server.counts();
    assert_eq!((questions, answers), (12 * 6, 12 * 6));
    assert!(requests > questions, "some were asked again");
    let log = server.log.lock().unwrap();
    assert!(log.keys.iter().all(|key| *key == format!("Bearer {KEY}")));
}

#[test]
fn a_killed_judge_goes_on_and_pays_nothing_twice() {
    let server = Server::start(Manners::Good);
    let place = place(&server, 30, "");
    let mut moments = Moments(5);
    let mut killed = 0;
    while killed < 4 {
        let mut child = place.start(JUDGE);
        let lines =
            || fs::read(place.path("judged.jsonl.cache.jsonl")).map_or(0, |text| text.len());
        let before = lines();
        if !wait_until(&mut child, || lines() > before + 200) {
            break;
        }
        std::thread::sleep(moments.pause(Duration::from_millis(60)));
        killed += usize::from(kill(child));
    }
    assert!(killed > 0);
    let (code, text) = judge(&place, "");
    assert_eq!(code, Some(0), "{text}");
    assert_judged(&place, 30);
    let (questions, _, answers) = server.counts();
    assert_eq!(questions, 30 * 6);
    // What was under way at a kill may be asked again: four questions each time.
    assert!(answers <= questions + 4 * killed, "{answers} answers");
    // Without the output everything is in the cache.
    fs::remove_file(place.path("judged.jsonl")).unwrap();
    assert_eq!(judge(&place, "").0, Some(0));
    assert_eq!(server.counts().2, answers);
    assert_judged(&place, 30);
}

#[test]
fn a_dry_run_sends_nothing() {
    let server = Server::start(Manners::Good);
    let place = place(&server, 2, "");
    let (code, text) = judge(&place, "--dry-run");
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("2 rows, 12 comparisons, 0 of them in the cache: 12 requests"),
        "{text}"
    );
    assert!(text.contains("\"content\": \"q0|x|xx\""), "{text}");
    assert_eq!(server.counts(), (0, 0, 0));
    assert!(!place.path("judged.jsonl.cache.jsonl").exists());
    judge(&place, "");
    let (_, text) = judge(&place, "--dry-run");
    assert!(
        text.contains("12 of them in the cache: 0 requests"),
        "{text}"
    );
}

#[test]
fn refusals_and_nonsense_end_it() {
    let server = Server::start(Manners::Forbids);
    let forbidden = place(&server, 2, "");
    let (code, text) = judge(&forbidden, "");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("status 401: Bearer [key]"), "{text}");
    assert!(server.counts().1 <= 4, "it is not asked again");

    let server = Server::start(Manners::Babbles);
    let babble = place(&server, 1, "retries = 1");
    let (code, text) = judge(&babble, "");
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("in 2 attempts") && text.contains("\"Hm.\" is none of"),
        "{text}"
    );
    let (code, text) = judge(&babble, "--set judge.http.on_invalid=tie");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(
        babble.rows("judged.jsonl")[0]["rm_scores"],
        json!([0.0, 0.0, 0.0, 0.0])
    );
}

#[test]
fn settings_that_make_no_sense() {
    let server = Server::start(Manners::Good);
    let place = place(&server, 1, "");
    for (set, parts) in [
        (
            "judge.http.base_url=localhost:80",
            ["judge.http.base_url", "http:// or https://"],
        ),
        (
            "judge.http.base_url=http://me:pw@host/v1",
            ["judge.http.base_url", "user or password"],
        ),
        (
            "judge.http.template={prompt}{response_a}",
            ["judge.http.template", "{response_b} is missing"],
        ),
        (
            "judge.http.template={x}",
            ["judge.http.template", "unknown placeholder {x}"],
        ),
        ("judge.http.second=A", ["judge.http.first", "must differ"]),
        (
            "judge.http.concurrency=0",
            ["judge.http.concurrency", "1 or more"],
        ),
        (
            "judge.http.timeout_seconds=0",
            ["judge.http.timeout_seconds", "above 0"],
        ),
    ] {
        place.refused(&format!("{JUDGE} --set {set}"), &parts);
    }
    place.write("judge.toml", "[judge.http]\nmodel = \"m\"\n");
    place.refused(JUDGE, &["judge.kind = \"http\" needs judge.http.base_url"]);
    place.write("judge.toml", "[judge.http]\nbase_url = \"http://h\"\n");
    place.refused(JUDGE, &["judge.kind = \"http\" needs judge.http.model"]);
    place.write_rows(
        "responses.jsonl",
        &[json!({"prompt_id": "a", "prompt": "q", "responses": ["x"]})],
    );
    place.write(
        "judge.toml",
        "[judge.http]\nmodel = \"m\"\nbase_url = \"http://h\"\n",
    );
    place.refused(JUDGE, &["prompt_id `a`", "it has 1 response(s)"]);
    place.refused(
        &JUDGE.replace("http --config judge.toml", "rubric --dry-run"),
        &["--dry-run is for --judge http"],
    );
    assert_eq!(server.counts().1, 0);
}
