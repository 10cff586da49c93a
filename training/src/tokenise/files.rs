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
/// `max_length` cuts is warned of. All rows that cannot be used are named together.
pub fn tokenise_pairs(
    rows: &[PairRow],
    tokeniser: Result<&RowTokeniser, &Path>,
    max_length: usize,
    vocab: usize,
    context: usize,
) -> Result<Tokenised<PreferencePair>, BadRows> {
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
    let named = |(index, row): (usize, &PairRow), lost: &mut Truncation| {
        let name = row.prompt_id.clone();
        match tokenise(row, lost) {
            Ok(pair) => Ok(PreferencePair { name, pair }),
            Err(problem) => Err(format!("row {}, prompt_id {name}: {problem}", index + 1)),
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
) -> Result<Tokenised<TokenisedSequence>, BadRows> {
    let tokenise = |row: &SftRow, lost: &mut Truncation| {
        let sequence = tokeniser.single(&row.prompt, &row.response, lost)?;
        sequence.check(vocab, context, "sft.max_length")?;
        Ok::<_, TokeniseError>(sequence)
    };
    let named = |(index, row): (usize, &SftRow), lost: &mut Truncation| {
        tokenise(row, lost).map_err(|problem| format!("row {}: {problem}", index + 1))
    };
    tokenise_all(rows, Some(tokeniser), "sft", named)
}

/// Every row, or an error that names the bad ones.
fn tokenise_all<R, T>(
    rows: &[R],
    tokeniser: Option<&RowTokeniser>,
    section: &str,
    each: impl Fn((usize, &R), &mut Truncation) -> Result<T, String>,
) -> Result<Tokenised<T>, BadRows> {
    let mut truncation = Truncation::default();
    let mut made = Vec::with_capacity(rows.len());
    let mut bad = BadRows::default();
    for row in rows.iter().enumerate() {
        match each(row, &mut truncation) {
            Ok(row) => made.push(row),
            Err(text) => bad.add(|| text),
        }
    }
    bad.refused()?;
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
