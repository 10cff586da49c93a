//! One model behind a server that speaks OpenAI's API.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sppo_training::config::Address;
use ureq::Body;
use ureq::http::Response;

/// Bytes of an answer that is no stream, and of a line of a stream.
const MOST_BYTES: u64 = 4 << 20;

/// Asks one server. Holds the key, so it has no `Debug`.
pub struct Client {
    address: Address,
    key: Option<String>,
    agent: ureq::Agent,
    /// The model's name there.
    pub model: String,
}

/// How an answer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct End {
    /// `stop` or `length`, where the server says.
    pub reason: Option<String>,
    /// Tokens of the answer, where it says.
    pub tokens: Option<u64>,
}

impl Client {
    /// Of an address such as `http://localhost:8000` or `https://host/v1`.
    pub fn new(url: &str, key: Option<String>, model: Option<String>) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        if !matches!(scheme, "http" | "https") || rest.is_empty() {
            return Err(format!(
                "{url:?} is no address such as http://localhost:8000/v1"
            ));
        }
        let bare = !rest.trim_end_matches('/').contains('/') && !rest.contains('?');
        let address = Address::new(url);
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        let host = host.rsplit('@').next().unwrap_or_default();
        let is_own = ["127.", "localhost", "[::1]"]
            .iter()
            .any(|own| host.starts_with(own));
        let mut config = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(10)))
            .http_status_as_error(false)
            // A redirect could carry the key elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false);
        if is_own {
            // A proxy of the environment is for the world outside.
            config = config.proxy(None);
        }
        let config = config.build();
        Ok(Self {
            address: if bare { address.below("v1") } else { address },
            key,
            agent: config.into(),
            model: model.unwrap_or_default(),
        })
    }

    /// Takes the first model's name where none was given; an error where nobody answers.
    pub fn find_model(&mut self) -> Result<(), String> {
        if !self.model.is_empty() {
            return Ok(());
        }
        let address = self.address.below("models");
        let mut request = self.agent.get(address.whole());
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let response = request
            .call()
            .map_err(|error| self.fault(&error.to_string()))?;
        let status = response.status().as_u16();
        let text = text_of(response)?;
        let found: Value = serde_json::from_str(&text).unwrap_or_default();
        match found["data"][0]["id"].as_str() {
            Some(name) if status == 200 => {
                self.model = name.into();
                Ok(())
            }
            _ => Err(self.fault(&said(status, &text))),
        }
    }

    /// Whether the model behind it is loaded; for servers of this program.
    pub fn is_ready(&self) -> bool {
        let whole = self.address.whole();
        let health = format!("{}/health", whole.trim_end_matches("/v1"));
        let answer = self.agent.get(&health).call();
        answer.is_ok_and(|answer| answer.status().as_u16() == 200)
    }

    /// Asks, and gives the answer's pieces as they come, until its end or until `stop` is set.
    pub fn ask(
        &self,
        request: Map<String, Value>,
        stop: &AtomicBool,
        mut piece: impl FnMut(&str),
    ) -> Result<End, String> {
        let mut request = request;
        request.insert("model".into(), self.model.as_str().into());
        request.insert("stream".into(), true.into());
        request.insert("stream_options".into(), json!({"include_usage": true}));
        let address = self.address.below("chat/completions");
        let mut post = self.agent.post(address.whole());
        post = post.header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("Authorization", format!("Bearer {key}"));
        }
        let body = Value::from(request).to_string();
        let response = post
            .send(&body)
            .map_err(|error| self.fault(&error.to_string()))?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(self.fault(&said(status, &text_of(response)?)));
        }
        let mut end = End::default();
        let mut lines = BufReader::new(response.into_body().into_reader());
        let mut line = String::new();
        while !stop.load(Ordering::Relaxed) {
            line.clear();
            let read = (&mut lines).take(MOST_BYTES).read_line(&mut line);
            if read.map_err(|error| self.fault(&error.to_string()))? == 0 {
                // Some servers end without saying so once more.
                return match end.reason {
                    Some(_) => Ok(end),
                    None => Err(self.fault("the answer broke off")),
                };
            }
            let Some(data) = line.trim_end().strip_prefix("data:") else {
                continue;
            };
            match event(data.trim(), &mut end).map_err(|problem| self.fault(&problem))? {
                Event::Text(text) => piece(&text),
                Event::Nothing => {}
                Event::Over => break,
            }
        }
        Ok(end)
    }

    fn fault(&self, problem: &str) -> String {
        let mut text = format!("{}: {problem}", self.address.shown());
        for secret in self.address.secrets().chain(self.key.as_deref()) {
            text = text.replace(secret, "[key]");
        }
        text
    }
}

