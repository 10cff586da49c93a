//! From rows to token ids: what the learner sees of a prompt and its responses.

mod bad_rows;
mod files;
mod row;

pub use bad_rows::{BadRows, MAY_BE_SKIPPED};
pub use files::{PairTokeniser, PreferencePair, Tokenised, tokenise_pairs, tokenise_supervised};
pub(crate) use row::cut_beginning;
pub use row::{RowTokeniser, TokeniseError, TokenisedPair, TokenisedSequence, Truncation};
