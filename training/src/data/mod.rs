//! Row files: prompts, responses, judged rows, pairs, sft rows and log-probabilities as `.jsonl`
//! or `.parquet`, chosen by the file's extension; arrays in a `.json` file are read too.
//!
//! [`read_rows`] reads a whole file; [`RowOutput`] appends whole rows to a file that says what it
//! was made from, and opening it on one that an earlier run left gives that run's rows back, so
//! that the rest can be done.

mod error;
mod fields;
mod format;
mod hh;
mod json_array;
mod json_text;
mod jsonl;
mod messages;
mod object;
mod output;
mod parquet;
mod parquet_writer;
mod problem;
mod prompt;
mod reader;
mod row_file;
mod rows;
mod shared_output;
#[cfg(test)]
mod tests;
mod writer;

pub use error::{DataError, Place};
pub use fields::{Fields, RowProblem};
pub use object::read_object;
pub use output::{RowOutput, row_output, warn_unfinished, write_rows};
pub use prompt::{Prompt, RowsFingerprint, rows_fingerprint, stable_hash};
pub use reader::{read_each_numbered, read_rows};
pub use row_file::RowFile;
pub use rows::{
    AnnotationRow, JudgedRow, LogpRow, OutputRow, PairContent, PairProbabilities, PairRow,
    ProbabilityKey, PromptRow, QuestionRow, ResponseRow, Row, SampledIds, SftRow,
    check_probabilities,
};
pub use shared_output::{Closed, SharedOutput, deal};
pub use writer::RowWriter;
