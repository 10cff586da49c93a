//! All rows of a file as token ids.

use std::path::Path;

use sppo_model::chat_text::ChatTextError;

use super::bad_rows::BadRows;
use super::row::{RowTokeniser, TokeniseError, TokenisedPair, TokenisedSequence, Truncation};
use crate::data::{PairContent, PairRow, SftRow};

/// Rows as token ids, and what the length limits took from them.
#[derive(Clone, Debug)]
pub struct Tokenised<T> {
    /// In the order of the file.
    pub rows: Vec<T>,
    /// What they lost together.
    pub truncation: Truncation,
    /// What each lost.
    pub truncations: Vec<Truncation>,
}

/// A pair ready for the learner.
#[derive(Clone, Debug)]
pub struct PreferencePair {
    /// The row's prompt_id.
    pub name: String,
    /// Its token ids and probabilities.
    pub pair: TokenisedPair,
}

/// Turns rows into token ids, as [`PairTokeniser`] does one by one.
pub fn tokenise_pairs(
    rows: &[PairRow],
    tokeniser: Result<&RowTokeniser, &Path>,
    max_length: usize,
    vocab: usize,
    context: usize,
) -> Result<Tokenised<PreferencePair>, BadRows> {
    let mut pairs = PairTokeniser::new(tokeniser, max_length, vocab, context);
    rows.iter().for_each(|row| pairs.add(row));
    pairs.finish()
}

/// Turns pairs into token ids, row by row; pre-tokenised rows need no tokenizer, and without one the
/// folder that lacks it is given. Every id must be below `vocab`, every row fit into `context`
/// tokens. What `max_length` cuts is warned of. All rows that cannot be used are named together.
pub struct PairTokeniser<'a> {
    tokeniser: Result<&'a RowTokeniser, &'a Path>,
    max_length: usize,
    vocab: usize,
    context: usize,
    found: Found<PreferencePair>,
}

impl<'a> PairTokeniser<'a> {
    /// Before the first row.
    pub fn new(
        tokeniser: Result<&'a RowTokeniser, &'a Path>,
        max_length: usize,
        vocab: usize,
        context: usize,
    ) -> Self {
        Self {
            tokeniser,
            max_length,
            vocab,
            context,
            found: Found::default(),
        }
    }

    /// Takes the next row.
    pub fn add(&mut self, row: &PairRow) {
        let name = &row.prompt_id;
        let number = self.found.count + 1;
        let mut lost = Truncation::default();
        let pair = self.tokenise(row, &mut lost).map(|pair| PreferencePair {
            name: name.clone(),
            pair,
        });
        let pair = pair.map_err(|problem| format!("row {number}, prompt_id {name}: {problem}"));
        self.found.add(pair, lost);
    }

    fn tokenise(
        &self,
        row: &PairRow,
        lost: &mut Truncation,
    ) -> Result<TokenisedPair, TokeniseError> {
        let probabilities = row.probabilities;
        let sampled = row.sampled.as_ref();
        let takes = self.tokeniser.is_ok_and(RowTokeniser::takes_sampled);
        let pair = match (&row.content, self.tokeniser) {
            (
                PairContent::Ids {
                    prompt,
                    chosen,
                    rejected,
                },
                _,
            ) => TokenisedPair::from_ids(prompt, chosen, rejected, probabilities, self.max_length)?,
            (
                PairContent::Text {
                    prompt,
                    chosen,
                    rejected,
                },
                Ok(tokeniser),
            ) => {
                let sequences = match sampled.filter(|_| takes) {
                    Some(ids) => tokeniser.sampled(ids, [chosen, rejected], lost)?,
                    None => tokeniser.pair(prompt, chosen, rejected, lost)?,
                };
                TokenisedPair::new(sequences, probabilities)
            }
            (PairContent::Text { .. }, Err(folder)) => {
                return Err(TokeniseError::NoText(ChatTextError::missing(folder).into()));
            }
        };
        for sequence in pair.sides() {
            sequence.check(self.vocab, self.context, "train.max_length")?;
        }
        Ok(pair)
    }

    /// All pairs, or an error that names the bad rows.
    pub fn finish(self) -> Result<Tokenised<PreferencePair>, BadRows> {
        self.found.finish(self.tokeniser.ok(), "train")
    }
}

/// Turns prompt/response rows into token ids that fit `vocab` and `context`. What the tokeniser's
/// limits cut is warned of.
pub fn tokenise_supervised(
    rows: &[SftRow],
    tokeniser: &RowTokeniser,
    vocab: usize,
    context: usize,
) -> Result<Tokenised<TokenisedSequence>, BadRows> {
    let tokenise = |row: &SftRow, lost: &mut Truncation| {
        let sequence = tokeniser.single(&row.prompt, &row.response, lost)?;
        sequence.check(vocab, context, "sft.max_length")?;
        Ok::<_, TokeniseError>(sequence)
    };
    let mut found = Found::default();
    for row in rows {
        let mut lost = Truncation::default();
        let sequence = tokenise(row, &mut lost);
        let number = found.count + 1;
        found.add(
            sequence.map_err(|problem| format!("row {number}: {problem}")),
            lost,
        );
    }
    found.finish(Some(tokeniser), "sft")
}

/// Rows that became ids so far, and those that did not.
struct Found<T> {
    rows: Vec<T>,
    bad: BadRows,
    truncations: Vec<Truncation>,
    count: usize,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            bad: BadRows::default(),
            truncations: Vec::new(),
            count: 0,
        }
    }
}

impl<T> Found<T> {
    fn add(&mut self, row: Result<T, String>, lost: Truncation) {
        self.count += 1;
        match row {
            Ok(row) => {
                self.rows.push(row);
                self.truncations.push(lost);
            }
            Err(text) => self.bad.add(|| text),
        }
    }

    fn finish(
        self,
        tokeniser: Option<&RowTokeniser>,
        section: &str,
    ) -> Result<Tokenised<T>, BadRows> {
        self.bad.refused()?;
        let truncation: Truncation = self.truncations.iter().copied().sum();
        if let (Some(tokeniser), 1..) = (tokeniser, truncation.rows) {
            let (longest, prompt) = tokeniser.limits();
            tracing::warn!(
                "{} of {} rows are cut: {} tokens lost, {} responses without their end; {section}.max_length lets {longest} tokens through, {prompt} of them prompt where both are too long",
                truncation.rows,
                self.count,
                truncation.tokens,
                truncation.responses_without_end,
            );
        }
        Ok(Tokenised {
            rows: self.rows,
            truncation,
            truncations: self.truncations,
        })
    }
}
