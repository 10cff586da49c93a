//! A run seen from outside, by its files alone: on this machine or another, under way or done.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;

use super::curves::{Step, targets};
use super::progress::Progress;
use super::report::Report;
use crate::config::{Config, Loss};
use crate::data::PairProbabilities;
use crate::files::{FileError, config_in_effect};
use crate::stages::StageError;

/// The end of a file of judged rows that is read for the last ones.
const TAIL: u64 = 256 << 10;
/// Judged rows that are shown.
const ROWS: usize = 3;

/// A run that is watched; `look` again and again.
#[derive(Default)]
pub struct Watched {
    dir: PathBuf,
    /// Where it stands; none for runs of before this was written.
    pub progress: Option<Progress>,
    /// Of the iterations that have finished.
    pub report: Report,
    /// The iteration whose training is in `steps`; 0 is the fine-tuning.
    pub training: usize,
    /// Of that training, from the first.
    pub steps: Vec<Step>,
    /// How far its metrics.jsonl is read.
    read: u64,
    /// 1/β: rewards times this are Δ.
    pub eta: f64,
    loss: Option<Loss>,
    /// Size and time of the configuration that they are from.
    config_state: Option<(u64, Option<SystemTime>)>,
    /// What Δ of chosen and rejected is to become in that training.
    pub targets: Option<(f64, f64)>,
    looked_for_targets: bool,
    /// The last rows that were judged, the last one first.
    pub judged: Vec<Judged>,
    /// The file that they are from, and its size then.
    judged_from: (PathBuf, u64),
}

/// A prompt with its best and its worst response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// Its last turn.
    pub prompt: String,
    /// The response with the highest score, and that score.
    pub best: (String, f64),
    /// The same of the lowest.
    pub worst: (String, f64),
}

impl Watched {
    /// The run in `dir`, which may have only just begun.
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            eta: f64::NAN,
            ..Self::default()
        }
    }

    /// Whether there is a run.
    pub fn is_there(&self) -> bool {
        self.dir.join("run.sppo.json").is_file()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads what is new.
    pub fn look(&mut self) -> Result<(), StageError> {
        self.progress = Progress::read(&self.dir)?;
        if let Some(report) = read(&self.dir.join("report.json"))? {
            // Another version's may have other fields; then there is nothing to show.
            self.report = serde_json::from_slice(&report).unwrap_or_default();
        }
        self.read_config();
        self.follow_training()?;
        self.read_judged()
    }

    fn read_config(&mut self) {
        let path = config_in_effect(&self.dir);
        let facts = fs::metadata(&path).ok();
        let state = facts.map(|facts| (facts.len(), facts.modified().ok()));
        // A run that begins writes it anew.
        if state == self.config_state {
            return;
        }
        if let Ok(config) = Config::load(Some(&path), &[]) {
            self.eta = 1.0 / config.train.beta;
            self.loss = Some(config.train.loss);
            (self.targets, self.looked_for_targets) = (None, false);
            self.config_state = state;
        }
    }

    fn folder(&self, iteration: usize) -> PathBuf {
        match iteration {
            0 => self.dir.join("sft"),
            number => self.dir.join(format!("iteration-{number}")),
        }
    }

    /// The last iteration that may have begun.
    fn newest(&self) -> usize {
        let progress = self.progress.as_ref();
        progress.map_or(self.report.iterations.len(), |progress| progress.iteration)
    }

    /// Reads on in the metrics.jsonl of the newest training.
    fn follow_training(&mut self) -> Result<(), StageError> {
        let path = |iteration| self.folder(iteration).join("metrics.jsonl");
        let mut all = (0..=self.newest()).rev();
        let Some(training) = all.find(|iteration| path(*iteration).is_file()) else {
            return Ok(());
        };
        let path = path(training);
        let size = fs::metadata(&path).map_or(0, |meta| meta.len());
        // A resumed training writes its last steps again.
        if training != self.training || size < self.read {
            (self.steps, self.read, self.targets) = (Vec::new(), 0, None);
            self.looked_for_targets = false;
            self.training = training;
        }
        let (text, end) = lines_from(&path, self.read)?;
        self.read = end;
        self.steps.extend(text.lines().filter_map(Step::parse));
        // Some losses have none: the pairs are read once.
        let asked = self.looked_for_targets || self.loss.is_none();
        if training > 0 && !asked && !self.steps.is_empty() {
            self.targets = self.read_targets(training)?;
            self.looked_for_targets = true;
        }
        Ok(())
    }

    fn read_targets(&self, training: usize) -> Result<Option<(f64, f64)>, StageError> {
        #[derive(Deserialize)]
        struct Pair {
            chosen_probs: Option<f64>,
            chosen_probs_win: Option<f64>,
            chosen_probs_lose: Option<f64>,
        }
        let Some(loss) = self.loss else {
            return Ok(None);
        };
        let path = self.folder(training).join("pairs.jsonl");
        let text = read(&path)?.unwrap_or_default();
        let pairs = text.split(|byte| *byte == b'\n');
        let pairs = pairs.filter_map(|line| serde_json::from_slice::<Pair>(line).ok());
        let pairs = pairs.map(|pair| PairProbabilities {
            chosen: pair.chosen_probs,
            win: pair.chosen_probs_win,
            lose: pair.chosen_probs_lose,
        });
        Ok(targets(loss, 1.0 / self.eta, pairs))
    }

    /// The end of the newest file of judged rows.
    fn read_judged(&mut self) -> Result<(), StageError> {
        let newest = self.newest();
        let files = (1..=newest).rev().take(2).flat_map(|iteration| {
            let folder = self.folder(iteration);
            ["heldout-vs-first-judged.jsonl", "judged.jsonl"].map(|name| folder.join(name))
        });
        let mut found = files.filter_map(|path| {
            let meta = fs::metadata(&path).ok()?;
            (meta.len() > 0).then_some((path, meta.len()))
        });
        let Some((path, size)) = found.next() else {
            return Ok(());
        };
        if self.judged_from == (path.clone(), size) {
            return Ok(());
        }
        let (text, _) = lines_from(&path, size.saturating_sub(TAIL))?;
        let rows = text.lines().rev().filter_map(Judged::parse);
        let rows: Vec<Judged> = rows.take(ROWS).collect();
        if !rows.is_empty() {
            self.judged = rows;
        }
        self.judged_from = (path, size);
        Ok(())
    }
}

