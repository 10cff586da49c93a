//! All rows of a file as token ids.

use std::path::Path;

use sppo_model::chat_text::ChatTextError;

use super::bad_rows::{BadRows, MAY_BE_SKIPPED};
use super::row::{RowTokeniser, TokeniseError, TokenisedPair, TokenisedSequence, Truncation};
use crate::data::{PairContent, PairRow, RowFile, SftRow};

/// Rows as token ids, and what the length limits took from them.
#[derive(Clone, Debug)]
pub struct Tokenised<T> {
    /// In the order of the file.
    pub rows: Vec<T>,
    /// What they lost together.
    pub truncation: Truncation,
    /// What each lost.
    pub truncations: Vec<Truncation>,
    /// Rows that could not be used and are left out.
    pub left_out: usize,
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
    file: &RowFile<PairRow>,
    tokeniser: Result<&RowTokeniser, &Path>,
    max_length: usize,
    vocab: usize,
    context: usize,
) -> Result<Tokenised<PreferencePair>, BadRows> {
    let mut pairs = PairTokeniser::new(tokeniser, max_length, vocab, context);
    let rows = file.numbers.iter().zip(&file.rows);
    rows.for_each(|(number, row)| pairs.add(*number, row));
    pairs.finish(&file.path, file.skip_bad)
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

    /// Takes the next row, with its number in the file.
    pub fn add(&mut self, number: usize, row: &PairRow) {
        let name = &row.prompt_id;
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

    /// All pairs, or an error that names the bad rows; with `skip_bad` those are left out.
    pub fn finish(self, path: &Path, skip_bad: bool) -> Result<Tokenised<PreferencePair>, BadRows> {
        let tokeniser = self.tokeniser.ok();
        self.found.finish((path, skip_bad), tokeniser, "train")
    }
}

/// Turns prompt/response rows into token ids that fit `vocab` and `context`. What the tokeniser's
/// limits cut is warned of.
pub fn tokenise_supervised(
    file: &RowFile<SftRow>,
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
    for (number, row) in file.numbers.iter().zip(&file.rows) {
        let mut lost = Truncation::default();
        let sequence = tokenise(row, &mut lost);
        found.add(
            sequence.map_err(|problem| format!("row {number}: {problem}")),
            lost,
        );
    }
    found.finish((&file.path, file.skip_bad), Some(tokeniser), "sft")
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
        mut self,
        (path, skip_bad): (&Path, bool),
        tokeniser: Option<&RowTokeniser>,
        section: &str,
    ) -> Result<Tokenised<T>, BadRows> {
        let left_out = self.bad.count();
        if skip_bad && !self.rows.is_empty() {
            self.bad.warn(path, self.count);
        } else {
            if !skip_bad {
                self.bad.advise(MAY_BE_SKIPPED);
            }
            self.bad.refused()?;
        }
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
            left_out,
        })
    }
}
