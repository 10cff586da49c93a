//! `sppo serve`: the real binary with the golden model, asked by plain sockets.

mod chat;
mod client;
mod clients;
mod completions;
mod drain;
mod errors;
mod hostile;
mod judge;
mod logprobs;
mod soak;
mod starting;
mod streams;
mod talk;
mod tokens;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cli::Place;
use client::{Answer, send};

/// A server with the golden model, ended with the test.
pub(crate) struct Server {
    pub(crate) place: Place,
    pub(crate) address: String,
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Server {
    /// With the golden model as `llama`, ready.
    pub(crate) fn start(args: &str) -> Self {
        Self::start_in(Place::with_model(), args)
    }

    /// The same with what is in a folder.
    pub(crate) fn start_in(place: Place, args: &str) -> Self {
        let server = Self::begin(place, args);
        server.wait_until(|| server.get("/health").status == 200);
        server
    }

    /// Listening, with the model perhaps not yet there.
    pub(crate) fn begin(place: Place, args: &str) -> Self {
        let mut command = place.command("serve --model llama --port 0 --json");
        command.args(args.split_whitespace());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = Arc::<Mutex<String>>::default();
        let (mut errors, heard) = (child.stderr.take().unwrap(), said.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = errors.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..read]);
                heard.lock().unwrap().push_str(&text);
            }
        });
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        let first: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line:?}: {}", said.lock().unwrap()));
        Self {
            address: first["address"].as_str().unwrap().into(),
            place,
            child,
            said,
        }
    }

    /// What it wrote to stderr so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        send(&self.address, "GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes())
    }

    pub(crate) fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        let json = [("Content-Type", "application/json")];
        send(&self.address, "POST", path, &json, body)
    }

    /// An answer that must be 200.
    pub(crate) fn ok(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        answer.json()
    }

    pub(crate) fn completion(&self, body: Value) -> Value {
        self.ok("/v1/completions", body)
    }

    pub(crate) fn chat(&self, body: Value) -> Value {
        self.ok("/v1/chat/completions", body)
    }

    /// The text of the first choice.
    pub(crate) fn text(&self, body: Value) -> String {
        let answer = self.completion(body);
        answer["choices"][0]["text"].as_str().unwrap().into()
    }

    /// An answer that must be an error of this status and key.
    pub(crate) fn refused(&self, path: &str, body: &Value, status: u16, param: &str) -> String {
        let answer = self.post(path, body);
        let shown: String = body.to_string().chars().take(200).collect();
        assert_eq!(answer.status, status, "{shown}: {}", answer.text());
        let error = answer.error();
        let expected = if param.is_empty() {
            Value::Null
        } else {
            param.into()
        };
        assert_eq!(error["param"], expected, "{shown}: {error}");
        error["message"].as_str().unwrap().into()
    }

    /// A number of `/metrics`; 0 where it is not there yet.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until something is so.
    pub(crate) fn wait_until(&self, due: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !due() {
            assert!(Instant::now() < deadline, "it never came: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until nothing is under way.
    pub(crate) fn settle(&self) {
        let busy = || {
            let names = ["sppo:num_requests_running", "sppo:num_requests_waiting"];
            names.iter().any(|name| self.metric(name) > 0.0)
        };
        self.wait_until(|| !busy());
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        Command::new("sh").args(["-c", &kill]).status().unwrap();
    }

    /// Its exit code, once it ends.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server said: {}", self.said());
        } else {
            assert!(!self.said().contains("fault of sppo"), "{}", self.said());
        }
    }
}

/// A greedy completion of so many tokens that nothing ends before.
pub(crate) fn greedy(prompt: &str, tokens: usize) -> Value {
    json!({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true})
}
