//! Shards of responses → one file, as if one process had made it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::error::StageError;
use crate::data::{PromptRow, ResponseRow, RowWriter, read_rows};

/// Writes the rows of `shards` to `out` in the order of `prompts`; refuses rows that are missing,
/// given twice or of other prompts, and an `out` that exists. How many rows there are.
pub fn join_responses(
    prompts: &[PromptRow],
    shards: &[PathBuf],
    out: &Path,
) -> Result<usize, StageError> {
    if out.exists() {
        return Err(StageError::Input(format!(
            "{} exists; remove it or choose another --out",
            out.display()
        )));
    }
    let mut rows: HashMap<String, (ResponseRow, &Path)> = HashMap::new();
    for shard in shards {
        for row in read_rows::<ResponseRow>(shard)? {
            let id = row.prompt_id.clone();
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
    if !missing.is_empty() {
        let some = missing[..missing.len().min(5)].join(", ");
        return Err(StageError::Input(format!(
            "{} of {} prompts have no responses in these shards (prompt_id {some}{}); run `sppo generate` for their shards again, it goes on where it stopped",
            missing.len(),
            prompts.len(),
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
    let (mut writer, _) = RowWriter::<ResponseRow>::open(out)?;
    for row in &whole {
        writer.append(row)?;
    }
    writer.finish()?;
    Ok(whole.len())
}

/// Shards of other settings are no shards of one run.
fn check_alike(rows: &[ResponseRow]) -> Result<(), StageError> {
    let kind = |row: &ResponseRow| (row.responses.len(), row.logprobs.is_some());
    let Some(first) = rows.first() else {
        return Ok(());
    };
    match rows.iter().find(|row| kind(row) != kind(first)) {
        None => Ok(()),
        Some(other) => Err(StageError::Input(format!(
            "prompt_id {} has {} responses, prompt_id {} has {}, or one has log-probabilities and the other not; these shards were made with other settings",
            first.prompt_id,
            first.responses.len(),
            other.prompt_id,
            other.responses.len()
        ))),
    }
}
