//! A file of judgements, all by one judge, of one model against one baseline.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::error::EvaluationError;
use crate::data::{AnnotationRow, OutputRow, read_rows};

/// The judgements of one file.
#[derive(Clone, Debug)]
pub struct Annotations {
    /// The file.
    pub path: PathBuf,
    /// In their order.
    pub rows: Vec<AnnotationRow>,
    /// Who judged, where the file says it.
    pub annotator: Option<String>,
    /// The model that is measured, `generator_2`.
    pub model: Option<String>,
    /// What it is compared with, `generator_1`.
    pub baseline: Option<String>,
    /// Rows whose instruction stands in an earlier one too.
    pub repeated: usize,
    /// Rows whose `output_1` came from the reference outputs.
    pub from_reference: usize,
}

impl Annotations {
    /// Reads them; several judges, models or baselines in one file are refused, since one number of
    /// them would be none of theirs.
    pub fn read(path: &Path) -> Result<Self, EvaluationError> {
        let rows: Vec<AnnotationRow> = read_rows(path)?;
        if rows.iter().all(|row| row.preference.is_none()) {
            let problem = format!(
                "none of its {} rows has a `preference`; give the annotations.json that alpaca_eval writes, not outputs",
                rows.len()
            );
            return Err(EvaluationError::content(path, problem));
        }
        let only = |key, of: fn(&AnnotationRow) -> &Option<String>| only(path, &rows, key, of);
        let annotator = only("annotator", |row| &row.annotator)?;
        let model = only("generator_2", |row| &row.generator_2)?;
        let baseline = only("generator_1", |row| &row.generator_1)?;
        let mut seen = HashSet::new();
        let instructions = rows.iter().filter_map(|row| row.instruction.as_deref());
        let repeated = instructions.filter(|text| !seen.insert(*text)).count();
        Ok(Self {
            path: path.into(),
            annotator,
            model,
            baseline,
            repeated,
            from_reference: 0,
            rows,
        })
    }

    /// Whether the model is its own baseline.
    pub(super) fn is_baseline(&self) -> bool {
        self.model.is_some() && self.model == self.baseline
    }

    /// Takes the length of `output_1` from the reference outputs where a row lacks it.
    pub fn complete(&mut self, references: &References) -> Result<(), EvaluationError> {
        for (place, row) in self.rows.iter_mut().enumerate() {
            if row.length_1.is_some() {
                continue;
            }
            let known = row.instruction.as_deref();
            let known = known.and_then(|text| references.lengths.get(text));
            let Some(length) = known else {
                let problem = format!(
                    "row {} has no `output_1`, and {} has no output for its `instruction`",
                    place + 1,
                    references.path.display()
                );
                return Err(EvaluationError::content(&self.path, problem));
            };
            row.length_1 = Some(*length);
            self.from_reference += 1;
        }
        if self.from_reference > 0 && self.baseline.is_none() {
            self.baseline = references.generator.clone();
        }
        Ok(())
    }
}

/// The one value of a key in all rows that have it.
fn only(
    path: &Path,
    rows: &[AnnotationRow],
    key: &str,
    of: impl Fn(&AnnotationRow) -> &Option<String>,
) -> Result<Option<String>, EvaluationError> {
    let mut counts = BTreeMap::new();
    for value in rows.iter().filter_map(|row| of(row).as_deref()) {
        *counts.entry(value).or_insert(0usize) += 1;
    }
    let mut values = counts.iter();
    match (values.next(), counts.len()) {
        (None, _) => Ok(None),
        (Some((value, _)), 1) => Ok(Some((*value).to_string())),
        (Some((value, _)), number) => {
            let some = counts.iter().take(4);
            let some: Vec<String> = some
                .map(|(value, count)| format!("{value:?} ({count} rows)"))
                .collect();
            Err(EvaluationError::content(
                path,
                format!(
                    "key `{key}` has {number} values, {}{}; keep the rows of one, for example: jq -c '.[] | select(.{key} == {})' FILE > one.jsonl",
                    some.join(", "),
                    if number > some.len() { ", …" } else { "" },
                    serde_json::Value::from(*value)
                ),
            ))
        }
    }
}

/// Outputs of the baseline, by instruction.
#[derive(Clone, Debug)]
pub struct References {
    /// The file.
    pub path: PathBuf,
    lengths: HashMap<String, usize>,
    generator: Option<String>,
}

impl References {
    /// Reads them; an instruction with outputs of several lengths is refused.
    pub fn read(path: &Path) -> Result<Self, EvaluationError> {
        let rows: Vec<OutputRow> = read_rows(path)?;
        let generator = rows[0].generator.clone();
        let mut lengths = HashMap::new();
        for (place, row) in rows.into_iter().enumerate() {
            let length = row.length;
            let before = lengths.insert(row.instruction, length);
            if before.is_some_and(|before| before != length) {
                let problem = format!(
                    "row {} answers an instruction of an earlier row again, at another length; keep one of both",
                    place + 1
                );
                return Err(EvaluationError::content(path, problem));
            }
        }
        Ok(Self {
            path: path.into(),
            lengths,
            generator,
        })
    }
}
