//! A chat model behind an OpenAI-compatible address, asked which of two responses is better.

mod answer;
mod cache;
mod client;
mod prompt;
mod retry_after;
mod secrets;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use serde_json::{Value, json};

use super::open_rows::OpenRows;
use super::{Comparisons, Estimate, Judge, JudgeError, JudgeSession, Sharing};
use crate::config::{Address, JudgeHttp, OnInvalid};
use crate::data::{ResponseRow, stable_hash};

use answer::Words;
use cache::Cache;
use client::{AskError, Client};
use prompt::{DEFAULT_TEMPLATE, Template, prompt_text};

/// Compares responses by asking a server.
pub struct HttpJudge {
    config: JudgeHttp,
    model: String,
    client: Client,
    template: Template,
    cache: Cache,
    estimate: Estimate,
    description: Value,
}

/// What judging would ask, for a look before anything is paid for.
#[derive(Clone, Debug, PartialEq)]
pub struct DryRun {
    /// Where the questions go.
    pub url: String,
    /// Rows that would be judged.
    pub rows: usize,
    /// Comparisons of distinct responses, both orders.
    pub comparisons: usize,
    /// Those whose answer is in the cache.
    pub cached: usize,
    /// The body of the first request.
    pub example: Option<Value>,
}

/// One question that waits or is under way.
struct Question {
    key: String,
    request: Value,
}

impl HttpJudge {
    /// With the key of the environment; `write_cache` is false for a look only.
    pub fn new(
        config: JudgeHttp,
        estimate: Estimate,
        write_cache: bool,
    ) -> Result<Self, JudgeError> {
        let key = key(&config)?;
        let base_url = base_url(&config, key.as_deref())?;
        let model = config.model.clone();
        let model =
            model.ok_or_else(|| wrong("model", "is missing: the model's name on the server"))?;
        let text = config.template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
        let template = Template::new(text).map_err(|problem| wrong("template", problem))?;
        let timeout = seconds(config.timeout_seconds);
        let mut client = Client::new(base_url, key, words(&config), timeout);
        client.retries = config.retries;
        client.first_pause = seconds(config.retry_seconds);
        client.invalid_is_tie = config.on_invalid == OnInvalid::Tie;
        let cache = match &config.cache {
            Some(path) => Cache::open(path, write_cache)?,
            None => Cache::none(),
        };
        let asked = json!({
            "base_url": base_url.shown(),
            "model": model,
            "question": stable_hash(&(text, &config.system, &client.words.first, &client.words.second, &client.words.tie)),
            "logprobs": config.logprobs,
            "text_logit": config.text_logit,
        });
        Ok(HttpJudge {
            description: estimate.describe("http", asked),
            config,
            model,
            client,
            template,
            cache,
            estimate,
        })
    }

    /// Counts what [`Judge::judge`] would ask; sends nothing.
    pub fn dry_run(&self, rows: &[ResponseRow]) -> Result<DryRun, JudgeError> {
        self.check(rows)?;
        let mut run = DryRun {
            url: self.client.url.clone(),
            rows: rows.len(),
            comparisons: 0,
            cached: 0,
            example: None,
        };
        for row in rows {
            let comparisons = Comparisons::new(&row.responses);
            let pairs = comparisons.pairs().iter();
            for &(left, right) in pairs.filter(|(left, right)| left != right) {
                let question = self.question(row, left, right);
                run.comparisons += 1;
                run.cached += usize::from(self.cache.get(&question.key).is_some());
                run.example.get_or_insert(question.request);
            }
        }
        Ok(run)
    }

    fn question(&self, row: &ResponseRow, left: usize, right: usize) -> Question {
        let (a, b) = (&row.responses[left], &row.responses[right]);
        let text = self.template.fill(&prompt_text(row), a, b);
        let mut messages = Vec::new();
        if let Some(system) = &self.config.system {
            messages.push(json!({ "role": "system", "content": system }));
        }
        messages.push(json!({ "role": "user", "content": text }));
        let mut request = json!({
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        });
        if self.config.logprobs {
            request["logprobs"] = json!(true);
            request["top_logprobs"] = json!(20);
        }
        let words = &self.client.words;
        let reading = (
            &words.first,
            &words.second,
            &words.tie,
            words.text_logit.to_bits(),
        );
        Question {
            key: stable_hash(&(&self.client.url, request.to_string(), reading)),
            request,
        }
    }

    fn failed(&self, row: &ResponseRow, error: AskError) -> JudgeError {
        match error {
            AskError::Refused { .. } => JudgeError::Config {
                key: "judge.http".into(),
                problem: error.to_string(),
            },
            error => JudgeError::Failed {
                judge: "http".into(),
                prompt_id: row.prompt_id.clone(),
                source: Box::new(error),
            },
        }
    }
}

impl Judge for HttpJudge {
    fn name(&self) -> &str {
        "http"
    }

