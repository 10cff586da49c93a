//! Appending rows so that a killed run can go on.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::{DataError, Place};
use super::fields::{Fields, Object, RowProblem};
use super::format::Format;
use super::parquet_writer::{self, Table};
use super::reader::Collector;
use super::rows::Row;
use super::{jsonl, parquet};
use crate::files::put_in_place;

/// Appends whole rows to a `.jsonl` or `.parquet` file, each flushed as it is written.
///
/// Rows of a Parquet file are kept in `<name>.parquet.partial.jsonl` beside it until
/// [`RowWriter::finish`] makes the table.
pub struct RowWriter<T> {
    path: PathBuf,
    sink: Sink,
    count: usize,
    row: PhantomData<fn(&T)>,
}

enum Sink {
    Jsonl(File),
    Parquet(ParquetSink),
}

struct ParquetSink {
    journal_path: PathBuf,
    /// None while the finished table needs no change.
    journal: Option<File>,
    table: Table,
}

impl<T: Row> RowWriter<T> {
    /// Opens a file to append to, making its folder if need be, and returns the whole rows that
    /// are already there; a torn last line is cut off.
    pub fn open(path: &Path) -> Result<(Self, Vec<T>), DataError> {
        let format = Format::of(path)?;
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            fs::create_dir_all(folder)
                .map_err(|source| DataError::io(folder, "make this folder", source))?;
        }
        let (sink, done) = match format {
            Format::Jsonl => {
                let (file, done) = open_lines(path, &mut |_| Ok(()))?;
                (Sink::Jsonl(file), done)
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

    /// Whether rows were written to this path before, finished or not.
    pub fn has_begun(path: &Path) -> bool {
        path.exists() || journal_of(path).exists()
    }

    /// Appends one row. A row that could not be read back (a NaN, a wrong length) is refused.
    pub fn append(&mut self, row: &T) -> Result<(), DataError> {
        let object = self.object(row)?;
        if let Sink::Parquet(sink) = &mut self.sink {
            sink.prepare::<T>(&self.path)?;
            admit(&self.path, &mut sink.table, &object)?;
        }
        let (path, file) = match &mut self.sink {
            Sink::Jsonl(file) => (&self.path, file),
            Sink::Parquet(ParquetSink {
                journal: Some(file),
                journal_path,
                ..
            }) => (&*journal_path, file),
            Sink::Parquet(_) => return Ok(()),
        };
        append_line(path, file, &object)?;
        self.count += 1;
        Ok(())
    }

    /// Ends the file: nothing is lost from here on even if the machine stops, and a Parquet
    /// table is made of its journal.
    pub fn finish(self) -> Result<(), DataError> {
        match self.sink {
            Sink::Jsonl(file) => file
                .sync_all()
                .map_err(|source| DataError::io(&self.path, "write it", source)),
            Sink::Parquet(sink) => sink.finish(&self.path),
        }
    }

    fn object(&self, row: &T) -> Result<Object, DataError> {
        let refuse = |problem| DataError::Row {
            path: self.path.clone(),
            place: Place::Row(self.count + 1),
            problem,
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
                journal_path,
                journal: None,
                table,
            };
            return Ok((sink, collector.rows));
        }
        let (file, done) =
            open_lines(&journal_path, &mut |object| admit(path, &mut table, object))?;
        let sink = ParquetSink {
            journal_path,
            journal: Some(file),
            table,
        };
        Ok((sink, done))
    }

    /// Starts a journal from the finished table if there is none yet.
    fn prepare<T: Row>(&mut self, path: &Path) -> Result<(), DataError> {
        if self.journal.is_some() {
            return Ok(());
        }
        let new = beside(&self.journal_path, ".new");
        let mut file =
            File::create(&new).map_err(|source| DataError::io(&new, "write it", source))?;
        parquet::scan(path, T::KEYS, T::KIND, &mut |_, object| {
            admit(path, &mut self.table, &object)?;
            append_line(&new, &mut file, &object)
        })?;
        replace(file, &new, &self.journal_path)?;
        let file = append_to(&self.journal_path)?;
        self.journal = Some(file);
        Ok(())
    }

    fn finish(self, path: &Path) -> Result<(), DataError> {
        if self.journal.is_none() {
            return Ok(());
        }
        let bytes = read(&self.journal_path)?;
        let mut rows = Vec::new();
        jsonl::scan(&self.journal_path, &bytes, &mut |_, object| {
            rows.push(object);
            Ok(())
        })?;
        let new = beside(path, ".new");
        let file = File::create(&new).map_err(|source| DataError::io(&new, "write it", source))?;
        parquet_writer::write(&file, &self.table, rows).map_err(|error| DataError::Parquet {
            path: new.clone(),
            detail: format!("cannot write it: {error}"),
        })?;
        replace(file, &new, path)?;
        fs::remove_file(&self.journal_path)
            .map_err(|source| DataError::io(&self.journal_path, "remove it", source))
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

/// Opens a file of lines for appending behind its last whole row.
fn open_lines<T: Row>(
    path: &Path,
    each: &mut dyn FnMut(&Object) -> Result<(), DataError>,
) -> Result<(File, Vec<T>), DataError> {
    let mut collector = Collector::new(path);
    let mut file = append_to(path)?;
    let bytes = read(path)?;
    let tail = jsonl::scan(path, &bytes, &mut |place, object| {
        collector.add(place, &object)?;
        each(&object)
    })?;
    let fail = |source| DataError::io(path, "write it", source);
    file.set_len(tail.whole as u64).map_err(fail)?;
    if tail.open {
        file.write_all(b"\n").map_err(fail)?;
    }
    Ok((file, collector.rows))
}

fn append_to(path: &Path) -> Result<File, DataError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| DataError::io(path, "write to it", source))
}

fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    fs::read(path).map_err(|source| DataError::io(path, "read it", source))
}

/// Writes a row and its newline at once, past any buffer of this process.
fn append_line(path: &Path, file: &mut File, object: &Object) -> Result<(), DataError> {
    let fail = |source| DataError::io(path, "write it", source);
    let mut line = serde_json::to_vec(object).map_err(|error| fail(error.into()))?;
    line.push(b'\n');
    file.write_all(&line).map_err(fail)
}

/// Puts a file that is written under its final name.
fn replace(file: File, new: &Path, path: &Path) -> Result<(), DataError> {
    put_in_place(&file, new, path).map_err(|source| DataError::io(path, "write it", source))
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// Writes all rows of a file anew: beside it first, then renamed, so that a kill leaves the old
/// rows or the new ones.
pub fn write_rows<T: Row>(path: &Path, rows: &[T]) -> Result<(), DataError> {
    Format::of(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".new-{name}"));
    // What an earlier, killed run left must not be continued.
    for stale in [&aside, &journal_of(&aside), &journal_of(path)] {
        match std::fs::remove_file(stale) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(DataError::io(stale, "remove it", source));
            }
            _ => {}
        }
    }
    let (mut writer, _) = RowWriter::open(&aside)?;
    for row in rows {
        writer.append(row)?;
    }
    writer.finish()?;
    File::open(&aside)
        .and_then(|file| put_in_place(&file, &aside, path))
        .map_err(|source| DataError::io(path, "replace it", source))
}
