//! Appending rows so that a killed run can go on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::{DataError, Place};
use super::fields::{Fields, Object, RowProblem};
use super::format::Format;
use super::parquet_writer::{self, Table};
use super::reader::Collector;
use super::rows::Row;
use super::{jsonl, parquet};
use crate::files::{OutputError, create_aside, is_same_file, put_in_place};

/// Appends whole rows to a `.jsonl` or `.parquet` file, each flushed as it is written.
///
/// Nothing is made before the first row. Rows of a Parquet file are kept in
/// `<name>.parquet.partial.jsonl` beside it until [`RowWriter::finish`] makes the table.
pub struct RowWriter<T> {
    path: PathBuf,
    sink: Sink,
    count: usize,
    row: PhantomData<fn(&T)>,
}

enum Sink {
    Jsonl(Lines),
    Parquet(ParquetSink),
}

struct ParquetSink {
    journal: Lines,
    /// Whether the journal holds the rows of the finished table.
    begun: bool,
    table: Table,
}

impl<T: Row> RowWriter<T> {
    /// Opens a file to append to and returns the whole rows that are already there; a torn last
    /// line is cut off.
    pub fn open(path: &Path) -> Result<(Self, Vec<T>), DataError> {
        let (sink, done) = match Format::of(path)? {
            Format::Jsonl => {
                let (lines, done) = Lines::open(path, &mut |_| Ok(()))?;
                (Sink::Jsonl(lines), done)
            }
            Format::Parquet => {
                let (sink, done) = ParquetSink::open::<T>(path)?;
                (Sink::Parquet(sink), done)
            }
        };
        let writer = RowWriter {
            path: path.to_path_buf(),
            sink,
            count: done.len(),
            row: PhantomData,
        };
        Ok((writer, done))
    }

    /// Rows in the file.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Appends one row. A row that could not be read back (a NaN, a wrong length) is refused.
    pub fn append(&mut self, row: &T) -> Result<(), DataError> {
        let object = self.object(row)?;
        match &mut self.sink {
            Sink::Jsonl(lines) => lines.append(&object)?,
            Sink::Parquet(sink) => {
                sink.prepare::<T>(&self.path)?;
                admit(&self.path, &mut sink.table, &object)?;
                sink.journal.append(&object)?;
            }
        }
        self.count += 1;
        Ok(())
    }

    /// Ends the file: nothing is lost from here on even if the machine stops, and a Parquet
    /// table is made of its journal. A file that was touched by another meanwhile is an error.
    pub fn finish(self) -> Result<(), DataError> {
        match self.sink {
            Sink::Jsonl(mut lines) => lines.finish(),
            Sink::Parquet(sink) => sink.finish(&self.path),
        }
    }

    fn object(&self, row: &T) -> Result<Object, DataError> {
        let refuse = |problem| DataError::Row {
            path: self.path.clone(),
            place: Place::Row(self.count + 1),
            problem: Box::new(problem),
        };
        match serde_json::to_value(row) {
            Ok(Value::Object(object)) => {
                T::from_fields(&Fields::new(&object)).map_err(refuse)?;
                Ok(object)
            }
            other => Err(refuse(RowProblem::mistyped(
                T::KIND,
                "rows that serialise as objects",
                format!("{other:?}"),
            ))),
        }
    }
}

/// Ends the name of a file that is about to take another's place; a name of this program's own.
const NEW: &str = ".sppo.new";

/// Where the rows of a Parquet file are kept until it is finished.
pub(super) fn journal_of(path: &Path) -> PathBuf {
    beside(path, ".partial.jsonl")
}

impl ParquetSink {
    fn open<T: Row>(path: &Path) -> Result<(Self, Vec<T>), DataError> {
        let journal_path = journal_of(path);
        let mut table = Table::default();
        // A journal holds all rows of the table and perhaps more, so it goes first.
        if !journal_path.exists() && path.exists() {
            let mut collector = Collector::new(path);
            parquet::scan(path, T::KEYS, T::KIND, &mut |place, row| {
                collector.add(place, &row)
            })?;
            let sink = ParquetSink {
                journal: Lines::none(&journal_path),
                begun: false,
                table,
            };
            return Ok((sink, collector.rows));
        }
        let (journal, done) =
            Lines::open(&journal_path, &mut |object| admit(path, &mut table, object))?;
        let sink = ParquetSink {
            journal,
            begun: true,
            table,
        };
        Ok((sink, done))
    }

    /// Starts a journal from the finished table if there is none yet.
    fn prepare<T: Row>(&mut self, path: &Path) -> Result<(), DataError> {
        if self.begun {
            return Ok(());
        }
        let journal = &self.journal.path;
        let new = beside(journal, NEW);
        remove(&new)?;
        let mut lines = Lines::none(&new);
        parquet::scan(path, T::KEYS, T::KIND, &mut |_, object| {
            admit(path, &mut self.table, &object)?;
            lines.append(&object)
        })?;
        lines.finish()?;
        fs::rename(&new, journal).map_err(|source| DataError::io(journal, "write it", source))?;
        lines.path.clone_from(journal);
        (self.journal, self.begun) = (lines, true);
        Ok(())
    }

