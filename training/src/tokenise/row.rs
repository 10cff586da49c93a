//! One row of token ids from a conversation.
//!
//! Two modes: `clean`, in which training sees exactly the ids that generation sees, and
//! `official`, the rows of the published SPPO trainer (TRL's `tokenize_row`), to the id.

use sppo_model::chat_template::Message;
use sppo_model::chat_text::{ChatText, ChatTextError};
use sppo_model::end_of_turn::EndOfTurn;
use sppo_model::model_folder::{ModelFolder, ModelFolderError};

use crate::config::Rows;
use crate::data::{PairProbabilities, SampledIds};

/// What can go wrong when a row becomes token ids.
#[derive(Debug, thiserror::Error)]
pub enum TokeniseError {
    /// Ids that do not say what the text says.
    #[error(
        "`{0}_ids` are not the `{0}` text under this model's tokenizer; were they sampled by a model with another one? set train.rows (--rows) to \"clean\" to encode the text instead"
    )]
    OtherIds(&'static str),
    /// Text or template that cannot become token ids.
    #[error(transparent)]
    Text(#[from] ChatTextError),
    /// A model's folder that does not say what ends a turn.
    #[error(transparent)]
    Folder(#[from] ModelFolderError),
    /// Limits that leave no room for a prompt or a response.
    #[error(
        "max_prompt_length {max_prompt_length} and max_length {max_length} leave no room; max_prompt_length must be at least 2 and less than max_length"
    )]
    Limits {
        /// Longest prompt with response, in tokens.
        max_length: usize,
        /// Longest prompt, in tokens, where both are too long together.
        max_prompt_length: usize,
    },
    /// A special token that the tokenizer does not name: `bos_token` or `eos_token`.
    #[error(
        "the tokenizer names no {0}; add it to tokenizer_config.json or use rows = \"clean\" with a template that ends its turns"
    )]
    NoSpecial(&'static str),
    /// The template renders the prompt otherwise when a response follows.
    #[error(
        "the rendered conversation does not begin with its rendered prompt, so the template rewrites earlier turns; use rows = \"clean\""
    )]
    PromptChanged,
    /// No seam between prompt and response can be found.
    #[error(
        "the whole conversation has fewer tokens than its prompt alone, so official rows cannot split it; use rows = \"clean\""
    )]
    Seam,
    /// A prompt without tokens.
    #[error("the prompt is empty; a response's first token needs a token before it")]
    EmptyPrompt,
    /// A response without tokens: `chosen` or `rejected`.
    #[error("the {0} response is empty; every response needs at least one token")]
    EmptyResponse(&'static str),
    /// Pre-tokenised rows are not cut, and this one is too long.
    #[error(
        "the pre-tokenised prompt and {side} response have {found} ids together; max_length is {max_length}"
    )]
    TooLong {
        /// `chosen` or `rejected`.
        side: &'static str,
        /// Ids of prompt and response.
        found: usize,
        /// The limit.
        max_length: usize,
    },
    /// A row of text for a model without tokenizer or chat template.
    #[error("holds text, but the model's folder has no tokenizer with a chat template: {0}")]
    NoText(Box<ChatTextError>),
    /// A token id that the model does not have.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocab}; does the tokenizer belong to this model?"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Number of the model's token ids.
        vocab: usize,
    },
    /// A row that does not fit into the model's context.
    #[error("has {found} tokens, the model's context {context}; lower {key}")]
    Context {
        /// Tokens of the row.
        found: usize,
        /// Tokens that the model can take.
        context: usize,
        /// What bounds it.
        key: &'static str,
    },
}

/// One prompt with one response, as ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenisedSequence {
    /// Prompt ids, then response ids.
    pub ids: Vec<u32>,
    /// Where the response begins in `ids`; both parts are not empty.
    pub response_start: usize,
}

impl TokenisedSequence {
    fn new(prompt: &[u32], response: &[u32]) -> Self {
        Self {
            ids: [prompt, response].concat(),
            response_start: prompt.len(),
        }
    }

