//! The rows of an input file that can be used, as the user's setting for bad rows has it.

use std::path::{Path, PathBuf};

use super::error::{BadRows, DataError};
use super::reader::read_each_numbered;
use super::rows::Row;

/// The rows of a file that can be used.
#[derive(Clone, Debug)]
pub struct RowFile<T> {
    /// The file.
    pub path: PathBuf,
    /// In their order.
    pub rows: Vec<T>,
    /// The number of each in the file, from 1; rows that cannot be used count too.
    pub numbers: Vec<usize>,
    /// Whether rows that cannot be used are left out; otherwise they are refused.
    pub skip_bad: bool,
    /// Rows that were left out.
    pub left_out: usize,
}

impl<T: Row> RowFile<T> {
    /// Reads a file. Its bad rows are named together, and with `skip_bad` left out. A file that is
    /// no row file, or has no row that can be used, is refused either way.
    pub fn read(path: &Path, skip_bad: bool) -> Result<Self, DataError> {
        let mut file = Self {
            path: path.into(),
            rows: Vec::new(),
            numbers: Vec::new(),
            skip_bad,
            left_out: 0,
        };
        file.left_out = read_each_numbered(path, skip_bad, |number, row| {
            file.rows.push(row);
            file.numbers.push(number);
        })?;
        Ok(file)
    }

    /// Rows that were read before, the whole of a file; bad ones are refused.
    pub fn of(path: &Path, rows: Vec<T>) -> Self {
        Self {
            path: path.into(),
            numbers: (1..=rows.len()).collect(),
            rows,
            skip_bad: false,
            left_out: 0,
        }
    }

    /// Keeps the rows for which `keep` holds, by number and row.
    pub fn retain(&mut self, mut keep: impl FnMut(usize, &T) -> bool) {
        let pairs = self.numbers.iter().zip(&self.rows);
        let kept: Vec<bool> = pairs.map(|(number, row)| keep(*number, row)).collect();
        let mut of_row = kept.iter();
        self.rows
            .retain(|_| of_row.next().is_some_and(|kept| *kept));
        let mut of_number = kept.iter();
        self.numbers
            .retain(|_| of_number.next().is_some_and(|kept| *kept));
    }

    /// Leaves out the rows for which `problem` gives an error, or refuses them.
    pub(super) fn check(
        &mut self,
        problem: impl Fn(usize, &T) -> Option<DataError>,
    ) -> Result<(), DataError> {
        let mut bad = BadRows::default();
        let mut fatal = None;
        let all = self.rows.len();
        self.retain(|number, row| match problem(number, row) {
            None => true,
            Some(error) => {
                fatal = fatal.take().or(bad.add(error).err());
                false
            }
        });
        match fatal {
            Some(error) => return Err(error),
            None => self.left_out += bad.count(),
        }
        match self.skip_bad && !self.rows.is_empty() {
            true => bad.warn(&self.path, all),
            false => bad.into_result(&self.path)?,
        }
        Ok(())
    }
}