    fn check_row(&self, row: &ResponseRow) -> Result<(), JudgeError> {
        self.estimate.check_pairs(row)
    }

    /// At most `concurrency` questions are under way. After the first error, or once the session is
    /// interrupted, no more are sent; the answers to those under way are still kept.
    fn judge(
        &mut self,
        rows: &[&ResponseRow],
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError> {
        let mut cache = std::mem::replace(&mut self.cache, Cache::none());
        let stop = AtomicBool::new(false);
        let (questions, waiting) = mpsc::channel::<Question>();
        let (answered, answers) = mpsc::channel();
        let waiting = Mutex::new(waiting);
        let workers = OnceLock::new();
        let result = std::thread::scope(|scope| {
            // Should this thread panic, workers that wait before an attempt must not wait on.
            let _stopped = StopsAtEnd(&stop);
            let worker = |number: usize| {
                let (answered, waiting, stop, client) =
                    (answered.clone(), &waiting, &stop, &self.client);
                let workers = &workers;
                move || {
                    if number >= *workers.wait() {
                        return;
                    }
                    // The lock is held while waiting for a question, not while asking it.
                    while let Some(question) = next(waiting) {
                        let answer = client.ask(&question.request, stop);
                        if answered.send((question.key, answer)).is_err() {
                            break;
                        }
                    }
                }
            };
            let workers = start(scope, self.config.concurrency, &workers, worker)?;
            drop(answered);
            let mut under_way = UnderWay {
                judge: self,
                workers,
                rows,
                next_row: 0,
                open: OpenRows::default(),
                tasks: VecDeque::new(),
                asked: HashMap::new(),
                cache: &mut cache,
            };
            let result = under_way.run(&questions, &answers, &stop, session);
            drop(questions);
            result
        });
        self.cache = cache;
        result
    }

    fn description(&self) -> Value {
        self.description.clone()
    }

    /// The cache is one process's.
    fn sharing(&self) -> Sharing {
        Sharing::OneProcess
    }
}

/// Starts up to `wanted` threads and says how many in `workers`, for which they wait. Each of them
/// starts one of its own at times, to look an address up: so twice as many are tried, and those
/// that are not needed end at once. Fewer than wanted are slower, not wrong.
fn start<'s, W: FnOnce() + Send + 's>(
    scope: &'s std::thread::Scope<'s, '_>,
    wanted: usize,
    workers: &OnceLock<usize>,
    worker: impl Fn(usize) -> W,
) -> Result<usize, JudgeError> {
    let mut threads = Vec::new();
    let mut shortage = None;
    while threads.len() < 2 * wanted && shortage.is_none() {
        let number = threads.len();
        let thread = std::thread::Builder::new().name(format!("judge-{number}"));
        match thread.spawn_scoped(scope, worker(number)) {
            Ok(thread) => threads.push(thread),
            Err(source) => shortage = Some(source),
        }
    }
    let count = *workers.get_or_init(|| wanted.min(threads.len() / 2));
    // They have ended once this is through, and left room.
    for spare in threads.drain(count..) {
        let _ = spare.join();
    }
    match shortage {
        None => Ok(count),
        Some(source) if count == 0 => Err(JudgeError::Workers { source }),
        Some(source) => {
            tracing::warn!(
                "the system has threads for {count} questions at a time, not for the {wanted} of judge.http.concurrency ({source}); going on with these"
            );
            Ok(count)
        }
    }
}

/// Sets a flag when it is dropped.
struct StopsAtEnd<'a>(&'a AtomicBool);

impl Drop for StopsAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn next(waiting: &Mutex<mpsc::Receiver<Question>>) -> Option<Question> {
    let waiting = waiting
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    waiting.recv().ok()
}

/// The place of a comparison: row and pair.
type Place = (usize, usize);

/// One call of `judge`.
struct UnderWay<'a> {
    judge: &'a HttpJudge,
    /// How many questions can be asked at a time.
    workers: usize,
    rows: &'a [&'a ResponseRow],
    next_row: usize,
    open: OpenRows,
    /// Comparisons of opened rows that were not asked yet: place, left and right response.
    tasks: VecDeque<(Place, (usize, usize))>,
    /// Places that wait for each question under way.
    asked: HashMap<String, Vec<Place>>,
    cache: &'a mut Cache,
}

