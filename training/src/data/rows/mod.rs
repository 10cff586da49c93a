//! The rows that travel between the stages, and how each is read from its keys.

mod annotations;
mod pairs;
mod prompts;
mod questions;
mod responses;
mod source;

use serde::Serialize;

use super::fields::{Fields, RowProblem};

pub use annotations::{AnnotationRow, OutputRow};
pub use pairs::{
    PairContent, PairProbabilities, PairRow, ProbabilityKey, SampledIds, check_probabilities,
};
pub use prompts::{PromptRow, SftRow};
pub use questions::QuestionRow;
pub use responses::{JudgedRow, LogpRow, ResponseRow};

/// A row of a file: read from the keys of an object, written through [`Serialize`].
pub trait Row: Sized + Serialize {
    /// What the rows are, for messages.
    const KIND: &'static str;
    /// Every key that [`Row::from_fields`] looks at; other columns of a Parquet file are skipped.
    const KEYS: &'static [&'static str];

    /// Reads and checks a row.
    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem>;

    /// The id that must be unique in a file, for rows that have one.
    fn unique_id(&mut self) -> Option<&mut String> {
        None
    }
}