    /// Refuses ids from `vocab` on, and more than `context` tokens, which `key` bounds.
    pub(super) fn check(
        &self,
        vocab: usize,
        context: usize,
        key: &'static str,
    ) -> Result<(), TokeniseError> {
        if let Some(&id) = self.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(TokeniseError::Vocabulary { id, vocab });
        }
        let found = self.ids.len();
        match found > context {
            true => Err(TokeniseError::Context {
                found,
                context,
                key,
            }),
            false => Ok(()),
        }
    }

    /// Ids that are context only.
    pub fn prompt(&self) -> &[u32] {
        &self.ids[..self.response_start]
    }

    /// Ids whose log-probabilities count.
    pub fn response(&self) -> &[u32] {
        &self.ids[self.response_start..]
    }
}

/// A preference row: two sequences and the probabilities of its judge.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenisedPair {
    /// The winning response; its prompt part may differ from the losing one's in `official` rows.
    pub chosen: TokenisedSequence,
    /// The losing response.
    pub rejected: TokenisedSequence,
    /// Of its judge.
    pub probabilities: PairProbabilities,
}

impl TokenisedPair {
    /// Two sequences with their judge's probabilities.
    pub fn new(
        (chosen, rejected): (TokenisedSequence, TokenisedSequence),
        probabilities: PairProbabilities,
    ) -> Self {
        Self {
            chosen,
            rejected,
            probabilities,
        }
    }

    /// Chosen and rejected.
    pub fn sides(&self) -> [&TokenisedSequence; 2] {
        [&self.chosen, &self.rejected]
    }

    /// A pre-tokenised row, taken as it is: no token is added or cut; longer than `max_length`
    /// tokens is an error.
    pub fn from_ids(
        prompt: &[u32],
        chosen: &[u32],
        rejected: &[u32],
        probabilities: PairProbabilities,
        max_length: usize,
    ) -> Result<Self, TokeniseError> {
        if prompt.is_empty() {
            return Err(TokeniseError::EmptyPrompt);
        }
        for (side, response) in [("chosen", chosen), ("rejected", rejected)] {
            if response.is_empty() {
                return Err(TokeniseError::EmptyResponse(side));
            }
            let found = prompt.len() + response.len();
            if found > max_length {
                return Err(TokeniseError::TooLong {
                    side,
                    found,
                    max_length,
                });
            }
        }
        let sequences = (
            TokenisedSequence::new(prompt, chosen),
            TokenisedSequence::new(prompt, rejected),
        );
        Ok(Self::new(sequences, probabilities))
    }
}

/// What the length limits took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Truncation {
    /// Rows that lost tokens.
    pub rows: usize,
    /// Tokens that they lost: of the prompt (counted once a pair) and of the responses.
    pub tokens: usize,
    /// Responses that lost their end, and with it what ends the turn.
    pub responses_without_end: usize,
}

impl std::iter::Sum for Truncation {
    fn sum<I: Iterator<Item = Self>>(rows: I) -> Self {
        rows.fold(Self::default(), |all, row| Self {
            rows: all.rows + row.rows,
            tokens: all.tokens + row.tokens,
            responses_without_end: all.responses_without_end + row.responses_without_end,
        })
    }
}

impl Truncation {
    /// Counts a row whose prompt and responses lost so many tokens.
    fn count(&mut self, prompt: usize, responses: &[usize]) {
        let tokens = prompt + responses.iter().sum::<usize>();
        self.rows += usize::from(tokens > 0);
        self.tokens += tokens;
        self.responses_without_end += responses.iter().filter(|&&lost| lost > 0).count();
    }
}

/// Prompt and response ids before the length limits.
type Parts = (Vec<u32>, Vec<u32>);

/// Makes rows of one model folder's tokenizer and template.
#[derive(Clone, Debug)]
pub struct RowTokeniser {
    text: ChatText,
    mode: Rows,
    max_length: usize,
    max_prompt_length: usize,
    /// What ends an assistant's turn.
    end_of_turn: EndOfTurn,
}

