//! The file of responses while it is made: rows in order, and those whose turn has not come.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};

use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use super::generation::Generation;
use crate::data::{ResponseRow, RowOutput, RowWriter};
use crate::files::FileError;

/// The file beside `out` that keeps responses whose turn in `out` has not come; it goes when the
/// last row is written.
pub(super) fn ahead_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_os_string();
    name.push(".ahead.jsonl");
    name.into()
}

/// The rows of the output in order, and those whose turn has not come.
pub(super) struct Output {
    rows: RowOutput<ResponseRow>,
    ahead: RowWriter<ResponseRow>,
    ahead_path: PathBuf,
    /// Prompts that the output lacks, by number.
    pub left: VecDeque<usize>,
    /// Finished before their turn, by number.
    pub waiting: BTreeMap<usize, ResponseRow>,
}

impl Output {
    pub fn open(job: &Generation<'_>, folder: &ModelFolder) -> Result<Self, StageError> {
        let ahead_path = ahead_of(job.out);
        let beside = [ahead_path.clone()];
        let made_from = job.made_from(folder)?;
        let (rows, done) = RowOutput::open_with(job.out, &beside, made_from, job.existing)?;
        check_resumed(job, &done)?;
        let (ahead, early) = RowWriter::<ResponseRow>::open(&ahead_path)?;
        check_resumed(job, &early)?;
        let done: HashSet<String> = done.into_iter().map(|row| row.prompt_id).collect();
        let mut early: HashMap<String, ResponseRow> = early
            .into_iter()
            .map(|r| (r.prompt_id.clone(), r))
            .collect();
        let numbered = job.prompts.iter().enumerate();
        let left: VecDeque<usize> = numbered
            .filter(|(_, p)| !done.contains(&p.prompt_id))
            .map(|(number, _)| number)
            .collect();
        let waiting = left
            .iter()
            .filter_map(|&n| Some((n, early.remove(&job.prompts[n].prompt_id)?)))
            .collect();
        let mut output = Self {
            rows,
            ahead,
            ahead_path,
            left,
            waiting,
        };
        output.flush()?;
        Ok(output)
    }

    pub fn is_complete(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes a finished row.
    pub fn add(
        &mut self,
        job: &Generation<'_>,
        number: usize,
        row: ResponseRow,
    ) -> Result<(), StageError> {
        debug_assert_eq!(job.prompts[number].prompt_id, row.prompt_id);
        if self.left.front() != Some(&number) {
            self.rows.write_mark()?;
            self.ahead.append(&row)?;
        }
        self.waiting.insert(number, row);
        self.flush()
    }

    /// Writes the rows whose turn it is.
    fn flush(&mut self) -> Result<(), StageError> {
        while let Some(row) = self.left.front().and_then(|n| self.waiting.remove(n)) {
            self.rows.append(&row)?;
            self.left.pop_front();
        }
        Ok(())
    }

    /// Writes no row for a prompt, so that those behind it are.
    pub fn give_up(&mut self, number: usize) -> Result<(), StageError> {
        self.left.retain(|&left| left != number);
        self.flush()
    }

    pub fn finish(self) -> Result<(), StageError> {
        if self.ahead_path.exists() {
            std::fs::remove_file(&self.ahead_path)
                .map_err(FileError::new("remove", &self.ahead_path))?;
        }
        Ok(self.rows.finish()?)
    }
}

/// Refuses to go on with a file that an other job wrote.
fn check_resumed(job: &Generation<'_>, done: &[ResponseRow]) -> Result<(), StageError> {
    let known: HashSet<&str> = job.prompts.iter().map(|p| p.prompt_id.as_str()).collect();
    let foreign = done.iter().find(|row| {
        !known.contains(row.prompt_id.as_str())
            || row.responses.len() != job.sampling.samples
            || row.logprobs.is_some() != job.logprobs
    });
    match foreign {
        None => Ok(()),
        Some(row) => Err(StageError::Input(format!(
            "{} already holds other work (prompt_id {} with {} responses {} log-probabilities); remove it or choose another --out",
            job.out.display(),
            row.prompt_id,
            row.responses.len(),
            if row.logprobs.is_some() {
                "and"
            } else {
                "without"
            }
        ))),
    }
}
