//! Between conversations and token ids, by a folder's tokenizer and chat template.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::chat_template::{ChatTemplate, Message, NaiveDate, TemplateError, TemplateSource};
use crate::end_of_turn::{EndOfTurn, Stop};
use crate::other_formats::{and, other_tokenizer};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why text cannot become token ids or the other way round.
#[derive(Debug, thiserror::Error)]
pub enum ChatTextError {
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A file of the tokenizer that cannot be used.
    #[error(transparent)]
    Tokenizer(TokenizerError),
    /// A folder that lacks what text needs.
    #[error(
        "{folder} has no {what}; text needs tokenizer.json and a chat template (chat_template.jinja, or chat_template in tokenizer_config.json){}",
        and(hint),
        folder = folder.display()
    )]
    Missing {
        /// The model's folder.
        folder: PathBuf,
        /// What it lacks: `tokenizer.json`, the chat template, or both.
        what: &'static str,
        /// What to do.
        hint: Option<String>,
    },
    /// Text that cannot be encoded, or ids that cannot be decoded.
    #[error("{folder}: {problem}", folder = folder.display())]
    Ids {
        /// The model's folder.
        folder: PathBuf,
        /// What the tokenizer said.
        problem: String,
    },
    /// No token is known to end a turn.
    #[error(
        "{folder}: nothing ends a turn: the chat template writes nothing behind an answer, and neither tokenizer_config.json names an eos_token nor generation_config.json or config.json an eos_token_id",
        folder = folder.display()
    )]
    NoEndOfTurn {
        /// The model's folder.
        folder: PathBuf,
    },
}

impl ChatTextError {
    /// Of a folder for which [`ChatText::find`] gives none.
    pub fn missing(folder: &Path) -> Self {
        let template = matches!(ChatTemplate::from_dir(folder), Ok(Some(_)));
        let (what, hint) = match (folder.join("tokenizer.json").exists(), template) {
            (true, _) => (
                "chat template",
                Some("give one with --chat-template FILE (model.chat_template in a configuration); a base model continues texts as they are with sppo generate --raw".into()),
            ),
            (false, true) => ("tokenizer.json (its chat template is there)", other_tokenizer(folder)),
            (false, false) => ("tokenizer.json and no chat template", other_tokenizer(folder)),
        };
        Self::Missing {
            folder: folder.into(),
            what,
            hint,
        }
    }
}

/// A conversation as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConversationIds {
    /// The prompt's ids, then the answer's.
    pub ids: Vec<u32>,
    /// Where the answer lies in them, with what ends its turn.
    pub response: Range<usize>,
}

