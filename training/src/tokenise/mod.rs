//! From rows to token ids: what the learner sees of a prompt and its responses.

mod files;
mod row;

pub use files::{BadRow, PreferencePair, RowError, Tokenised, tokenise_pairs, tokenise_supervised};
pub use row::{RowTokeniser, TokeniseError, TokenisedPair, TokenisedSequence, Truncation};
