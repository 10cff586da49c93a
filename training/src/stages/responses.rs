//! The file of responses while it is made: rows in order, and those whose turn has not come.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use super::generation::Generation;
use crate::cluster::Communicator;
use crate::data::{Closed, ResponseRow, RowWriter, SharedOutput, deal};
use crate::files::FileError;

/// The file beside `out` that keeps responses whose turn in `out` has not come; it goes when the
/// last row is written.
pub(super) fn ahead_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_os_string();
    name.push(".ahead.jsonl");
    name.into()
}

/// The rows of the output in order, and those whose turn has not come.
pub(super) struct Output<'w> {
    rows: SharedOutput<'w, ResponseRow>,
    /// Of one process; among several ranks, each has a file of its own.
    ahead: Option<RowWriter<ResponseRow>>,
    ahead_path: PathBuf,
    /// Prompts that this rank is to answer, by number.
    pub left: BTreeSet<usize>,
}

impl<'w> Output<'w> {
    pub fn open(
        world: &'w dyn Communicator,
        job: &Generation<'_>,
        folder: &ModelFolder,
    ) -> Result<Self, StageError> {
        let ahead_path = ahead_of(job.out);
        let beside = [ahead_path.clone()];
        let made_from = || job.made_from(folder);
        let (mut rows, done) =
            SharedOutput::open(world, job.out, &beside, made_from, job.existing)?;
        let mut ahead = None;
        if world.leads() {
            check_resumed(job, &done)?;
            check_resumed(job, rows.waiting().map(|(_, row)| row))?;
            let (writer, early) = RowWriter::<ResponseRow>::open(&ahead_path)?;
            check_resumed(job, &early)?;
            ahead = Some(writer).filter(|_| world.size() == 1);
            let numbered = job.prompts.iter().enumerate();
            let numbers: HashMap<&str, usize> = numbered
                .map(|(number, prompt)| (prompt.prompt_id.as_str(), number))
                .collect();
            for row in early {
                if let Some(&number) = numbers.get(row.prompt_id.as_str()) {
                    rows.know(number, row);
                }
            }
        }
        let done: HashSet<String> = done.into_iter().map(|row| row.prompt_id).collect();
        let numbered = job.prompts.iter().enumerate();
        let left = numbered.filter(|(_, prompt)| !done.contains(&prompt.prompt_id));
        let todo = rows.begin(left.map(|(number, _)| number))?;
        Ok(Self {
            rows,
            ahead,
            ahead_path,
            left: deal(world, todo).collect(),
        })
    }

    /// Takes a finished row.
    pub fn add(
        &mut self,
        job: &Generation<'_>,
        number: usize,
        row: ResponseRow,
    ) -> Result<(), StageError> {
        debug_assert_eq!(job.prompts[number].prompt_id, row.prompt_id);
        if let Some(ahead) = &mut self.ahead
            && !self.rows.is_next(number)
        {
            self.rows.write_mark()?;
            ahead.append(&row)?;
        }
        self.left.remove(&number);
        Ok(self.rows.add(number, row)?)
    }

    /// Writes no row for a prompt, so that those behind it are.
    pub fn give_up(&mut self, number: usize) -> Result<(), StageError> {
        self.left.remove(&number);
        Ok(self.rows.give_up(number)?)
    }

    /// Ends the work once all ranks are here.
    pub fn close(self, interrupted: bool) -> Result<Closed, StageError> {
        let leads = self.rows.leads();
        let closed = self.rows.close(interrupted)?;
        if leads && closed == Closed::Whole && self.ahead_path.exists() {
            std::fs::remove_file(&self.ahead_path)
                .map_err(FileError::new("remove", &self.ahead_path))?;
        }
        Ok(closed)
    }
}

/// Refuses to go on with a file that an other job wrote.
fn check_resumed<'a>(
    job: &Generation<'_>,
    done: impl IntoIterator<Item = &'a ResponseRow>,
) -> Result<(), StageError> {
    let known: HashSet<&str> = job.prompts.iter().map(|p| p.prompt_id.as_str()).collect();
    let foreign = done.into_iter().find(|row| {
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
