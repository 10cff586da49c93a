//! Row files that say what they were made from, written by one process at a time.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::format::Format;
use super::rows::Row;
use super::writer::{RowWriter, journal_of};
use crate::cluster;
use crate::files::{
    Existing, Lock, MadeFrom, Mark, Output, OutputError, Seal, is_there, mark_beside, read_mark,
    write_mark,
};

/// A row file that a command makes. Its mark `<name>.sppo.json` says what of; a file of the same
/// making is continued, and one that is finished is left as it is.
pub struct RowOutput<T> {
    path: PathBuf,
    writer: RowWriter<T>,
    mark: Mark,
    mark_path: PathBuf,
    marked: bool,
    /// Whether a file stood under the name when it was opened.
    there: bool,
    finished: bool,
    // Behind the writer: the lock goes last.
    _lock: Lock,
}

/// What belongs to the row file `path`; `more` are files that its maker keeps beside it.
pub fn row_output(path: &Path, more: &[PathBuf]) -> Output {
    let mut parts = vec![path.to_path_buf(), journal_of(path)];
    parts.extend(more.iter().cloned());
    parts.extend(rank_files(path));
    Output {
        name: path.into(),
        mark: mark_beside(path),
        parts,
    }
}

/// Where one of several ranks keeps the rows of `path` that it has finished.
pub(super) fn rank_file(path: &Path, rank: usize) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}{RANK}{rank}{ROWS}"))
}

const RANK: &str = ".rank-";
const ROWS: &str = ".jsonl";

/// Such files that are there, of however many ranks.
pub(super) fn rank_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
    let entries = std::fs::read_dir(folder.unwrap_or(Path::new(".")));
    let rank = |entry: std::fs::DirEntry| {
        let found = entry.file_name();
        let rank = found.to_str()?.strip_prefix(&*name)?.strip_prefix(RANK)?;
        rank.strip_suffix(ROWS)?.parse::<usize>().ok()
    };
    let mut ranks: Vec<usize> = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(rank)
        .collect();
    ranks.sort_unstable();
    ranks
        .into_iter()
        .map(|rank| rank_file(path, rank))
        .collect()
}

impl<T: Row> RowOutput<T> {
    /// Opens `path` for this making of it; gives the rows that are there.
    pub fn open(
        path: &Path,
        made_from: MadeFrom,
        existing: Existing<'_>,
    ) -> Result<(Self, Vec<T>), DataError> {
        Self::open_with(path, &[], made_from, existing)
    }

    /// The same with files that are kept beside it.
    pub fn open_with(
        path: &Path,
        more: &[PathBuf],
        made_from: MadeFrom,
        existing: Existing<'_>,
    ) -> Result<(Self, Vec<T>), DataError> {
        Format::of(path)?;
        let output = row_output(path, more);
        output.refuse_foreign()?;
        let lock = Lock::beside(path)?;
        let mut mark = output.claim(&made_from, existing)?;
        if let Some(found) = &mark
            && !output.check(found, existing)?
        {
            mark = None;
        }
        let (writer, done) = RowWriter::open(path)?;
        let marked = mark.is_some();
        let mark = mark.unwrap_or_else(|| Mark::new(made_from));
        let opened = Self {
            path: path.into(),
            writer,
            finished: mark.finished.is_some(),
            mark,
            mark_path: output.mark,
            marked,
            there: is_there(path),
            _lock: lock,
        };
        if opened.finished {
            tracing::info!(
                "nothing to do: {} is finished ({} rows)",
                path.display(),
                done.len()
            );
        }
        Ok((opened, done))
    }

    /// Whether an earlier run finished it; then nothing may be appended.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Appends one row.
    pub fn append(&mut self, row: &T) -> Result<(), DataError> {
        self.write_mark()?;
        self.writer.append(row)
    }

    /// Writes the mark, without which no file may stand under the name.
    pub fn write_mark(&mut self) -> Result<(), DataError> {
        if !self.marked {
            // One that came since we looked would get a mark of ours.
            row_output(&self.path, &[]).refuse_foreign()?;
            write_mark(&self.mark_path, &self.mark)?;
            self.marked = true;
        }
        Ok(())
    }

    /// Ends the file and says so in its mark; what ranks kept of it beside it goes.
    pub fn finish(self) -> Result<(), DataError> {
        let path = self.path.clone();
        let _lock = match self.finished {
            true => self._lock,
            false => self.seal()?,
        };
        for path in rank_files(&path) {
            std::fs::remove_file(&path)
                .map_err(|source| DataError::io(&path, "remove it", source))?;
        }
        Ok(())
    }

    /// Ends the file; it stays locked.
    fn seal(mut self) -> Result<Lock, DataError> {
        self.write_mark()?;
        if !self.there && Format::of(&self.path)? == Format::Parquet && is_there(&self.path) {
            return Err(OutputError::Changed {
                path: self.path,
                problem: "appeared",
            }
            .into());
        }
        let rows = self.writer.count();
        self.writer.finish()?;
        let seal = Seal::of_file(&self.path, Some(rows))?;
        self.mark.finished = Some(seal);
        write_mark(&self.mark_path, &self.mark)?;
        Ok(self._lock)
    }
}

/// Writes a row file at once; what stands there is dealt with as [`RowOutput::open`] does. Rows
/// that are there already are not written again.
pub fn write_rows<T: Row>(
    path: &Path,
    rows: &[T],
    made_from: MadeFrom,
    existing: Existing<'_>,
) -> Result<(), DataError> {
    let (mut output, done) = RowOutput::open(path, made_from, existing)?;
    for row in rows.iter().skip(done.len()) {
        output.append(row)?;
    }
    output.finish()
}

/// Warns where an input is the unfinished output of another command; among several ranks, once.
pub fn warn_unfinished(path: &Path) {
    let mark = mark_beside(path);
    if cluster::world().leads()
        && is_there(&mark)
        && let Ok(Some(found)) = read_mark::<Mark>(&mark)
        && found.finished.is_none()
    {
        tracing::warn!(
            "{} is not finished: only the rows that are there so far are used",
            path.display()
        );
    }
}