impl RowTokeniser {
    /// Checks the limits (in tokens).
    pub fn new(
        text: ChatText,
        end_of_turn: EndOfTurn,
        mode: Rows,
        max_length: usize,
        max_prompt_length: usize,
    ) -> Result<Self, TokeniseError> {
        if max_prompt_length < 2 || max_prompt_length >= max_length {
            return Err(TokeniseError::Limits {
                max_length,
                max_prompt_length,
            });
        }
        if mode == Rows::Official && text.tokenizer().bos_id().is_none() {
            return Err(TokeniseError::NoSpecial("bos_token"));
        }
        if mode == Rows::Official && text.tokenizer().eos_id().is_none() {
            return Err(TokeniseError::NoSpecial("eos_token"));
        }
        Ok(Self {
            end_of_turn,
            text,
            mode,
            max_length,
            max_prompt_length,
        })
    }

    /// Of a model's folder, within the model's context; none where the folder cannot (no tokenizer
    /// or template).
    pub fn of_folder(
        folder: &ModelFolder,
        mode: Rows,
        max_length: usize,
        max_prompt_length: usize,
    ) -> Result<Option<Self>, TokeniseError> {
        // A response that filled the context still gets its end of turn.
        let max_length = max_length.min(folder.config().max_position_embeddings);
        let max_prompt_length = max_prompt_length.min(max_length.saturating_sub(1));
        let of_text = |text: &ChatText| {
            let end = folder.end_of_turn()?;
            Self::new(text.clone(), end, mode, max_length, max_prompt_length)
        };
        folder.text().map(of_text).transpose()
    }

    /// The chosen and the rejected sequence of a preference row, cut to the limits together; what
    /// they lost is added to `lost`.
    pub fn pair(
        &self,
        prompt: &[Message],
        chosen: &str,
        rejected: &str,
        lost: &mut Truncation,
    ) -> Result<(TokenisedSequence, TokenisedSequence), TokeniseError> {
        let chosen = self.parts(prompt, chosen)?;
        let rejected = self.parts(prompt, rejected)?;
        Ok(self.cut_pair(chosen, rejected, lost))
    }

    /// The same of the ids behind a pair's text, where this tokeniser takes ids as they were sampled.
    /// Ids of another tokenizer are refused: they would be other words.
    pub fn sampled(
        &self,
        ids: &SampledIds,
        texts: [&str; 2],
        lost: &mut Truncation,
    ) -> Result<(TokenisedSequence, TokenisedSequence), TokeniseError> {
        let sides = [("chosen", &ids.chosen_ids), ("rejected", &ids.rejected_ids)];
        for ((side, ids), text) in sides.into_iter().zip(texts) {
            let read = self.text.decode(ids);
            if !read.is_ok_and(|read| read.starts_with(text)) {
                return Err(TokeniseError::OtherIds(side));
            }
        }
        let parts = |response: &[u32]| (ids.prompt_ids.clone(), response.to_vec());
        let (chosen, rejected) = (parts(&ids.chosen_ids), parts(&ids.rejected_ids));
        Ok(self.cut_pair(chosen, rejected, lost))
    }

    /// Whether rows that hold ids are taken as they were sampled.
    pub fn takes_sampled(&self) -> bool {
        self.mode == Rows::Sampled
    }

    fn cut_pair(
        &self,
        chosen: Parts,
        rejected: Parts,
        lost: &mut Truncation,
    ) -> (TokenisedSequence, TokenisedSequence) {
        let before = [&chosen, &rejected].map(|(prompt, response)| (prompt.len(), response.len()));
        let longer = chosen.1.len().max(rejected.1.len());
        let pair = (self.cut(chosen, longer), self.cut(rejected, longer));
        let after = [&pair.0, &pair.1].map(|side| (side.prompt().len(), side.response().len()));
        let [chosen, rejected] =
            [0, 1].map(|i| (before[i].0 - after[i].0, before[i].1 - after[i].1));
        lost.count(chosen.0.max(rejected.0), &[chosen.1, rejected.1]);
        pair
    }

