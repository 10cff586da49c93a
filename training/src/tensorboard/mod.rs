//! Event files, as TensorBoard reads them: scalars, texts and histograms by step.
//!
//! The crates that write them are not kept up, and what is written here is little: TFRecord's
//! framing (`record`) around a few Protocol Buffers messages (`event`).

mod event;
mod record;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::files::{FileError, replace_file};
use event::SummaryValue;

/// The folder of a training's or a run's event file, within its output folder.
pub const FOLDER: &str = "tensorboard";

/// What TensorBoard knows event files by.
const NAME: &str = "events.out.tfevents.";

/// The one event file of a folder, open for more.
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins the event file of `dir` with the events of the steps 1 to `last` that the folder's
    /// newest one holds: those of later steps are written again by whoever resumes, and what a kill
    /// tore goes. Every reader finds each step once.
    ///
    /// The file has a new name, since a TensorBoard that runs would go on reading a changed one in
    /// the middle of a record. The one before is emptied and not removed: that TensorBoard comes to
    /// the new file from the end of the one it reads.
    pub fn open(dir: &Path, last: usize) -> Result<Self, FileError> {
        let earlier = event_files(dir).map_err(FileError::new("read", dir))?;
        let now = wall_time();
        let mut bytes = record::framed(&event::file_version(now));
        let mut number = now as u64;
        if let Some((newest, path)) = earlier.last() {
            number = number.max(newest + 1);
            let old = fs::read(path).map_err(FileError::new("read", path))?;
            bytes.extend(record::framed(&event::starts_anew(now)));
            let kept = record::whole_records(&old).into_iter().filter(|event| {
                event::step_of_summary(event).is_some_and(|step| (1..=last as u64).contains(&step))
            });
            kept.for_each(|event| bytes.extend(record::framed(event)));
        }
        let path = dir.join(format!("{NAME}{number:010}.sppo"));
        replace_file(&path, &bytes)?;
        if let Some(((_, newest), older)) = earlier.split_last() {
            let emptied = OpenOptions::new().write(true).truncate(true).open(newest);
            emptied.map_err(FileError::new("empty", newest))?;
            for (_, old) in older {
                fs::remove_file(old).map_err(FileError::new("remove", old))?;
            }
        }
        let file = OpenOptions::new().append(true).open(&path);
        let file = file.map_err(FileError::new("open", &path))?;
        Ok(Self { path, file })
    }

    /// Numbers of one step, by their tags; f32 is what TensorBoard keeps of them.
    pub fn scalars(&mut self, step: usize, scalars: &[(String, f64)]) -> Result<(), FileError> {
        let values = scalars.iter();
        let values = values.map(|(tag, value)| SummaryValue::scalar(tag, *value));
        self.append(event::summary(wall_time(), step, values))
    }

    /// A text in Markdown.
    pub fn text(&mut self, step: usize, tag: &str, markdown: &str) -> Result<(), FileError> {
        self.append(event::summary(
            wall_time(),
            step,
            [SummaryValue::text(tag, markdown)],
        ))
    }

    /// How values are distributed; what is not finite does not count.
    pub fn histogram(&mut self, step: usize, tag: &str, values: &[f64]) -> Result<(), FileError> {
        self.append(event::summary(
            wall_time(),
            step,
            [SummaryValue::histogram(tag, values)],
        ))
    }

    /// Waits until all events are on the disk.
    pub fn sync(&self) -> Result<(), FileError> {
        let synced = self.file.sync_all();
        synced.map_err(FileError::new("flush", &self.path))
    }

    fn append(&mut self, event: Vec<u8>) -> Result<(), FileError> {
        let written = self.file.write_all(&record::framed(&event));
        written.map_err(FileError::new("write", &self.path))
    }
}

/// Text as Markdown that shows it as it is, whatever stands in it.
pub fn verbatim(text: &str) -> String {
    let lines = text.split(['\n', '\r']);
    lines.map(|line| format!("    {line}\n")).collect()
}

/// The event files of this program in a folder by their numbers, the newest last.
fn event_files(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix(NAME)?.strip_suffix(".sppo"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of all events of a folder, in the order in which they are read.
    fn steps(dir: &Path) -> Vec<Option<u64>> {
        let files = event_files(dir).unwrap();
        assert!(files.len() < 3, "{files:?}");
        let bytes: Vec<_> = files
            .iter()
            .map(|(_, path)| fs::read(path).unwrap())
            .collect();
        let events = bytes.iter().flat_map(|bytes| record::whole_records(bytes));
        events.map(event::step_of_summary).collect()
    }

    fn loss(file: &mut EventFile, step: usize) {
        let scalars = [("train/loss".to_string(), 0.5)];
        file.scalars(step, &scalars).unwrap();
    }

    #[test]
    fn a_resumed_file_holds_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut file = EventFile::open(&dir.join("new"), 0).unwrap();
        (1..=5).for_each(|step| loss(&mut file, step));
        let first = file.path.clone();
        drop(file);
        let dir = dir.join("new");
        let whole = fs::read(&first).unwrap();
        assert_eq!(
            steps(&dir),
            [None, Some(1), Some(2), Some(3), Some(4), Some(5)]
        );
        // A kill in the midst of the last record, then a checkpoint behind step 3.
        fs::write(&first, &whole[..whole.len() - 9]).unwrap();
        let mut file = EventFile::open(&dir, 3).unwrap();
        assert!(file.path > first);
        loss(&mut file, 4);
        let expected = [None, None, Some(1), Some(2), Some(3), Some(4)];
        assert_eq!(steps(&dir), expected);
        // The torn record is no step either where it would be kept.
        let bytes = fs::read(&file.path).unwrap();
        fs::write(&file.path, &bytes[..bytes.len() - 1]).unwrap();
        drop(EventFile::open(&dir, 100).unwrap());
        assert_eq!(steps(&dir), [None, None, Some(1), Some(2), Some(3)]);
        drop(EventFile::open(&dir, 0).unwrap());
        assert_eq!(steps(&dir), [None, None]);
    }

    #[test]
    fn hostile_text_stays_text() {
        let text = verbatim("</script>\n\n# no heading\r```\r\n<img src=x onerror=alert(1)>");
        assert!(text.lines().all(|line| line.starts_with("    ")), "{text}");
    }
}