    fn finish(mut self, path: &Path) -> Result<(), DataError> {
        if !self.begun {
            return Ok(());
        }
        self.journal.finish()?;
        let journal = &self.journal.path;
        let bytes = read(journal)?;
        let mut rows = Vec::new();
        jsonl::scan(journal, &bytes, &mut |_, object| {
            rows.push(object);
            Ok(())
        })?;
        let new = beside(path, NEW);
        let file = create_aside(&new).map_err(|source| DataError::io(&new, "write it", source))?;
        parquet_writer::write(&file, &self.table, rows)
            .map_err(io::Error::other)
            .and_then(|()| put_in_place(&file, &new, path))
            .map_err(|source| DataError::io(path, "write it", source))?;
        remove(journal)
    }
}

fn admit(path: &Path, table: &mut Table, object: &Object) -> Result<(), DataError> {
    table.admit(object).map_err(|clash| DataError::MixedColumn {
        path: path.to_path_buf(),
        column: clash.column,
        before: clash.before,
        now: clash.now,
    })
}

/// A file of lines that grows, and what must be in it.
struct Lines {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    hash: Sha256,
}

impl Lines {
    /// A file that is not there yet.
    fn none(path: &Path) -> Self {
        Self {
            path: path.into(),
            file: None,
            size: 0,
            hash: Sha256::new(),
        }
    }

    /// Opens a file, if it is there, for appending behind its last whole row.
    fn open<T: Row>(
        path: &Path,
        each: &mut dyn FnMut(&Object) -> Result<(), DataError>,
    ) -> Result<(Self, Vec<T>), DataError> {
        let mut lines = Self::none(path);
        if !path.exists() {
            return Ok((lines, Vec::new()));
        }
        let mut collector = Collector::new(path);
        let bytes = read(path)?;
        let tail = jsonl::scan(path, &bytes, &mut |place, object| {
            collector.add(place, &object)?;
            each(&object)
        })?;
        let fail = |source| DataError::io(path, "write it", source);
        let file = OpenOptions::new().append(true).open(path).map_err(fail)?;
        file.set_len(tail.whole as u64).map_err(fail)?;
        lines.file = Some(file);
        lines.size = tail.whole as u64;
        lines.hash.update(&bytes[..tail.whole]);
        if tail.open {
            lines.write(b"\n")?;
        }
        Ok((lines, collector.rows))
    }

    fn append(&mut self, object: &Object) -> Result<(), DataError> {
        let mut line = serde_json::to_vec(object)
            .map_err(|error| DataError::io(&self.path, "write it", error.into()))?;
        line.push(b'\n');
        self.write(&line)
    }

    /// Writes whole lines at once, past any buffer of this process.
    fn write(&mut self, line: &[u8]) -> Result<(), DataError> {
        self.begin()?;
        self.check_size()?;
        if let Some(file) = &mut self.file {
            file.write_all(line)
                .map_err(|source| DataError::io(&self.path, "write it", source))?;
            self.size += line.len() as u64;
            self.hash.update(line);
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<(), DataError> {
        if self.file.is_some() {
            return Ok(());
        }
        let folder = self.path.parent().filter(|f| !f.as_os_str().is_empty());
        if let Some(folder) = folder {
            fs::create_dir_all(folder)
                .map_err(|source| DataError::io(folder, "make this folder", source))?;
        }
        // One that another made since we looked is not ours.
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&self.path);
        let fail = |source| DataError::io(&self.path, "write to it", source);
        self.file = Some(file.map_err(fail)?);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), DataError> {
        self.begin()?;
        self.check_size()?;
        if let Some(file) = &self.file {
            let fail = |source| DataError::io(&self.path, "write it", source);
            file.sync_all().map_err(fail)?;
        }
        match Sha256::digest(read(&self.path)?) == self.hash.clone().finalize() {
            true => Ok(()),
            false => Err(self.changed("was changed")),
        }
    }

    /// That the name still leads to this file, and that nobody else wrote to it.
    fn check_size(&self) -> Result<(), DataError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let Ok(there) = fs::metadata(&self.path) else {
            return Err(self.changed("was removed"));
        };
        let here = file
            .metadata()
            .map_err(|source| DataError::io(&self.path, "read it", source))?;
        match is_same_file(&here, &there) && there.len() == self.size {
            true => Ok(()),
            false => Err(self.changed("was changed")),
        }
    }

    fn changed(&self, problem: &'static str) -> DataError {
        let path = self.path.clone();
        OutputError::Changed { path, problem }.into()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    fs::read(path).map_err(|source| DataError::io(path, "read it", source))
}

fn remove(path: &Path) -> Result<(), DataError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DataError::io(path, "remove it", source))
        }
        _ => Ok(()),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}