impl UnderWay<'_> {
    fn run(
        &mut self,
        questions: &mpsc::Sender<Question>,
        answers: &mpsc::Receiver<(String, Result<f64, AskError>)>,
        stop: &AtomicBool,
        session: &mut JudgeSession<'_>,
    ) -> Result<(), JudgeError> {
        let mut failure = None;
        loop {
            if session.interrupted() {
                stop.store(true, Ordering::Relaxed);
            }
            let stopped = stop.load(Ordering::Relaxed);
            while !stopped && self.asked.len() < self.workers {
                let Some(question) = self.next_question() else {
                    break;
                };
                // Workers live as long as this end of the channel.
                let _ = questions.send(question);
            }
            if failure.is_none() {
                let handed = self.open.hand_in(self.rows, &self.judge.estimate, session);
                if let Err(error) = handed {
                    stop.store(true, Ordering::Relaxed);
                    failure = Some(error);
                }
            }
            if self.asked.is_empty() {
                return failure.map_or(Ok(()), Err);
            }
            let (key, answer) = match answers.recv_timeout(Duration::from_millis(50)) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Timeout) => continue,
                // Nobody is left who could answer.
                Err(RecvTimeoutError::Disconnected) => {
                    let source = std::io::Error::other("all of them have ended");
                    return Err(failure.unwrap_or(JudgeError::Workers { source }));
                }
            };
            if let Err(error) = self.take(key, answer) {
                stop.store(true, Ordering::Relaxed);
                failure = failure.or(error);
            }
        }
    }

    /// The next question that neither the cache nor one under way answers.
    fn next_question(&mut self) -> Option<Question> {
        loop {
            let Some((place, (left, right))) = self.tasks.pop_front() else {
                let row = self.rows.get(self.next_row)?;
                let comparisons = Comparisons::new(&row.responses);
                let pairs = comparisons.pairs().to_vec();
                let number = self.open.open(Some(comparisons));
                self.next_row += 1;
                for (pair, (left, right)) in pairs.into_iter().enumerate() {
                    // The same text on both sides is a tie.
                    match left == right {
                        true => self.open.set(number, pair, 0.0),
                        false => self.tasks.push_back(((number, pair), (left, right))),
                    }
                }
                continue;
            };
            let question = self.judge.question(self.rows[place.0], left, right);
            if let Some(logit) = self.cache.get(&question.key) {
                self.open.set(place.0, place.1, logit);
                continue;
            }
            let places = self.asked.entry(question.key.clone()).or_default();
            places.push(place);
            if places.len() == 1 {
                return Some(question);
            }
        }
    }

    /// Takes an answer in; `Err(None)` where the question was given up because of a stop.
    fn take(
        &mut self,
        key: String,
        answer: Result<f64, AskError>,
    ) -> Result<(), Option<JudgeError>> {
        let places = self.asked.remove(&key).unwrap_or_default();
        match answer {
            Ok(logit) => {
                self.cache
                    .put(key, logit)
                    .map_err(|error| Some(error.into()))?;
                for (row, pair) in places {
                    self.open.set(row, pair, logit);
                }
                Ok(())
            }
            Err(AskError::Stopped) => Err(None),
            Err(error) => {
                let row = places.first().map_or(0, |place| place.0);
                Err(Some(self.judge.failed(self.rows[row], error)))
            }
        }
    }
}

fn wrong(key: &str, problem: impl Into<String>) -> JudgeError {
    JudgeError::Config {
        key: format!("judge.http.{key}"),
        problem: problem.into(),
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

/// The address, which must not carry a password into logs and files.
fn base_url<'a>(config: &'a JudgeHttp, key: Option<&str>) -> Result<&'a Address, JudgeError> {
    let wrong = |problem: String| Err(wrong("base_url", problem));
    let Some(address) = &config.base_url else {
        return wrong(
            "is missing: the address of the server, such as http://localhost:8000/v1".into(),
        );
    };
    let (url, shown) = (address.whole(), address.shown());
    let host = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"));
    let Some(host) = host.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default()) else {
        return wrong(format!(
            "must begin with http:// or https://, found {shown:?}"
        ));
    };
    if host.contains('@') {
        return wrong(
            "must not hold a user or password; the key comes from the environment variable that api_key_env names".into(),
        );
    }
    if host.is_empty() || url.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return wrong(format!("is no address: {shown:?}"));
    }
    // Shorter ones are words that stand for no key: `local`, `EMPTY`.
    let key = key.filter(|key| key.len() >= 16);
    if key.is_some_and(|key| shown.contains(key)) {
        return wrong(
            "must not hold the key outside its query; it would stand in logs and rows".into(),
        );
    }
    Ok(address)
}

/// The key; never part of a message.
fn key(config: &JudgeHttp) -> Result<Option<String>, JudgeError> {
    let name = &config.api_key_env;
    let key = match std::env::var(name) {
        Ok(key) => key.trim().to_string(),
        Err(std::env::VarError::NotPresent) => return Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => String::from("\n"),
    };
    if key.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(wrong(
            "api_key_env",
            format!("the environment variable {name} holds characters that no key has"),
        ));
    }
    Ok(Some(key).filter(|key| !key.is_empty()))
}

fn words(config: &JudgeHttp) -> Words {
    Words {
        first: config.first.clone(),
        second: config.second.clone(),
        tie: config.tie.clone(),
        text_logit: config.text_logit,
    }
}

/// Where answers are kept unless the configuration says otherwise: beside the output.
pub fn cache_beside(out: &Path) -> std::path::PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".cache.jsonl");
    out.with_file_name(name)
}
