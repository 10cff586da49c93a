//! The model that is served, as far as requests are concerned: its name, bounds and text.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::chat_text::{ChatText, ChatTextError};
use sppo_model::end_of_turn::Stop;
use sppo_model::model_folder::ModelFolder;
use sppo_model::tokenizer::Tokenizer;

use crate::errors::{OrUser, user};

/// What is known of the model before its weights are there.
pub struct Served {
    /// Under which clients ask for it.
    pub name: String,
    /// Whether any other name is refused.
    pub strict: bool,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// Token ids are below it.
    pub vocab: usize,
    /// Of the folder.
    pub tokenizer: Arc<Tokenizer>,
    /// Conversations, or why there are none.
    pub chat: Result<ChatText, String>,
    /// The model's own ends.
    pub stop_ids: Vec<u32>,
    /// An end of a turn that is text, of several ordinary tokens.
    pub stop_text: Option<String>,
    /// Seconds since 1970 at the start.
    pub created: u64,
}

/// Where text comes from.
pub struct TextOptions<'a> {
    /// A template of its own.
    pub template: Option<&'a Path>,
    /// What templates see as today.
    pub date: Option<NaiveDate>,
}

/// Opens the folder; without a chat template conversations are refused and all else goes.
pub fn open_folder(path: &Path, options: &TextOptions<'_>) -> anyhow::Result<(ModelFolder, bool)> {
    let open = |source| ModelFolder::open_with(path, source).or_user();
    let mut folder = open(TemplateSource::of(options.template))?;
    let mut chats = true;
    if folder.text().is_none() {
        if !path.join("tokenizer.json").exists() {
            return Err(ChatTextError::missing(path)).or_user();
        }
        chats = false;
        folder = open(TemplateSource::Raw)?;
    }
    if let Some(date) = options.date {
        folder = folder.with_date(date);
    }
    Ok((folder, chats))
}

impl Served {
    /// Of an opened folder.
    pub fn new(
        folder: &ModelFolder,
        chats: bool,
        name: String,
        strict: bool,
        longest: Option<usize>,
    ) -> anyhow::Result<Self> {
        let text = folder.require_text().or_user()?;
        let config = folder.config();
        let context = config.max_position_embeddings;
        if let Some(longest) = longest.filter(|&longest| longest > context || longest < 2) {
            return Err(user(format!(
                "--max-model-len {longest}: the model's context is {context} tokens; give a number from 2 to that"
            )));
        }
        let defaults = folder.generation_defaults().or_user()?;
        // A base model may have no end of a turn.
        let end = folder.end_of_turn();
        let (stop_ids, stop) = match end {
            Ok(end) => (folder.stop_ids(&end).or_user()?, Some(end.stop)),
            Err(_) if !chats => (defaults.stop_ids, None),
            Err(error) => return Err(error).or_user().context("what ends an answer"),
        };
        let chat = match chats {
            true => Ok(text.clone()),
            false => Err(ChatTextError::missing(folder.path()).to_string()),
        };
        let since = std::time::UNIX_EPOCH.elapsed();
        Ok(Self {
            name,
            strict,
            context: longest.unwrap_or(context),
            vocab: config.vocab_size,
            tokenizer: Arc::new(text.tokenizer().clone()),
            chat,
            stop_ids,
            stop_text: match stop {
                Some(Stop::Text(text)) if chats => Some(text),
                _ => None,
            },
            created: since.map_or(0, |since| since.as_secs()),
        })
    }
}