impl Judged {
    fn parse(line: &str) -> Option<Self> {
        let row: Value = serde_json::from_str(line).ok()?;
        let responses = row.get("responses")?.as_array()?.iter();
        let scores = row.get("rm_scores")?.as_array()?.iter();
        let text = |value: &Value| value.as_str().map(str::to_string);
        let mut scored: Vec<(String, f64)> = responses
            .zip(scores)
            .filter_map(|(response, score)| Some((text(response)?, score.as_f64()?)))
            .collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        let prompt = row.get("prompt")?;
        let last = prompt.as_array().and_then(|turns| turns.last());
        let prompt = last.and_then(|turn| turn.get("content")).unwrap_or(prompt);
        Some(Self {
            prompt: text(prompt).unwrap_or_default(),
            best: scored.first()?.clone(),
            worst: scored.last()?.clone(),
        })
    }
}

/// A file's bytes; `None` where it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error).into()),
    }
}

/// The whole lines of a file from a place on, and where they end.
fn lines_from(path: &Path, from: u64) -> Result<(String, u64), StageError> {
    let failed = FileError::new("read", path);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut bytes)
    });
    read.map_err(failed)?;
    let end = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    bytes.truncate(end);
    Ok((
        String::from_utf8_lossy(&bytes).into_owned(),
        from + end as u64,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(loss: f64) -> String {
        format!("{{\"loss\":{loss},\"rewards/chosen\":0.5}}\n")
    }

    #[test]
    fn steps_are_read_as_they_come() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sft");
        fs::create_dir(&folder).unwrap();
        let metrics = folder.join("metrics.jsonl");
        let mut watched = Watched::new(dir.path());
        watched.look().unwrap();
        assert!(watched.steps.is_empty() && !watched.is_there());
        fs::write(&metrics, line(3.0) + &line(2.0) + "{\"loss\":1").unwrap();
        watched.look().unwrap();
        assert_eq!(watched.steps.len(), 2);
        fs::write(&metrics, line(3.0) + &line(2.0) + &line(1.0)).unwrap();
        watched.look().unwrap();
        watched.look().unwrap();
        let losses: Vec<f64> = watched.steps.iter().map(|step| step.loss).collect();
        assert_eq!(losses, [3.0, 2.0, 1.0]);
        // A resumed training wrote its steps again.
        fs::write(&metrics, line(3.0)).unwrap();
        watched.look().unwrap();
        assert_eq!(watched.steps.len(), 1);
    }

    #[test]
    fn the_newest_rows_are_shown_best_and_worst() {
        let row = r#"{"prompt":[{"role":"user","content":"q"}],"responses":["a","b","c"],"rm_scores":[1.0,3.0,-2.0]}"#;
        let judged = Judged::parse(row).unwrap();
        assert_eq!(judged.prompt, "q");
        assert_eq!(
            (judged.best.0.as_str(), judged.worst.0.as_str()),
            ("b", "c")
        );
        assert!(Judged::parse("{}").is_none());
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("iteration-1");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("judged.jsonl"), format!("{row}\n{row}\n{{")).unwrap();
        let progress = Progress {
            iteration: 1,
            ..Progress::default()
        };
        let progress = serde_json::to_vec(&progress).unwrap();
        fs::write(dir.path().join("progress.json"), progress).unwrap();
        let mut watched = Watched::new(dir.path());
        watched.look().unwrap();
        assert_eq!(watched.judged, [judged.clone(), judged]);
    }
}
