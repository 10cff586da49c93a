//! One question to the server: time-outs, retries, and a key that nobody sees.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::answer::Words;

/// Bytes of an answer that are read.
const MOST_BYTES: u64 = 4 << 20;
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AskError {
    /// The server says that the request itself is wrong; asking again changes nothing.
    #[error("{url} refuses the request with status {status}: {message}")]
    Refused {
        url: String,
        status: u16,
        message: String,
    },
    /// Every attempt failed.
    #[error("{url} gave no answer in {attempts} attempts; the last: {last}")]
    Unanswered {
        url: String,
        attempts: usize,
        last: String,
    },
    /// The user asked to stop.
    #[error("stopped")]
    Stopped,
}

/// How one attempt failed that another may mend.
struct Failed {
    message: String,
    pause: Option<Duration>,
    invalid: bool,
}

/// Asks one endpoint. Holds the key, so it has no `Debug`.
pub struct Client {
    pub url: String,
    pub key: Option<String>,
    pub words: Words,
    pub retries: usize,
    pub first_pause: Duration,
    pub invalid_is_tie: bool,
    agent: ureq::Agent,
}

impl Client {
    /// Of an address whose `/chat/completions` is asked.
    pub fn new(base_url: &str, key: Option<String>, words: Words, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A redirect could carry the key elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        Client {
            url: format!("{}/chat/completions", base_url.trim_end_matches('/')),
            key,
            words,
            retries: 0,
            first_pause: Duration::from_millis(500),
            invalid_is_tie: false,
            agent: config.into(),
        }
    }

    /// The logit that the answer to `request` gives; `stop` ends waiting between attempts.
    pub fn ask(&self, request: &Value, stop: &AtomicBool) -> Result<f64, AskError> {
        let body = request.to_string();
        let mut pause = self.first_pause;
        for attempt in 0.. {
            let failed = match self.attempt(&body)? {
                Ok(logit) => return Ok(logit),
                Err(failed) => failed,
            };
            if attempt >= self.retries {
                if failed.invalid && self.invalid_is_tie {
                    tracing::warn!("taken as a tie: {}", failed.message);
                    return Ok(0.0);
                }
                return Err(AskError::Unanswered {
                    url: self.url.clone(),
                    attempts: attempt + 1,
                    last: failed.message,
                });
            }
            tracing::debug!("attempt {} failed: {}", attempt + 1, failed.message);
            let asked = failed.pause.unwrap_or(Duration::ZERO);
            wait(pause.max(asked).min(LONGEST_PAUSE), stop)?;
            // Not all of them at the same moment again.
            let spread = 1.5 + (body.len() + attempt) as f64 % 7.0 / 7.0;
            pause = pause.mul_f64(spread);
        }
        Err(AskError::Stopped)
    }

    fn attempt(&self, body: &str) -> Result<Result<f64, Failed>, AskError> {
        let failed = |message: String| Failed {
            message: self.clean(&message),
            pause: None,
            invalid: false,
        };
        let mut request = self.agent.post(&self.url);
        request = request.header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return Ok(Err(failed(error.to_string()))),
        };
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after");
        let after = after.and_then(|value| value.to_str().ok()?.trim().parse::<u32>().ok());
        let text = response.body_mut().with_config().limit(MOST_BYTES);
        let text = match text.read_to_string() {
            // Before anything is cut off, and half a key left.
            Ok(text) => self.clean(&text),
            Err(error) => return Ok(Err(failed(error.to_string()))),
        };
        match status {
            200..=299 => Ok(self.words.read(&text).map_err(|message| Failed {
                invalid: true,
                ..failed(message)
            })),
            408 | 409 | 425 | 429 | 500..=599 => Ok(Err(Failed {
                pause: after.map(|seconds| Duration::from_secs(seconds.into())),
                ..failed(format!("status {status}: {}", short(&text)))
            })),
            _ => Err(AskError::Refused {
                url: self.url.clone(),
                status,
                message: short(&text),
            }),
        }
    }

    /// `message` without the key, should the other side have sent it back.
    fn clean(&self, message: &str) -> String {
        match &self.key {
            Some(key) => message.replace(key.as_str(), "[key]"),
            None => message.to_string(),
        }
    }
}

/// The start of a server's message, on one line.
fn short(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn wait(pause: Duration, stop: &AtomicBool) -> Result<(), AskError> {
    let end = Instant::now() + pause;
    while Instant::now() < end {
        if stop.load(Ordering::Relaxed) {
            return Err(AskError::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    Ok(())
}
