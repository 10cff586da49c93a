//! All rows of a file as token ids.

use super::row::{RowTokeniser, TokeniseError, TokenisedPair, TokenisedSequence};
use crate::data::{PairContent, PairRow, SftRow};

/// A row that cannot become token ids.
#[derive(Debug, thiserror::Error)]
#[error("row {row}: {source}")]
pub struct RowError {
    /// Its prompt_id, or its number.
    pub row: String,
    /// What is wrong with it.
    pub source: TokeniseError,
}

/// A pair ready for the learner.
#[derive(Clone, Debug)]
pub struct PreferencePair {
    /// The row's prompt_id.
    pub name: String,
    /// Its token ids and probabilities.
    pub pair: TokenisedPair,
}

/// Turns rows into token ids; pre-tokenised rows need no tokenizer. Every id must be below
/// `vocab`, every row fit into `context` tokens.
pub fn tokenise_pairs(
    rows: &[PairRow],
    tokeniser: Option<&RowTokeniser>,
    max_length: usize,
    vocab: usize,
    context: usize,
) -> Result<Vec<PreferencePair>, RowError> {
    let tokenise = |row: &PairRow| {
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
                Some(tokeniser),
            ) => TokenisedPair::new(tokeniser.pair(prompt, chosen, rejected)?, probabilities),
            (PairContent::Text { .. }, None) => return Err(TokeniseError::NoText),
        };
        for sequence in pair.sides() {
            sequence.check(vocab, context, "train.max_length")?;
        }
        Ok(pair)
    };
    let named = |row: &PairRow| {
        let name = row.prompt_id.clone();
        match tokenise(row) {
            Ok(pair) => Ok(PreferencePair { name, pair }),
            Err(source) => Err(RowError { row: name, source }),
        }
    };
    rows.iter().map(named).collect()
}
/// Turns prompt/response rows into token ids that fit `vocab` and `context`.
pub fn tokenise_supervised(
    rows: &[SftRow],
    tokeniser: &RowTokeniser,
    vocab: usize,
    context: usize,
) -> Result<Vec<TokenisedSequence>, RowError> {
    let tokenise = |row: &SftRow| {
        let sequence = tokeniser.single(&row.prompt, &row.response)?;
        sequence.check(vocab, context, "sft.max_length")?;
        Ok(sequence)
    };
    let named = |(index, row): (usize, &SftRow)| {
        tokenise(row).map_err(|source| RowError {
            row: (index + 1).to_string(),
            source,
        })
    };
    rows.iter().enumerate().map(named).collect()
}
