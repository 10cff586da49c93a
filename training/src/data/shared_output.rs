//! A row file that all ranks of a job make together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::DataError;
use super::fields::{Fields, RowProblem};
use super::output::{RowOutput, rank_file, rank_files};
use super::rows::Row;
use super::writer::RowWriter;
use crate::cluster::{Communicator, advance, any, gather, lead};
use crate::files::{Existing, MadeFrom, OutputError};

/// The rows of a file by their place in it, from 0, made by all ranks.
///
/// Rank 0 holds the file. Alone, it writes rows into it as their turn comes. Among several ranks,
/// each appends what it has finished to a file of its own beside the output, and rank 0 puts them
/// together at the end; a job that is stopped leaves them to the next one, of however many ranks.
pub struct SharedOutput<'w, T> {
    world: &'w dyn Communicator,
    path: PathBuf,
    /// On rank 0.
    file: Option<RowOutput<T>>,
    /// On rank 0, the places that the file lacks.
    left: VecDeque<usize>,
    /// Rows that are known while their turn has not come.
    waiting: BTreeMap<usize, T>,
    /// Places that this rank gave up.
    failed: Vec<usize>,
    /// This rank's file, where there are several.
    own: Option<RowWriter<Placed<T>>>,
}

/// How the work on a shared file ended, on all ranks alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The file is finished.
    Whole,
    /// It has all rows but these, which were given up; it is not finished.
    Without(Vec<usize>),
    /// Some rank was interrupted; the rows are kept.
    Interrupted,
}

impl<'w, T: Row> SharedOutput<'w, T> {
    /// Opens `path`, as [`RowOutput::open_with`] does; rank 0 gets the rows that are in the file,
    /// and alone computes what it is made from.
    pub fn open<E: From<DataError>>(
        world: &'w dyn Communicator,
        path: &Path,
        more: &[PathBuf],
        made_from: impl FnOnce() -> Result<MadeFrom, E>,
        existing: Existing<'_>,
    ) -> Result<(Self, Vec<T>), E> {
        let mut shared = Self {
            world,
            path: path.into(),
            file: None,
            left: VecDeque::new(),
            waiting: BTreeMap::new(),
            failed: Vec::new(),
            own: None,
        };
        if !world.leads() {
            return Ok((shared, Vec::new()));
        }
        let (file, done) = RowOutput::open_with(path, more, made_from()?, existing)?;
        shared.file = Some(file);
        shared.read_rank_files()?;
        Ok((shared, done))
    }

    fn read_rank_files(&mut self) -> Result<(), DataError> {
        // Also by name: a network's file system may list new ones late.
        let of_now = (0..self.world.size()).map(|rank| rank_file(&self.path, rank));
        let files: BTreeSet<PathBuf> = rank_files(&self.path).into_iter().chain(of_now).collect();
        for path in files {
            let (_, rows) = RowWriter::<Placed<T>>::open(&path)?;
            self.waiting
                .extend(rows.into_iter().map(|row| (row.place, row.row)));
        }
        Ok(())
    }

    /// Whether this rank holds the file.
    pub fn leads(&self) -> bool {
        self.file.is_some()
    }

    /// A row that was found elsewhere; before [`SharedOutput::begin`].
    pub fn know(&mut self, place: usize, row: T) {
        self.waiting.insert(place, row);
    }

    /// Rows that are known and not in the file.
    pub fn waiting(&self) -> impl Iterator<Item = (usize, &T)> {
        self.waiting.iter().map(|(place, row)| (*place, row))
    }

    /// Rank 0 says which places the file lacks, in order; all get those of which no row is known.
    pub fn begin(
        &mut self,
        left: impl IntoIterator<Item = usize>,
    ) -> Result<BTreeSet<usize>, DataError> {
        let world = self.world;
        let todo: BTreeSet<usize> = lead(world, || {
            self.left = left.into_iter().collect();
            let places: BTreeSet<usize> = self.left.iter().copied().collect();
            self.waiting.retain(|place, _| places.contains(place));
            self.flush()?;
            let lacks = |place: &usize| !self.waiting.contains_key(place);
            let todo: BTreeSet<usize> = self.left.iter().copied().filter(lacks).collect();
            if world.size() > 1 && !todo.is_empty() {
                self.write_mark()?;
            }
            Ok::<_, DataError>(todo)
        })?;
        if world.size() > 1 && !todo.is_empty() {
            let path = rank_file(&self.path, world.rank());
            self.own = Some(RowWriter::open(&path)?.0);
        }
        Ok(todo)
    }

