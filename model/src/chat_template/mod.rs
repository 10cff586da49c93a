//! Chat templates: a model folder's Jinja template, rendered as transformers renders it
//! (`apply_chat_template` with `tokenize=False`).

mod bounded;
mod compile;
mod guard;
#[cfg(test)]
mod hostile;
mod message;
mod python;
mod strftime;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

pub use chrono::NaiveDate;
use minijinja::machinery::{eval, make_string_output};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, context};

use bounded::MAX_OUTPUT;
use compile::Compiled;
pub use message::{Message, tools_of};

use crate::quiet::quietly;
use crate::tokenizer::{TokenizerError, json_kind, read_json, special_tokens};

/// What can go wrong with a chat template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of the tokenizer that cannot be used.
    #[error(transparent)]
    Config(#[from] TokenizerError),
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A list of templates without the one named `default`.
    #[error("{path}: the list in `chat_template` has no entry named `default`; found {found}")]
    NoDefault {
        /// The `tokenizer_config.json`.
        path: PathBuf,
        /// Names that the list has, joined by commas.
        found: String,
    },
    /// A template longer than is accepted.
    #[error("{path}: the chat template is {size} bytes long; the most accepted is {most}")]
    TooLarge {
        /// The template's file.
        path: PathBuf,
        /// Its length in bytes.
        size: usize,
        /// The most accepted, in bytes.
        most: usize,
    },
    /// A template that does not parse.
    #[error("{path}: the chat template is not valid Jinja: {detail}")]
    Syntax {
        /// The template's file.
        path: PathBuf,
        /// The engine's message with the line.
        detail: String,
    },
    /// The template itself called `raise_exception`.
    #[error("the chat template of {path} refuses these messages: {message}")]
    Raised {
        /// The template's file.
        path: PathBuf,
        /// The template's own words.
        message: String,
    },
    /// A rendering that failed.
    #[error("{path}: the chat template failed: {detail}")]
    Render {
        /// The template's file.
        path: PathBuf,
        /// The engine's message with the line.
        detail: String,
    },
    /// A rendering that was stopped because it took too many steps.
    #[error("{path}: the chat template did not end after {FUEL} steps; it loops too long")]
    TooMuchWork {
        /// The template's file.
        path: PathBuf,
    },
    /// A rendering that was stopped because it wrote too much.
    #[error("{path}: the chat template wrote more than {MAX_OUTPUT} bytes for one conversation")]
    TooLong {
        /// The template's file.
        path: PathBuf,
    },
}

/// Work that one rendering may take: an instruction of the template engine costs 1, each 64 bytes
/// of text or 2 items of a list that it makes or looks at 1 more. Real templates need about a
/// hundred a message, and handle each byte of a message some five times.
const FUEL: u64 = 2_000_000;
/// Bytes of a template's source; the longest real ones are near 30 KiB.
const MAX_SOURCE: usize = 1 << 20;
const NAME: &str = "chat";
/// Writes what is said and nothing else.
const RAW: &str = "{% for message in messages %}{{ message.content }}{% endfor %}";

/// Which chat template a model folder's text goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TemplateSource<'a> {
    /// The folder's own.
    #[default]
    Folder,
    /// That of a file, with the folder's special tokens.
    File(&'a Path),
    /// None: text stays as it is.
    Raw,
}

impl<'a> TemplateSource<'a> {
    /// That of a file, where one is given.
    pub fn of(file: Option<&'a Path>) -> Self {
        file.map_or(Self::Folder, Self::File)
    }

    /// The file, where it is one.
    pub fn file(self) -> Option<&'a Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }
}

/// Variable of templates that can be told the date as text, where nothing else tells them.
const DATE_STRING: &str = "date_string";

/// Today's local date: read once in a process, so that all its texts have the same.
pub fn today() -> NaiveDate {
    static TODAY: OnceLock<NaiveDate> = OnceLock::new();
    *TODAY.get_or_init(|| chrono::Local::now().date_naive())
}

