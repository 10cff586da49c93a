//! Reading whole row files.

use std::collections::HashMap;
use std::path::Path;

use super::error::{BadRows, DataError, Place};
use super::fields::{Fields, Object};
use super::format::{EachResult, ReadFormat};
use super::rows::Row;
use super::{json_array, jsonl, parquet};
use crate::hub::row_files;

/// Reads all rows of an input file. A file without rows is an error; a torn last line of a
/// `.jsonl` file is dropped with a warning. All rows that cannot be used are named together.
pub fn read_rows<T: Row>(path: &Path) -> Result<Vec<T>, DataError> {
    let mut rows = Vec::new();
    let (bad, _) = read_all(path, &mut |_, row| rows.push(row))?;
    bad.into_result(path)?;
    Ok(rows)
}

/// Row by row, each with its number in the file, from 1: none is kept. Rows that cannot be used are
/// an error, or with `skip_bad` warned of and counted; where no other is left, they are an error.
pub fn read_each_numbered<T: Row>(
    path: &Path,
    skip_bad: bool,
    mut each: impl FnMut(usize, T),
) -> Result<usize, DataError> {
    let (bad, all) = read_all(path, &mut each)?;
    let count = bad.count();
    if skip_bad && count < all {
        bad.warn(path, all);
    } else {
        bad.into_result(path).map_err(|error| match skip_bad {
            true => error,
            false => error.with_advice(),
        })?;
    }
    Ok(count)
}

/// Reads all rows; those that cannot be used, and how many there are in all. Of the files that a
/// name of the Hub means the rows are numbered through.
fn read_all<T: Row>(
    path: &Path,
    each: &mut dyn FnMut(usize, T),
) -> Result<(BadRows, usize), DataError> {
    let files = row_files(path)?.unwrap_or_else(|| vec![path.to_path_buf()]);
    let mut seen = HashMap::new();
    let mut bad = BadRows::default();
    let mut all = 0;
    for path in &files {
        let mut collector = Collector::new(path);
        // A prompt_id may stand once in all of them.
        std::mem::swap(&mut collector.seen, &mut seen);
        let mut take = |place, object: Result<Object, DataError>| {
            all += 1;
            match object.and_then(|object| collector.row(place, &object)) {
                Ok(row) => each(all, row),
                Err(error) => bad.add(error)?,
            }
            Ok(())
        };
        read_file::<T>(path, &mut take)?;
        std::mem::swap(&mut collector.seen, &mut seen);
    }
    match all {
        0 => Err(DataError::Empty {
            path: path.to_path_buf(),
            kind: T::KIND,
        }),
        _ => Ok((bad, all)),
    }
}

/// Gives the objects of a file, as its extension says.
fn read_file<T: Row>(path: &Path, take: &mut EachResult<'_>) -> Result<(), DataError> {
    let read = || std::fs::read(path).map_err(|source| DataError::io(path, "read it", source));
    match ReadFormat::of(path)? {
        ReadFormat::Json => json_array::read(path, &read()?, T::KEYS, take),
        ReadFormat::Jsonl => jsonl::read(path, &read()?, T::KEYS, take).map(drop),
        ReadFormat::Parquet => parquet::read(path, T::KEYS, T::KIND, take),
    }
}

/// Turns objects into rows and watches over their ids.
pub(super) struct Collector<'a, T> {
    path: &'a Path,
    pub rows: Vec<T>,
    seen: HashMap<String, Place>,
}

impl<'a, T: Row> Collector<'a, T> {
    pub fn new(path: &'a Path) -> Self {
        Collector {
            path,
            rows: Vec::new(),
            seen: HashMap::new(),
        }
    }

    pub fn add(&mut self, place: Place, object: &Object) -> Result<(), DataError> {
        let row = self.row(place, object)?;
        self.rows.push(row);
        Ok(())
    }

    /// A row that is not kept.
    fn row(&mut self, place: Place, object: &Object) -> Result<T, DataError> {
        let fields = Fields::new(object);
        let mut row = T::from_fields(&fields).map_err(|problem| DataError::Row {
            path: self.path.to_path_buf(),
            place,
            problem: Box::new(problem),
        })?;
        if let Some(id) = row.unique_id() {
            let own = fields.get("prompt_id").is_some();
            self.claim(id, own, place)?;
        }
        Ok(row)
    }

    /// Records an id. Two rows that name the same id are refused; equal prompts without ids are
    /// told apart by a suffix in the order of the file, so that a data set with repeats works.
    fn claim(&mut self, id: &mut String, own: bool, place: Place) -> Result<(), DataError> {
        if !own {
            let hash = id.clone();
            let mut count = 1;
            while self.seen.contains_key(id.as_str()) {
                count += 1;
                *id = format!("{hash}-{count}");
            }
        }
        match self.seen.insert(id.clone(), place) {
            None => Ok(()),
            Some(first) => Err(DataError::Duplicate {
                path: self.path.to_path_buf(),
                id: id.clone(),
                first,
                second: place,
            }),
        }
    }
}
