//! What a row of prompts says beside its prompt, for the programs that its answers go to.

use serde::Serialize;

use super::{Fields, Row, RowProblem};

/// Columns of the questions of AlpacaEval and Arena-Hard.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuestionRow {
    /// Arena-Hard's name of the question.
    pub uid: Option<String>,
    /// The part of AlpacaEval's set that it comes from.
    pub dataset: Option<String>,
}

impl Row for QuestionRow {
    const KIND: &'static str = "questions";
    const KEYS: &'static [&'static str] = &["uid", "dataset"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        Ok(Self {
            uid: fields.id("uid")?,
            dataset: fields.string("dataset")?,
        })
    }
}