/// A folder's tokenizer and chat template together.
#[derive(Clone, Debug)]
pub struct ChatText {
    folder: PathBuf,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl ChatText {
    /// Of a folder; none where it has no tokenizer.json or no chat template.
    pub fn find(folder: &Path) -> Result<Option<Self>, ChatTextError> {
        Self::find_with(folder, TemplateSource::Folder)
    }

    /// The same with the template of `source`.
    pub fn find_with(
        folder: &Path,
        source: TemplateSource<'_>,
    ) -> Result<Option<Self>, ChatTextError> {
        if !folder.join("tokenizer.json").exists() {
            return Ok(None);
        }
        let tokenizer = Tokenizer::from_dir(folder).map_err(ChatTextError::Tokenizer)?;
        let template = ChatTemplate::from_source(folder, source)?;
        Ok(template.map(|template| Self::new(folder, tokenizer, template)))
    }

    /// Of a folder that must have both.
    pub fn open(folder: &Path) -> Result<Self, ChatTextError> {
        Self::find(folder)?.ok_or_else(|| ChatTextError::missing(folder))
    }

    /// Of its parts; `folder` is what errors name.
    pub fn new(folder: &Path, tokenizer: Tokenizer, template: ChatTemplate) -> Self {
        Self {
            folder: folder.into(),
            tokenizer,
            template,
        }
    }

    /// The same with `date` as what the chat template sees, in place of today's.
    pub fn with_date(mut self, date: NaiveDate) -> Self {
        self.template = self.template.with_date(date);
        self
    }

    /// The date that the chat template sees.
    pub fn date(&self) -> NaiveDate {
        self.template.date()
    }

    /// Whether the text of a conversation may depend on the date.
    pub fn uses_date(&self) -> bool {
        self.template.uses_date()
    }

    /// Where both come from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Ids of a text as it stands, special tokens by their names, none added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ChatTextError> {
        let ids = self.tokenizer.encode(text, false);
        ids.map_err(|source| self.at_fault(source))
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ChatTextError> {
        let text = self.tokenizer.decode(ids, true);
        text.map_err(|source| self.at_fault(source))
    }

    /// Ids to generate from: the prompt and the header of the answer.
    pub fn prompt_ids(&self, prompt: &[Message]) -> Result<Vec<u32>, ChatTextError> {
        self.encode(&self.prompt(prompt)?)
    }

    /// The text of a prompt and the header of its answer.
    pub fn prompt(&self, prompt: &[Message]) -> Result<String, ChatTextError> {
        Ok(self.template.render_prompt(prompt)?)
    }

    /// The text of whole turns, without the header of another one.
    pub fn conversation(&self, turns: &[Message]) -> Result<String, ChatTextError> {
        Ok(self.template.render(turns, false)?)
    }

    /// Ids of a prompt and its answer as generation writes them: the prompt's are those of
    /// [`ChatText::prompt_ids`], and the answer's are encoded apart and end as `end` says.
    pub fn conversation_ids(
        &self,
        prompt: &[Message],
        response: &str,
        end: &EndOfTurn,
    ) -> Result<ConversationIds, ChatTextError> {
        let mut ids = self.prompt_ids(prompt)?;
        let start = ids.len();
        ids.extend(self.encode(response)?);
        let missing = end.missing(&ids[start..]).to_vec();
        ids.extend(missing);
        let response = start..ids.len();
        Ok(ConversationIds { ids, response })
    }

    /// Ids of whole turns as a model reads them that scores conversations: a BOS that the template
    /// writes, the tokenizer adds, or both, stands there once.
    pub fn turn_ids(&self, turns: &[Message]) -> Result<Vec<u32>, ChatTextError> {
        let mut ids = self.encode(&self.conversation(turns)?)?;
        if let Some(bos) = self.tokenizer.bos_id() {
            let empty = self.tokenizer.encode("", true);
            let adds_bos = empty.map_err(|source| self.at_fault(source))?.first() == Some(&bos);
            let written = ids.iter().take_while(|&&id| id == bos).count();
            let wanted = usize::from(written > 0 || adds_bos);
            ids.splice(..written, vec![bos; wanted]);
        }
        Ok(ids)
    }

    /// What ends a turn by the text alone: what the template writes behind an assistant's message,
    /// else the tokenizer's EOS; none where neither says.
    ///
    /// Of what the template writes, everything through the first token counts that is an added
    /// token of the tokenizer (marked special or not) or its EOS; what follows belongs to the next
    /// turn. Without such a token it is all of the text but blanks at its end: one ordinary token,
    /// or a text of several. Blanks alone end nothing.
    pub fn end_of_turn(&self) -> Result<Option<EndOfTurn>, ChatTextError> {
        Ok(match self.written_end()? {
            Some(end) => Some(end),
            None => self.tokenizer().eos_id().map(EndOfTurn::of_token),
        })
    }

    fn written_end(&self) -> Result<Option<EndOfTurn>, ChatTextError> {
        const PROBE: &str = "endofturnprobe";
        let turns = [
            Message::new("user", "question"),
            Message::new("assistant", PROBE),
        ];
        let text = match self.conversation(&turns) {
            // A template for prompts only writes no end.
            Err(ChatTextError::Template(
                TemplateError::Raised { .. } | TemplateError::Render { .. },
            )) => return Ok(None),
            text => text?,
        };
        let behind = text.rsplit_once(PROBE).map_or("", |(_, behind)| behind);
        let ids = self.ids_behind(PROBE, behind)?;
        let tokenizer = self.tokenizer();
        let ends = |id: u32| {
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            let added = tokenizer.is_added(id) && !token.trim().is_empty();
            added || tokenizer.eos_id() == Some(id)
        };
        let of_template = |ids: &[u32], lead, stop| EndOfTurn {
            ids: ids.to_vec(),
            lead,
            stop,
            from_template: true,
        };
        if let Some(place) = ids.iter().position(|&id| ends(id)) {
            let stop = Stop::Token(ids[place]);
            return Ok(Some(of_template(&ids[..=place], place, stop)));
        }
        let written = behind.trim_end();
        if written.is_empty() {
            return Ok(None);
        }
        let ids = self.ids_behind(PROBE, written)?;
        Ok(match ids[..] {
            [] => None,
            [id] => Some(of_template(&ids, 0, Stop::Token(id))),
            _ => Some(of_template(&ids, 0, Stop::Text(written.into()))),
        })
    }

    /// Ids of a text as it stands behind another one: some tokenizers begin a text with a blank.
    fn ids_behind(&self, before: &str, text: &str) -> Result<Vec<u32>, ChatTextError> {
        let first = self.encode(before)?;
        let whole = self.encode(&format!("{before}{text}"))?;
        match whole.strip_prefix(&first[..]) {
            Some(behind) => Ok(behind.to_vec()),
            None => self.encode(text),
        }
    }

    fn at_fault(&self, source: TokenizerError) -> ChatTextError {
        ChatTextError::Ids {
            folder: self.folder.clone(),
            problem: source.to_string(),
        }
    }
}
