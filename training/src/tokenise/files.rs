//! All rows of a file as token ids.

use std::path::Path;

use sppo_model::chat_text::ChatTextError;

use super::row::{RowTokeniser, TokeniseError, TokenisedPair, TokenisedSequence, Truncation};
use crate::data::{PairContent, PairRow, SftRow};

/// Bad rows that are listed; further ones are counted.
const LISTED: usize = 10;

/// A row that cannot become token ids.
#[derive(Debug, thiserror::Error)]
#[error("row {row}: {source}")]
pub struct BadRow {
    /// Its prompt_id, or its number.
    pub row: String,
    /// What is wrong with it.
    pub source: TokeniseError,
}

/// Rows that cannot become token ids.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct RowError {
    /// The first of them, at least one.
    pub first: Vec<BadRow>,
    /// How many there are.
    pub count: usize,
}

impl RowError {
    fn describe(&self) -> String {
        let lines: Vec<String> = self.first.iter().map(BadRow::to_string).collect();
        if self.count == 1 {
            return lines.concat();
        }
        let mut text = format!(
            "{} rows cannot be used:\n  {}",
            self.count,
            lines.join("\n  ")
        );
        if self.count > lines.len() {
            text.push_str(&format!("\n  and {} more", self.count - lines.len()));
        }
        text
    }
}

/// Rows as token ids, and what the length limits took from them.
#[derive(Clone, Debug)]
pub struct Tokenised<T> {
    /// In the order of the file.
    pub rows: Vec<T>,
    /// What they lost.
    pub truncation: Truncation,
}

/// A pair ready for the learner.
#[derive(Clone, Debug)]
pub struct PreferencePair {
    /// The row's prompt_id.
    pub name: String,
    /// Its token ids and probabilities.
    pub pair: TokenisedPair,
}

/// Turns rows into token ids; pre-tokenised rows need no tokenizer, and without one the folder that
/// lacks it is given. Every id must be below `vocab`, every row fit into `context` tokens. What
/// `max_length` cuts is warned of.
pub fn tokenise_pairs(
    rows: &[PairRow],
    tokeniser: Result<&RowTokeniser, &Path>,
    max_length: usize,
    vocab: usize,
    context: usize,
) -> Result<Tokenised<PreferencePair>, RowError> {
    let tokenise = |row: &PairRow, lost: &mut Truncation| {
        let probabilities = row.probabilities;
        let pair = match (&row.content, tokeniser) {
            (
                PairContent::Ids {
                    prompt,
                    chosen,
                    rejected,
                },
                _,
            ) => TokenisedPair::from_ids(prompt, chosen, rejected, probabilities, max_length)?,
            (
                PairContent::Text {
                    prompt,
                    chosen,
                    rejected,
                },
                Ok(tokeniser),
            ) => {
                let sequences = tokeniser.pair(prompt, chosen, rejected, lost)?;
                TokenisedPair::new(sequences, probabilities)
            }
            (PairContent::Text { .. }, Err(folder)) => {
                return Err(TokeniseError::NoText(ChatTextError::missing(folder).into()));
            }
        };
        for sequence in pair.sides() {
            sequence.check(vocab, context, "train.max_length")?;
        }
        Ok(pair)
    };
    let named = |(_, row): (usize, &PairRow), lost: &mut Truncation| {
        let name = row.prompt_id.clone();
        match tokenise(row, lost) {
            Ok(pair) => Ok(PreferencePair { name, pair }),
            Err(source) => Err(BadRow { row: name, source }),
        }
    };
    tokenise_all(rows, tokeniser.ok(), "train", named)
}

/// Turns prompt/response rows into token ids that fit `vocab` and `context`. What the tokeniser's
/// limits cut is warned of.
pub fn tokenise_supervised(
    rows: &[SftRow],
    tokeniser: &RowTokeniser,
    vocab: usize,
    context: usize,
) -> Result<Tokenised<TokenisedSequence>, RowError> {
    let tokenise = |row: &SftRow, lost: &mut Truncation| {
        let sequence = tokeniser.single(&row.prompt, &row.response, lost)?;
        sequence.check(vocab, context, "sft.max_length")?;
        Ok(sequence)
    };
    let named = |(index, row): (usize, &SftRow), lost: &mut Truncation| {
        tokenise(row, lost).map_err(|source| BadRow {
            row: (index + 1).to_string(),
            source,
        })
    };
    tokenise_all(rows, Some(tokeniser), "sft", named)
}

/// Every row, or an error that names the bad ones.
fn tokenise_all<R, T>(
    rows: &[R],
    tokeniser: Option<&RowTokeniser>,
    section: &str,
    each: impl Fn((usize, &R), &mut Truncation) -> Result<T, BadRow>,
) -> Result<Tokenised<T>, RowError> {
    let mut truncation = Truncation::default();
    let mut made = Vec::with_capacity(rows.len());
    let (mut first, mut count) = (Vec::new(), 0);
    for row in rows.iter().enumerate() {
        match each(row, &mut truncation) {
            Ok(row) => made.push(row),
            Err(bad) => {
                count += 1;
                if first.len() < LISTED {
                    first.push(bad);
                }
            }
        }
    }
    if count > 0 {
        return Err(RowError { first, count });
    }
    if let (Some(tokeniser), 1..) = (tokeniser, truncation.rows) {
        let (longest, prompt) = tokeniser.limits();
        tracing::warn!(
            "{} of {} rows are cut: {} tokens lost, {} responses without their end; {section}.max_length lets {longest} tokens through, {prompt} of them prompt where both are too long",
            truncation.rows,
            rows.len(),
            truncation.tokens,
            truncation.responses_without_end,
        );
    }
    Ok(Tokenised {
        rows: made,
        truncation,
    })
}