/// A compiled chat template with its folder's special tokens and the date that it sees.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    compiled: Arc<Compiled>,
    source: &'static str,
    tokens: BTreeMap<&'static str, String>,
    path: PathBuf,
    /// Whether a warning about what it leaves out was given; clones share it.
    warned: Arc<AtomicBool>,
    date: NaiveDate,
    /// The date as text, for a template that reads [`DATE_STRING`] and has no other way to it; only
    /// where a date was given, since transformers gives none by itself.
    date_string: Option<String>,
}

impl ChatTemplate {
    /// The template of a model folder: chat_template.jinja, else `chat_template` in
    /// tokenizer_config.json (a string, or a list whose entry `default` is taken), else `None`.
    pub fn from_dir(dir: &Path) -> Result<Option<Self>, TemplateError> {
        let Some((path, source)) = find_source(dir)? else {
            return Ok(None);
        };
        Self::compile(path, source, special_tokens(dir)?).map(Some)
    }

    /// The template that `source` means for a model folder.
    pub fn from_source(
        dir: &Path,
        source: TemplateSource<'_>,
    ) -> Result<Option<Self>, TemplateError> {
        let (path, text) = match source {
            TemplateSource::Folder => return Self::from_dir(dir),
            TemplateSource::Raw => (PathBuf::from("<no template>"), RAW.to_string()),
            TemplateSource::File(path) => {
                let path = path.to_path_buf();
                match std::fs::read_to_string(&path) {
                    Ok(text) => (path, text),
                    Err(source) => return Err(TemplateError::Read { path, source }),
                }
            }
        };
        Self::compile(path, text, special_tokens(dir)?).map(Some)
    }

    /// A template from its source; `tokens` are the variables such as `bos_token`.
    pub fn new(
        source: &str,
        tokens: BTreeMap<&'static str, String>,
    ) -> Result<Self, TemplateError> {
        Self::compile(PathBuf::from("<chat template>"), source.into(), tokens)
    }

    fn compile(
        path: PathBuf,
        source: String,
        tokens: BTreeMap<&'static str, String>,
    ) -> Result<Self, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLarge {
                path,
                size: source.len(),
                most: MAX_SOURCE,
            });
        }
        if source.trim().is_empty() {
            let detail = "it is empty, and every prompt would be".into();
            return Err(TemplateError::Syntax { path, detail });
        }
        // Instructions borrow their source. It is never given back: a process has a few templates,
        // and each is in use as long as the model that it belongs to.
        let source: &'static str = python::without_generation_tags(&source).leak();
        let compiled = python::environment().and_then(|mut environment| {
            environment.set_fuel(Some(FUEL));
            python::set_date(&mut environment, today());
            let compiled = compile::compile(NAME, source, python::syntax()?)?;
            Ok((environment, compiled))
        });
        match compiled {
            Ok((environment, compiled)) => Ok(Self {
                environment,
                compiled: Arc::new(compiled),
                source,
                tokens,
                path,
                warned: Arc::default(),
                date: today(),
                date_string: None,
            }),
            Err(error) => Err(TemplateError::Syntax {
                path,
                detail: describe(&error),
            }),
        }
    }

    /// The same with `date` in place of today's: what `strftime_now` writes, or else `date_string`.
    pub fn with_date(mut self, date: NaiveDate) -> Self {
        python::set_date(&mut self.environment, date);
        self.date = date;
        let asks = self.reads(DATE_STRING) && !self.reads(python::STRFTIME_NOW);
        // The form in which templates with a default of their own write it.
        self.date_string = asks.then(|| date.format("%d %b %Y").to_string());
        self
    }

    /// The date that it sees.
    pub fn date(&self) -> NaiveDate {
        self.date
    }

    /// Whether what it renders may depend on the date.
    pub fn uses_date(&self) -> bool {
        self.date_string.is_some() || self.reads(python::STRFTIME_NOW)
    }

    /// Whether it looks up a variable or calls a function of this name.
    fn reads(&self, name: &str) -> bool {
        self.compiled.reads.contains(name)
    }

    /// Everything that decides what it renders: its source, the folder's special tokens, and the
    /// date where it uses it.
    pub fn identity(&self) -> String {
        let mut identity = format!("{}\n{:?}", self.source, self.tokens);
        if self.uses_date() {
            identity += &format!("\n{}", self.date);
        }
        identity
    }

    /// The text of a prompt; it ends where the assistant's answer begins.
    pub fn render_prompt(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.render(messages, true)
    }

    /// The text of a conversation; with `add_generation_prompt` the header of an answer follows.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut more: BTreeMap<&str, &str> = BTreeMap::new();
        more.extend(
            self.tokens
                .iter()
                .map(|(name, text)| (*name, text.as_str())),
        );
        // Absent, not none: templates ask whether it is defined.
        more.extend(
            self.date_string
                .iter()
                .map(|text| (DATE_STRING, text.as_str())),
        );
        let tools = tools_of(messages);
        self.warn_of_omissions(messages, tools.is_some());
        let variables = context! {
            messages => Serde(messages),
            add_generation_prompt,
            tools => tools.map(Serde),
            documents => (),
            ..Serde(&more)
        };
        let mut text = String::new();
        let Compiled {
            instructions,
            blocks,
            ..
        } = &*self.compiled;
        let rendered = quietly(|| {
            let output = &mut make_string_output(&mut text);
            let none = AutoEscape::None;
            eval(
                &self.environment,
                instructions,
                variables,
                blocks,
                output,
                none,
            )
            .map(|_| ())
        });
        let path = self.path.clone();
        match rendered {
            Ok(Ok(())) if text.len() > MAX_OUTPUT => Err(TemplateError::TooLong { path }),
            Ok(Ok(())) => Ok(text),
            Ok(Err(error)) => Err(render_error(path, &error)),
            Err(panic) => Err(TemplateError::Render {
                path,
                detail: format!("the template engine failed on it: {panic}"),
            }),
        }
    }

    /// Warns once where a conversation has tools or calls of tools that the template never writes.
    fn warn_of_omissions(&self, messages: &[Message], tools: bool) {
        let calls = || {
            let mut turns = messages.iter();
            turns.any(|turn| turn.further.contains_key("tool_calls"))
        };
        if !tools && !calls() {
            return;
        }
        for (there, name) in [(tools, "tools"), (calls(), "tool_calls")] {
            if there && !self.source.contains(name) && !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "{}: conversations have `{name}`, which this chat template does not write: the model does not see them",
                    self.path.display()
                );
            }
        }
    }
}

