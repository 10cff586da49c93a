//! Reading whole row files.

use std::collections::HashMap;
use std::path::Path;

use super::error::{DataError, Place};
use super::fields::{Fields, Object};
use super::format::Format;
use super::rows::Row;
use super::{jsonl, parquet};

/// Reads all rows of an input file. A file without rows is an error; a torn last line of a
/// `.jsonl` file is dropped with a warning.
pub fn read_rows<T: Row>(path: &Path) -> Result<Vec<T>, DataError> {
    let mut collector = Collector::new(path);
    match Format::of(path)? {
        Format::Jsonl => {
            let bytes =
                std::fs::read(path).map_err(|source| DataError::io(path, "read it", source))?;
            jsonl::scan(path, &bytes, &mut |place, row| collector.add(place, &row))?;
        }
        Format::Parquet => parquet::scan(path, T::KEYS, T::KIND, &mut |place, row| {
            collector.add(place, &row)
        })?,
    }
    if collector.rows.is_empty() {
        return Err(DataError::Empty {
            path: path.to_path_buf(),
            kind: T::KIND,
        });
    }
    Ok(collector.rows)
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
        let fields = Fields::new(object);
        let mut row = T::from_fields(&fields).map_err(|problem| DataError::Row {
            path: self.path.to_path_buf(),
            place,
            problem,
        })?;
        if let Some(id) = row.unique_id() {
            let own = fields.get("prompt_id").is_some();
            self.claim(id, own, place)?;
        }
        self.rows.push(row);
        Ok(())
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