    /// Writes the mark, without which no file may stand beside the output.
    pub fn write_mark(&mut self) -> Result<(), DataError> {
        match &mut self.file {
            Some(file) => file.write_mark(),
            None => Ok(()),
        }
    }

    /// Takes a finished row.
    pub fn add(&mut self, place: usize, row: T) -> Result<(), DataError> {
        advance();
        match &mut self.own {
            Some(own) => own.append(&Placed { place, row }),
            None => {
                self.waiting.insert(place, row);
                self.flush()
            }
        }
    }

    /// Whether the row of this place would go into the file at once.
    pub fn is_next(&self, place: usize) -> bool {
        self.own.is_none() && self.left.front() == Some(&place)
    }

    /// Writes no row for a place, so that those behind it are.
    pub fn give_up(&mut self, place: usize) -> Result<(), DataError> {
        advance();
        self.failed.push(place);
        match self.own {
            Some(_) => Ok(()),
            None => self.pass_over(&[place]),
        }
    }

    fn pass_over(&mut self, places: &[usize]) -> Result<(), DataError> {
        self.left.retain(|left| !places.contains(left));
        self.flush()
    }

    /// Writes the rows whose turn it is.
    fn flush(&mut self) -> Result<(), DataError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        while let Some(row) = self
            .left
            .front()
            .and_then(|place| self.waiting.remove(place))
        {
            file.append(&row)?;
            self.left.pop_front();
        }
        Ok(())
    }

    /// Ends the work once all ranks are here; `interrupted` says that this one left some undone.
    /// The others find the file when this returns.
    pub fn close(mut self, interrupted: bool) -> Result<Closed, DataError> {
        let world = self.world;
        if let Some(own) = self.own.take()
            && own.count() > 0
        {
            own.finish()?;
        }
        if any(world, interrupted) {
            return Ok(Closed::Interrupted);
        }
        let mut failed = gather(world, std::mem::take(&mut self.failed)).concat();
        failed.sort_unstable();
        lead(world, || self.put_together(&failed))?;
        Ok(match failed.is_empty() {
            true => Closed::Whole,
            false => Closed::Without(failed),
        })
    }

    fn put_together(mut self, failed: &[usize]) -> Result<(), DataError> {
        if self.world.size() > 1 && !self.left.is_empty() {
            self.read_rank_files()?;
        }
        self.pass_over(failed)?;
        if !self.left.is_empty() {
            // Somebody else was at the files of the ranks.
            let (path, problem) = (self.path, "lost rows");
            return Err(OutputError::Changed { path, problem }.into());
        }
        if let Some(file) = self.file
            && failed.is_empty()
        {
            file.finish()?;
            for rank in 0..self.world.size() {
                // What was not listed; one that stays does no harm.
                let _ = std::fs::remove_file(rank_file(&self.path, rank));
            }
        }
        Ok(())
    }
}

/// What of `all` is this rank's: every n-th.
pub fn deal<T>(
    world: &dyn Communicator,
    all: impl IntoIterator<Item = T>,
) -> impl Iterator<Item = T> {
    all.into_iter().skip(world.rank()).step_by(world.size())
}

/// A row in a rank's file.
#[derive(Serialize)]
struct Placed<T> {
    place: usize,
    #[serde(flatten)]
    row: T,
}