enum Event {
    Text(String),
    Nothing,
    Over,
}

/// What one event of a stream says.
fn event(data: &str, end: &mut End) -> Result<Event, String> {
    if data == "[DONE]" {
        return Ok(Event::Over);
    }
    let value: Value = serde_json::from_str(data).map_err(|error| format!("no JSON: {error}"))?;
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        let message = error["message"].as_str();
        return Err(message.map_or_else(|| error.to_string(), String::from));
    }
    if let Some(tokens) = value["usage"]["completion_tokens"].as_u64() {
        end.tokens = Some(tokens);
    }
    let choice = &value["choices"][0];
    if let Some(reason) = choice["finish_reason"].as_str() {
        end.reason = Some(reason.into());
    }
    Ok(match choice["delta"]["content"].as_str() {
        Some(text) if !text.is_empty() => Event::Text(text.into()),
        _ => Event::Nothing,
    })
}

fn text_of(mut response: Response<Body>) -> Result<String, String> {
    let body = response.body_mut().with_config().limit(MOST_BYTES);
    body.read_to_string().map_err(|error| error.to_string())
}

/// What a server says that refuses.
fn said(status: u16, text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let message = value["error"]["message"]
        .as_str()
        .or(value["message"].as_str());
    let message: String = message.unwrap_or(text).chars().take(500).collect();
    format!("status {status}: {message}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let base = |url: &str| Client::new(url, None, None).map(|c| c.address.whole().to_string());
        assert_eq!(base("http://h:1"), Ok("http://h:1/v1".into()));
        assert_eq!(base("http://h:1/"), Ok("http://h:1/v1".into()));
        assert_eq!(base("https://h/api/v1"), Ok("https://h/api/v1".into()));
        for bad in ["h:1", "ftp://h", "http://", ""] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events() {
        let mut end = End::default();
        let mut text = |data: &str| match event(data, &mut end) {
            Ok(Event::Text(text)) => Ok(Some(text)),
            Ok(_) => Ok(None),
            Err(error) => Err(error),
        };
        let delta = r#"{"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}"#;
        assert_eq!(text(delta), Ok(Some("a".into())));
        let last = r#"{"choices": [{"delta": {}, "finish_reason": "length"}]}"#;
        assert_eq!(text(last), Ok(None));
        assert_eq!(
            text(r#"{"choices": [], "usage": {"completion_tokens": 7}}"#),
            Ok(None)
        );
        assert_eq!(text("[DONE]"), Ok(None));
        assert_eq!(text(r#"{"error": {"message": "no"}}"#), Err("no".into()));
        assert!(text("<html>").is_err());
        let expected = End {
            reason: Some("length".into()),
            tokens: Some(7),
        };
        assert_eq!(end, expected);
    }

    #[test]
    fn a_fault_shows_no_key() {
        let client =
            Client::new("http://h/v1?api_key=s3cret", Some("hunter2".into()), None).unwrap();
        let fault = client.fault("you sent hunter2 and s3cret");
        assert!(
            !fault.contains("s3cret") && !fault.contains("hunter2"),
            "{fault}"
        );
    }
}
