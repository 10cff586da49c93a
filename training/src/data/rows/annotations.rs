//! Rows of AlpacaEval: judgements of two outputs, and the outputs themselves.

use serde::Serialize;
use serde_json::Value;

use super::super::problem::describe;
use super::{Fields, Row, RowProblem};

/// One judgement of alpaca_eval's `annotations.json`. Of the texts their lengths are kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AnnotationRow {
    /// What both outputs answer.
    pub instruction: Option<String>,
    /// Number of the instruction, where the file says it; else it is the row's place.
    pub index: Option<u64>,
    /// Length in characters of the output that it is compared with.
    pub length_1: Option<usize>,
    /// Length in characters of the output that is measured.
    pub length_2: Option<usize>,
    /// Model of the first.
    pub generator_1: Option<String>,
    /// Model of the second.
    pub generator_2: Option<String>,
    /// Who judged.
    pub annotator: Option<String>,
    /// From 1 (the first is better) to 2 (the second is); 1.5 is a tie. None where the judge gave none.
    pub preference: Option<f64>,
}

impl Row for AnnotationRow {
    const KIND: &'static str = "alpaca_eval's annotations";
    const KEYS: &'static [&'static str] = &[
        "instruction",
        "index",
        "output_1",
        "output_2",
        "generator_1",
        "generator_2",
        "annotator",
        "preference",
    ];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        Ok(Self {
            instruction: fields.string("instruction")?,
            index: index(fields)?,
            length_1: characters(fields, "output_1")?,
            length_2: characters(fields, "output_2")?,
            generator_1: fields.string("generator_1")?,
            generator_2: fields.string("generator_2")?,
            annotator: fields.string("annotator")?,
            preference: preference(fields)?,
        })
    }
}

/// One output of alpaca_eval's `model_outputs` or `reference_outputs`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OutputRow {
    /// What it answers.
    pub instruction: String,
    /// Its length in characters.
    pub length: usize,
    /// The model.
    pub generator: Option<String>,
}

impl Row for OutputRow {
    const KIND: &'static str = "alpaca_eval's outputs";
    const KEYS: &'static [&'static str] = &["instruction", "output", "generator"];

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let need = "an output row needs `instruction` and `output`";
        let length = characters(fields, "output")?;
        Ok(Self {
            instruction: fields.require("instruction", need, fields.string("instruction"))?,
            length: fields.require("output", need, Ok(length))?,
            generator: fields.string("generator")?,
        })
    }
}

/// Length of a text in characters (code points), as Python counts them.
fn characters(fields: &Fields<'_>, key: &str) -> Result<Option<usize>, RowProblem> {
    Ok(fields.string(key)?.map(|text| text.chars().count()))
}

fn index(fields: &Fields<'_>) -> Result<Option<u64>, RowProblem> {
    let read = |value: &Value| {
        let expected = "a whole number, the instruction's in df_gamed.csv";
        let found = value.as_u64();
        found.ok_or_else(|| RowProblem::mistyped("index", expected, describe(value)))
    };
    fields.get("index").map(read).transpose()
}

/// Old files say 0 for a tie.
fn preference(fields: &Fields<'_>) -> Result<Option<f64>, RowProblem> {
    match fields.number("preference")? {
        Some(value) if value != 0.0 && !(1.0..=2.0).contains(&value) => Err(RowProblem::mistyped(
            "preference",
            "a number from 1 (output_1 is better) to 2 (output_2 is better), or 0 for a tie",
            value.to_string(),
        )),
        Some(0.0) => Ok(Some(1.5)),
        found => Ok(found),
    }
}