impl<T: Row> Row for Placed<T> {
    const KIND: &'static str = T::KIND;
    const KEYS: &'static [&'static str] = T::KEYS;

    fn from_fields(fields: &Fields<'_>) -> Result<Self, RowProblem> {
        let need = "a rank's row needs its place in the output";
        let place = fields.require("place", need, fields.number("place"))?;
        Ok(Self {
            place: place as usize,
            row: T::from_fields(fields)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cluster::threads::{Thread, run};
    use crate::data::{LogpRow, row_output};

    const ROWS: usize = 8;

    /// Makes `out` on one rank, which stops before its row `stop`; how it ended and the places that
    /// it did.
    fn make(
        world: &Thread,
        out: &Path,
        stop: Option<usize>,
        bad: &[usize],
        existing: Existing<'_>,
    ) -> Result<(Closed, Vec<usize>), DataError> {
        let made_from = || Ok::<_, DataError>(MadeFrom::new("test"));
        let (mut output, done) =
            SharedOutput::<LogpRow>::open(world, out, &[], made_from, existing)?;
        let todo = output.begin(done.len()..ROWS)?;
        let mut did = Vec::new();
        for place in deal(world, todo) {
            if stop == Some(did.len()) {
                return Ok((output.close(true)?, did));
            }
            did.push(place);
            let row = LogpRow {
                chosen_logps: place as f64 / 3.0,
                rejected_logps: -1.0,
            };
            match bad.contains(&place) {
                true => output.give_up(place)?,
                false => output.add(place, row)?,
            }
        }
        Ok((output.close(false)?, did))
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn any_number_of_ranks_makes_the_same_file() {
        for name in ["rows.jsonl", "rows.parquet"] {
            let made = [1, 2, 3, 9].map(|size| {
                let folder = tempfile::tempdir().unwrap();
                let out = folder.path().join(name);
                let ends = run(size, |rank| {
                    make(&rank, &out, None, &[], Existing::Keep).unwrap().0
                });
                assert_eq!(ends, vec![Closed::Whole; size]);
                assert_eq!(names(folder.path()), [name, &format!("{name}.sppo.json")]);
                fs::read(out).unwrap()
            });
            assert!(made.iter().all(|bytes| *bytes == made[0]));
        }
    }

    #[test]
    fn any_number_of_ranks_goes_on_with_what_others_left() {
        let whole = tempfile::tempdir().unwrap();
        let whole = whole.path().join("rows.jsonl");
        run(1, |rank| {
            make(&rank, &whole, None, &[], Existing::Keep).unwrap()
        });
        for size in [1, 2, 4] {
            let folder = tempfile::tempdir().unwrap();
            let out = folder.path().join("rows.jsonl");
            let stopped = run(3, |rank| {
                let stop = (rank.rank() == 1).then_some(1);
                make(&rank, &out, stop, &[], Existing::Keep).unwrap()
            });
            // 0 3 6, 1, 2 5: one rank's stop is that of all.
            assert!(stopped.iter().all(|(end, _)| *end == Closed::Interrupted));
            let kept = names(folder.path());
            let of_ranks = kept.iter().filter(|name| name.contains(".rank-"));
            assert_eq!(of_ranks.count(), 3, "{kept:?}");
            let ends = run(size, |rank| {
                make(&rank, &out, None, &[], Existing::Keep).unwrap()
            });
            let mut did = ends.iter().flat_map(|(_, did)| did.clone());
            let did: BTreeSet<usize> = did.by_ref().collect();
            assert_eq!(did, BTreeSet::from([4, 7]));
            assert_eq!(fs::read(&out).unwrap(), fs::read(&whole).unwrap());
            assert_eq!(names(folder.path()).len(), 2);
        }
    }

    #[test]
    fn rows_that_ranks_gave_up_are_named_to_all_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("rows.jsonl");
        let ends = run(2, |rank| {
            make(&rank, &out, None, &[5, 6], Existing::Keep).unwrap().0
        });
        assert_eq!(ends, vec![Closed::Without(vec![5, 6]); 2]);
        let lines = fs::read_to_string(&out).unwrap();
        assert_eq!(lines.lines().count(), ROWS - 2);
    }

    #[test]
    fn files_of_ranks_belong_to_their_output() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("rows.jsonl");
        run(2, |rank| {
            make(&rank, &out, Some(2), &[], Existing::Keep).unwrap()
        });
        assert!(!out.exists());
        let other = MadeFrom::new("other");
        let refused = RowOutput::<LogpRow>::open(&out, other.clone(), Existing::Keep);
        assert!(refused.err().unwrap().to_string().contains("made from"));
        let aside = Existing::SetAside(folder.path());
        let (_, done) = RowOutput::<LogpRow>::open(&out, other, aside).unwrap();
        assert!(done.is_empty() && rank_files(&out).is_empty());
        // Without a mark they are somebody else's.
        fs::write(rank_file(&out, 0), "").unwrap();
        assert!(row_output(&out, &[]).refuse_foreign().is_err());
    }
}
