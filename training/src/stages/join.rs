//! Shards of rows → one file, as if one process had made it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::error::StageError;
use crate::config::OnBadRow;
use crate::data::{
    DataError, JudgedRow, PairRow, PromptRow, ResponseRow, Row, read_rows, row_output,
    rows_fingerprint, warn_unfinished, write_rows,
};
use crate::files::{Existing, MadeFrom};

/// Rows of shards that belong to prompts.
trait Shard: Row {
    fn prompt_id(&self) -> &str;
    /// What all shards of one run have in common.
    fn kind(&self) -> String;
}

impl Shard for ResponseRow {
    fn prompt_id(&self) -> &str {
        &self.prompt_id
    }
    fn kind(&self) -> String {
        let logprobs = match self.logprobs {
            Some(_) => "with",
            None => "without",
        };
        format!(
            "{} responses {logprobs} log-probabilities",
            self.responses.len()
        )
    }
}

impl Shard for JudgedRow {
    fn prompt_id(&self) -> &str {
        &self.responses.prompt_id
    }
    fn kind(&self) -> String {
        let judge = self
            .judge
            .as_ref()
            .map_or("a judge without a name".into(), |j| j.to_string());
        format!("{} judged by {judge}", self.responses.kind())
    }
}

impl Shard for PairRow {
    fn prompt_id(&self) -> &str {
        &self.prompt_id
    }
    fn kind(&self) -> String {
        "a pair".into()
    }
}

/// Writes the rows of `shards` (responses, judged rows or pairs, with all that they hold) to `out`
/// in the order of `prompts`; refuses rows that are missing, given twice, of other prompts or of
/// another kind. Prompts that no shard answers are left out where bad rows are. How many rows there
/// are.
pub fn join_responses(
    prompts: (&Path, &[PromptRow]),
    shards: &[PathBuf],
    out: &Path,
    on_bad_row: OnBadRow,
    existing: Existing<'_>,
) -> Result<usize, StageError> {
    row_output(out, &[]).refuse_foreign()?;
    shards.iter().for_each(|shard| warn_unfinished(shard));
    let Some(first) = shards.first() else {
        return Err(StageError::Input("there are no shards to join".into()));
    };
    // The kind with the most keys first: the others would read it too and drop what they do not know.
    if is_kind::<JudgedRow>(first)? {
        return join::<JudgedRow>(prompts, shards, out, on_bad_row, existing);
    }
    if is_kind::<PairRow>(first)? {
        return join::<PairRow>(prompts, shards, out, on_bad_row, existing);
    }
    if let Some(judged) = find(&shards[1..], is_kind::<JudgedRow>)? {
        return Err(StageError::Input(format!(
            "{} holds judged rows and {} does not; join shards of one kind",
            judged.display(),
            first.display()
        )));
    }
    join::<ResponseRow>(prompts, shards, out, on_bad_row, existing)
}

fn find(
    shards: &[PathBuf],
    holds: impl Fn(&Path) -> Result<bool, StageError>,
) -> Result<Option<&PathBuf>, StageError> {
    for shard in shards {
        if holds(shard)? {
            return Ok(Some(shard));
        }
    }
    Ok(None)
}

/// Whether the rows of a file are of this kind; other faults than another kind are errors.
fn is_kind<T: Row>(path: &Path) -> Result<bool, StageError> {
    match read_rows::<T>(path) {
        Ok(_) => Ok(true),
        Err(error @ (DataError::Io { .. } | DataError::Extension { .. })) => Err(error.into()),
        Err(_) => Ok(false),
    }
}

fn join<T: Shard>(
    (file, prompts): (&Path, &[PromptRow]),
    shards: &[PathBuf],
    out: &Path,
    on_bad_row: OnBadRow,
    existing: Existing<'_>,
) -> Result<usize, StageError> {
    let mut made_from = MadeFrom::new("join").settings(on_bad_row.setting()).input(
        "prompts",
        file,
        rows_fingerprint(prompts),
    );
    let mut rows: HashMap<String, (T, &Path)> = HashMap::new();
    for (number, shard) in shards.iter().enumerate() {
        let here = read_rows::<T>(shard)?;
        let name = format!("shard {}", number + 1);
        made_from = made_from.input(&name, shard, rows_fingerprint(&here));
        for row in here {
            let id = row.prompt_id().to_string();
            if let Some((_, first)) = rows.insert(id.clone(), (row, shard)) {
                return Err(StageError::Input(format!(
                    "prompt_id {id} is in {} and in {}; give each shard once",
                    first.display(),
                    shard.display()
                )));
            }
        }
    }
    let missing: Vec<&str> = prompts
        .iter()
        .map(|p| p.prompt_id.as_str())
        .filter(|id| !rows.contains_key(*id))
        .collect();
    let some = missing[..missing.len().min(5)].join(", ");
    if on_bad_row.skips() && !missing.is_empty() && !rows.is_empty() {
        tracing::warn!(
            "{} of {} prompts have no {} in these shards and are left out (on_bad_row = skip): prompt_id {some}{}",
            missing.len(),
            prompts.len(),
            T::KIND,
            if missing.len() > 5 { ", …" } else { "" }
        );
    } else if !missing.is_empty() {
        return Err(StageError::Input(format!(
            "{} of {} prompts have no {} in these shards (prompt_id {some}{}); run the command that made them again for their shards, it goes on where it stopped",
            missing.len(),
            prompts.len(),
            T::KIND,
            if missing.len() > 5 { ", …" } else { "" }
        )));
    }
    let mut whole = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        whole.extend(rows.remove(&prompt.prompt_id).map(|(row, _)| row));
    }
    if let Some((id, (_, shard))) = rows.iter().min_by_key(|(id, _)| id.as_str()) {
        return Err(StageError::Input(format!(
            "{}: prompt_id {id} is not among the prompts; give the --prompts file that the shards were made from",
            shard.display()
        )));
    }
    check_alike(&whole)?;
    write_rows(out, &whole, made_from, existing)?;
    Ok(whole.len())
}

/// Shards of other settings are no shards of one run.
fn check_alike<T: Shard>(rows: &[T]) -> Result<(), StageError> {
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let kind = first.kind();
    match rows.iter().find(|row| row.kind() != kind) {
        None => Ok(()),
        Some(other) => Err(StageError::Input(format!(
            "prompt_id {} has {kind}, prompt_id {} has {}; these shards were made with other settings",
            first.prompt_id(),
            other.prompt_id(),
            other.kind()
        ))),
    }
}