/// The template's file and source, if the folder has one.
fn find_source(dir: &Path) -> Result<Option<(PathBuf, String)>, TemplateError> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(source) => return Ok(Some((path, source))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(TemplateError::Read { path, source }),
    }
    let path = dir.join("tokenizer_config.json");
    let config = read_json(&path)?.unwrap_or_default();
    let field = config.get("chat_template").unwrap_or_default();
    match field {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(source) => Ok(Some((path, source.clone()))),
        serde_json::Value::Array(entries) => {
            let named = |entry: &&serde_json::Value| entry["name"] == "default";
            let source = entries.iter().find(named).map(|entry| &entry["template"]);
            match source.and_then(|source| source.as_str()) {
                Some(source) => Ok(Some((path, source.to_owned()))),
                None => {
                    let names: Vec<_> = entries.iter().map(|e| e["name"].to_string()).collect();
                    let found = names.join(", ");
                    Err(TemplateError::NoDefault { path, found })
                }
            }
        }
        other => Err(TemplateError::Config(TokenizerError::Field {
            path,
            key: "chat_template".into(),
            found: json_kind(other),
            expected: "a string or a list of {name, template}",
        })),
    }
}

/// Sorts a failed rendering by its cause, wherever in the chain of errors it is.
fn render_error(path: PathBuf, error: &minijinja::Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(python::Raised(message)) = inner.downcast_ref() {
            let message = message.clone();
            return TemplateError::Raised { path, message };
        }
        let engine = inner.downcast_ref::<minijinja::Error>();
        if engine.is_some_and(|inner| inner.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::TooMuchWork { path };
        }
        cause = inner.source();
    }
    let detail = describe(error);
    TemplateError::Render { path, detail }
}

/// The engine's message with the template line.
fn describe(error: &minijinja::Error) -> String {
    let what = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}
