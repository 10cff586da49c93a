//! One question to the server: time-outs, retries, and a key that nobody sees.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sppo_model::progress::advance;
use sppo_model::quiet::quietly;

use super::answer::Words;
use super::retry_after::retry_after;
use super::secrets::Secrets;
use crate::config::Address;

/// Bytes of an answer that are read.
const MOST_BYTES: u64 = 4 << 20;
/// Pauses between attempts grow up to this, unless the first is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest pause that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);
/// A pause of this length is worth a line in the log.
const LONG_PAUSE: Duration = Duration::from_secs(10);

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
    /// The server asks for a pause that nobody wants to wait for.
    #[error(
        "{url} asks to wait {seconds} s before the next attempt (Retry-After), and {most} s are the most that is waited; answers so far are kept: run the same command again later. Its message: {last}"
    )]
    LongPause {
        url: String,
        seconds: u64,
        most: u64,
        last: String,
    },
    /// A fault of this program, not of the server.
    #[error("asking {url} failed by a fault of sppo: {message}; please report it")]
    Fault { url: String, message: String },
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
    /// The address without its secrets, for messages.
    pub url: String,
    pub words: Words,
    pub retries: usize,
    pub first_pause: Duration,
    pub invalid_is_tie: bool,
    address: Address,
    key: Option<String>,
    secrets: Secrets,
    agent: ureq::Agent,
}

impl Client {
    /// Of an address whose `/chat/completions` is asked.
    pub fn new(base_url: &Address, key: Option<String>, words: Words, timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A redirect could carry the key elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        let mut secrets = Secrets::default();
        let in_query = base_url.secrets();
        in_query.chain(key.as_deref()).for_each(|s| secrets.add(s));
        let address = base_url.below("chat/completions");
        Client {
            url: address.shown(),
            words,
            retries: 0,
            first_pause: Duration::from_millis(500),
            invalid_is_tie: false,
            address,
            key,
            secrets,
            agent: config.into(),
        }
    }

    /// The logit that the answer to `request` gives; `stop` ends waiting between attempts. A panic
    /// underneath is an error like others: whoever waits for the answer gets one.
    pub fn ask(&self, request: &Value, stop: &AtomicBool) -> Result<f64, AskError> {
        quietly(|| self.ask_until_answered(request, stop)).unwrap_or_else(|message| {
            Err(AskError::Fault {
                url: self.url.clone(),
                message: self.secrets.hide(&message),
            })
        })
    }

    fn ask_until_answered(&self, request: &Value, stop: &AtomicBool) -> Result<f64, AskError> {
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
            self.pause(pause, failed, stop)?;
            // Not all of them at the same moment again.
            let spread = 1.5 + (body.len() + attempt) as f64 % 7.0 / 7.0;
            let longest = LONGEST_PAUSE.max(self.first_pause);
            pause = pause.min(longest).mul_f64(spread).min(longest);
        }
        Err(AskError::Stopped)
    }

    /// Waits for `pause`, or for what the server asks, if that is longer.
    fn pause(&self, pause: Duration, failed: Failed, stop: &AtomicBool) -> Result<(), AskError> {
        let asked = failed.pause.unwrap_or(Duration::ZERO);
        if asked > LONGEST_ASKED {
            return Err(AskError::LongPause {
                url: self.url.clone(),
                seconds: asked.as_secs(),
                most: LONGEST_ASKED.as_secs(),
                last: failed.message,
            });
        }
        if asked > pause && asked >= LONG_PAUSE {
            tracing::info!(
                "the server asks to wait {} s: {}",
                asked.as_secs(),
                failed.message
            );
        }
        wait(pause.max(asked), stop)
    }

    fn attempt(&self, body: &str) -> Result<Result<f64, Failed>, AskError> {
        let failed = |message: String| Failed {
            message: self.secrets.hide(&message),
            pause: None,
            invalid: false,
        };
        let mut request = self.agent.post(self.address.whole());
        request = request.header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return Ok(Err(failed(error.to_string()))),
        };
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name)?.to_str().ok();
        let pause = header("retry-after").and_then(|value| retry_after(value, header("date")));
        let text = response.body_mut().with_config().limit(MOST_BYTES);
        let text = match text.read_to_string() {
            Ok(text) => text,
            Err(error) => return Ok(Err(failed(error.to_string()))),
        };
        // Before anything is cut off, and half a key left.
        let hide = |text: &str| self.secrets.hide(text);
        match status {
            200..=299 => Ok(self.words.read(&text, &hide).map_err(|message| Failed {
                invalid: true,
                ..failed(message)
            })),
            408 | 409 | 425 | 429 | 500..=599 => Ok(Err(Failed {
                pause,
                ..failed(format!("status {status}: {}", short(&hide(&text))))
            })),
            _ => Err(AskError::Refused {
                url: self.url.clone(),
                status,
                message: short(&hide(&text)),
            }),
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
    let begun = Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(AskError::Stopped);
        }
        let left = pause.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        // The server asked for it: nobody stands still.
        advance();
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
