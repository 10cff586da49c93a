//! What was said so far, with each model by itself.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::errors::user;

/// A question and what each model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchange {
    /// Of the user.
    pub question: String,
    /// One for each model.
    pub answers: Vec<String>,
}

/// A conversation with one or more models.
#[derive(Debug)]
pub struct Session {
    /// Names of the models.
    pub models: Vec<String>,
    /// In front of all else.
    pub system: Option<String>,
    /// In their order.
    pub exchanges: Vec<Exchange>,
    /// Parameters of the requests.
    pub settings: Map<String, Value>,
    /// A question that got no answer.
    pub unanswered: Option<String>,
    /// What stood where a question is asked again.
    pub retried: Option<Exchange>,
    /// The file that this conversation was written to or taken from.
    file: Option<PathBuf>,
}

impl Session {
    /// Nothing said yet.
    pub fn new(models: Vec<String>) -> Self {
        Self {
            models,
            system: None,
            exchanges: Vec::new(),
            settings: Map::new(),
            unanswered: None,
            retried: None,
            file: None,
        }
    }

    /// Sets a parameter; null takes it away.
    pub fn set(&mut self, (key, value): (String, Value)) {
        match value {
            Value::Null => drop(self.settings.shift_remove(&key)),
            value => drop(self.settings.insert(key, value)),
        }
    }

    /// What a model is asked, with the question last.
    pub fn request(&self, model: usize, question: &str) -> Map<String, Value> {
        let mut messages = self.messages(model);
        messages.push(json!({"role": "user", "content": question}));
        let mut request = self.settings.clone();
        request.insert("messages".into(), messages.into());
        request
    }

    fn messages(&self, model: usize) -> Vec<Value> {
        let system = self.system.iter();
        let mut messages: Vec<Value> = system
            .map(|text| json!({"role": "system", "content": text}))
            .collect();
        for Exchange { question, answers } in &self.exchanges {
            messages.push(json!({"role": "user", "content": question}));
            messages.push(json!({"role": "assistant", "content": answers[model]}));
        }
        messages
    }

    /// Writes a line of messages for each model. A file that is not of this conversation stays.
    pub fn save(&mut self, path: &Path) -> anyhow::Result<()> {
        if path.exists() && self.file.as_deref() != Some(path) {
            return Err(user(format!(
                "{} is there already; give another name",
                path.display()
            )));
        }
        let mut text = String::new();
        for (index, model) in self.models.iter().enumerate() {
            let line = json!({"model": model, "messages": self.messages(index)});
            text += &format!("{line}\n");
        }
        sppo_training::files::replace_file(path, text.as_bytes())?;
        self.file = Some(path.into());
        Ok(())
    }

    /// Takes the conversation of a file: a line for each model, or one for all.
    pub fn load(&mut self, path: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        let found: Result<Vec<Talk>, String> = lines.iter().map(|line| Talk::parse(line)).collect();
        let wrong = |problem: String| user(format!("{}: {problem}", path.display()));
        let talks = found.map_err(wrong)?;
        let Some(first) = talks.first() else {
            return Err(wrong("it is empty".into()));
        };
        if talks.len() != 1 && talks.len() != self.models.len() {
            return Err(wrong(format!(
                "it has {} conversations, and {} models are talked to",
                talks.len(),
                self.models.len()
            )));
        }
        let same = |talk: &Talk| talk.system == first.system && talk.questions == first.questions;
        if !talks.iter().all(same) {
            return Err(wrong("its conversations have other questions".into()));
        }
        let exchanges = first
            .questions
            .iter()
            .enumerate()
            .map(|(i, question)| Exchange {
                question: question.clone(),
                answers: (0..self.models.len())
                    .map(|model| talks[model.min(talks.len() - 1)].answers[i].clone())
                    .collect(),
            });
        self.exchanges = exchanges.collect();
        self.system = first.system.clone();
        self.file = Some(path.into());
        Ok(())
    }
}

/// One line of a file.
struct Talk {
    system: Option<String>,
    questions: Vec<String>,
    answers: Vec<String>,
}

impl Talk {
    fn parse(line: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(line).map_err(|error| format!("no JSON: {error}"))?;
        let messages = value["messages"]
            .as_array()
            .ok_or("a line has no `messages`")?;
        let mut talk = Self {
            system: None,
            questions: Vec::new(),
            answers: Vec::new(),
        };
        for (index, message) in messages.iter().enumerate() {
            let content = message["content"].as_str().ok_or("a message has no text")?;
            let open = talk.questions.len() > talk.answers.len();
            match message["role"].as_str() {
                Some("system") if index == 0 => talk.system = Some(content.into()),
                Some("user") if !open => talk.questions.push(content.into()),
                Some("assistant") if open => talk.answers.push(content.into()),
                _ => return Err("user and assistant must take turns, system first".into()),
            }
        }
        match talk.questions.len() == talk.answers.len() {
            true => Ok(talk),
            false => Err("the last question has no answer".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Session {
        let mut session = Session::new(vec!["a".into(), "b".into()]);
        session.system = Some("Be brief.".into());
        session.exchanges.push(Exchange {
            question: "hi".into(),
            answers: vec!["A\n1".into(), "B".into()],
        });
        session
    }

    #[test]
    fn each_model_hears_its_own_answers() {
        let mut session = two();
        session.set(("seed".into(), json!(1)));
        session.set(("top_k".into(), json!(2)));
        session.set(("top_k".into(), Value::Null));
        let request = Value::from(session.request(1, "more"));
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages = [
            message("system", "Be brief."),
            message("user", "hi"),
            message("assistant", "B"),
            message("user", "more"),
        ];
        assert_eq!(request, json!({"seed": 1, "messages": messages}));
    }

    #[test]
    fn a_conversation_comes_back_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.jsonl");
        let mut session = two();
        session.save(&path).unwrap();
        session.save(&path).unwrap();
        let mut other = Session::new(vec!["c".into(), "d".into()]);
        // It could be anything.
        assert!(
            other
                .save(&path)
                .unwrap_err()
                .to_string()
                .contains("there already")
        );
        other.load(&path).unwrap();
        assert_eq!(
            (&other.system, &other.exchanges),
            (&session.system, &session.exchanges)
        );
        other.save(&path).unwrap();
        let mut one = Session::new(vec!["e".into()]);
        assert!(
            one.load(&path)
                .unwrap_err()
                .to_string()
                .contains("2 conversations")
        );
    }

    #[test]
    fn files_of_other_kinds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("talk.jsonl");
        for (text, part) in [
            ("", "empty"),
            ("x", "no JSON"),
            ("{}", "no `messages`"),
            (
                r#"{"messages": [{"role": "user", "content": "a"}]}"#,
                "no answer",
            ),
            (
                r#"{"messages": [{"role": "assistant", "content": "a"}]}"#,
                "take turns",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = two().load(&path).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