    /// One prompt with one response, cut to the limits (for supervised fine-tuning); what it lost
    /// is added to `lost`.
    pub fn single(
        &self,
        prompt: &[Message],
        response: &str,
        lost: &mut Truncation,
    ) -> Result<TokenisedSequence, TokeniseError> {
        let (mut prompt, mut response) = self.parts(prompt, response)?;
        let before = (prompt.len(), response.len());
        if prompt.len() + response.len() > self.max_length {
            self.shorten(&mut prompt);
            response.truncate(self.max_length - prompt.len());
        }
        lost.count(before.0 - prompt.len(), &[before.1 - response.len()]);
        Ok(TokenisedSequence::new(&prompt, &response))
    }

    /// Longest prompt with response, and longest prompt where both are too long together.
    pub fn limits(&self) -> (usize, usize) {
        (self.max_length, self.max_prompt_length)
    }

    fn parts(&self, prompt: &[Message], response: &str) -> Result<Parts, TokeniseError> {
        match self.mode {
            Rows::Clean | Rows::Sampled => self.clean_parts(prompt, response),
            Rows::Official => self.official_parts(prompt, response),
        }
    }

    fn clean_parts(&self, prompt: &[Message], response: &str) -> Result<Parts, TokeniseError> {
        let whole = self
            .text
            .conversation_ids(prompt, response, &self.end_of_turn)?;
        let (prompt, response) = whole.ids.split_at(whole.response.start);
        match prompt.is_empty() {
            true => Err(TokeniseError::EmptyPrompt),
            false => Ok((prompt.to_vec(), response.to_vec())),
        }
    }

    /// The response is what the rendered conversation has behind the rendered prompt, and its
    /// ids are those that the whole text has behind the prompt's.
    fn official_parts(&self, prompt: &[Message], response: &str) -> Result<Parts, TokeniseError> {
        let mut conversation = prompt.to_vec();
        conversation.push(Message::new("assistant", response));
        let prompt = self.text.conversation(prompt)?;
        let whole = self.text.conversation(&conversation)?;
        if !whole.starts_with(&prompt) {
            return Err(TokeniseError::PromptChanged);
        }
        let prompt = self.text.encode(&prompt)?;
        let whole = self.text.encode(&whole)?;
        // Where the last prompt token merges with the response's first, it belongs to the response.
        let mut seam = prompt.len();
        if !whole.starts_with(&prompt) {
            seam = seam.saturating_sub(1);
        }
        if whole.len() < prompt.len() {
            return Err(TokeniseError::Seam);
        }
        let special = |id: Option<u32>, name| id.ok_or(TokeniseError::NoSpecial(name));
        let bos = special(self.text.tokenizer().bos_id(), "bos_token")?;
        let eos = special(self.text.tokenizer().eos_id(), "eos_token")?;
        Ok((
            [&[bos], &whole[..seam]].concat(),
            [&whole[seam..], &[eos]].concat(),
        ))
    }

    /// Applies the limits: first the prompt loses its beginning, then the response its end.
    /// `longer` is the length of the row's longer response.
    fn cut(&self, (mut prompt, mut response): Parts, longer: usize) -> TokenisedSequence {
        let too_long = |prompt: &[u32]| prompt.len() + longer > self.max_length;
        if too_long(&prompt) {
            self.shorten(&mut prompt);
        }
        if too_long(&prompt) {
            response.truncate(self.max_length - self.max_prompt_length);
        }
        TokenisedSequence::new(&prompt, &response)
    }

    /// Takes the beginning of a prompt away down to `max_prompt_length`; clean rows keep its BOS.
    fn shorten(&self, prompt: &mut Vec<u32>) {
        let bos = self.text.tokenizer().bos_id();
        let bos = bos.filter(|_| self.mode != Rows::Official);
        cut_beginning(prompt, self.max_prompt_length, bos);
    }
}

/// Takes the beginning of a prompt away down to `most` tokens, but for `bos` where it begins so;
/// how many tokens went.
pub(crate) fn cut_beginning(prompt: &mut Vec<u32>, most: usize, bos: Option<u32>) -> usize {
    let gone = prompt.len().saturating_sub(most);
    let bos = bos.filter(|bos| prompt.first() == Some(bos));
    prompt.drain(..gone);
    if let (Some(bos), Some(first)) = (bos, prompt.first_mut()) {
        *first = bos;
    }
    gone
}

#[cfg(test)]
mod tests;
