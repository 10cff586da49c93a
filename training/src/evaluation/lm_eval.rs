//! Result files of lm-evaluation-harness: one of a whole run, or several of runs task by task.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Local};
use serde::Serialize;
use serde_json::{Map, Value};

use super::error::EvaluationError;
use crate::data::read_object;
use crate::files::FileError;

/// The newest result of every task.
#[derive(Clone, Debug)]
pub struct LmEvalResults {
    /// Where they were looked for.
    pub path: PathBuf,
    /// What the harness calls the model.
    pub model: Option<String>,
    /// Versions of the harness that made them.
    pub versions: BTreeSet<String>,
    /// Files that hold results.
    pub files: Vec<PathBuf>,
    tasks: BTreeMap<String, TaskResult>,
    older: BTreeMap<String, Vec<PathBuf>>,
}

/// A task that several files have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// The task.
    pub task: String,
    /// The newest file, which counts.
    pub newest: PathBuf,
    /// Those that do not.
    pub older: Vec<PathBuf>,
}

/// One task of one file.
#[derive(Clone, Debug)]
pub(super) struct TaskResult {
    pub file: PathBuf,
    /// Its measures by key, as they stand there.
    measures: Map<String, Value>,
    /// Examples before each question, where the file says it.
    pub shots: Option<u64>,
    /// Questions that were asked, and that there are.
    pub asked: Option<(u64, u64)>,
    /// Whether a chat template was applied, where the file says it.
    pub chat_template: Option<bool>,
}

/// The keys of a result file that are read.
const KEYS: [&str; 11] = [
    "results",
    "n-shot",
    "configs",
    "config",
    "n-samples",
    "date",
    "model_name",
    "lm_eval_version",
    "git_hash",
    "chat_template",
    "versions",
];

impl LmEvalResults {
    /// Reads every `.json` file below a folder, or one file. Files without results are passed over;
    /// results of several models are refused.
    pub fn read(path: &Path) -> Result<Self, EvaluationError> {
        let mut found = Vec::new();
        let mut models: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut results = Self {
            path: path.into(),
            model: None,
            versions: BTreeSet::new(),
            files: Vec::new(),
            tasks: BTreeMap::new(),
            older: BTreeMap::new(),
        };
        for file in json_files(path)? {
            let object = read_object(&file, &KEYS)?;
            if !object.contains_key("results") {
                tracing::info!("{} holds no `results` and is passed over", file.display());
                continue;
            }
            if let Some(model) = model(&object) {
                models.entry(model).or_insert_with(|| file.clone());
            }
            results.versions.extend(version(&object));
            found.push((made_at(&file, &object)?, file, object));
        }
        if models.len() > 1 {
            return Err(several_models(path, &models));
        }
        if found.is_empty() {
            return Err(EvaluationError::content(
                path,
                "no results of lm_eval here: a .json file with the key `results` is looked for in the folder and those in it; give what --output_path was",
            ));
        }
        results.model = models.into_keys().next();
        found.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
        for (_, file, object) in &found {
            results.take(file, object)?;
        }
        results.files = found.into_iter().map(|(_, file, _)| file).collect();
        Ok(results)
    }

    /// Takes the tasks of a file that is newer than those before.
    fn take(&mut self, file: &Path, object: &Map<String, Value>) -> Result<(), EvaluationError> {
        let wrong = |key: String, expected: &str, found: &Value| {
            let text: String = found.to_string().chars().take(40).collect();
            let problem = format!("key `{key}` must be {expected}, found {text}");
            EvaluationError::content(file, problem)
        };
        let tasks = match &object["results"] {
            Value::Object(tasks) => tasks,
            other => return Err(wrong("results".into(), "an object of tasks", other)),
        };
        for (name, measures) in tasks {
            let Value::Object(measures) = measures else {
                return Err(wrong(format!("results.{name}"), "an object", measures));
            };
            let within = |key: &str, inner: &str| {
                let value = object.get(key)?.get(name)?;
                let value = if inner.is_empty() {
                    value
                } else {
                    value.get(inner)?
                };
                Some(value).filter(|value| !value.is_null())
            };
            let config = |key: &str| object.get("config").and_then(|config| config.get(key));
            let shots = within("n-shot", "")
                .or(within("configs", "num_fewshot"))
                .or(config("num_fewshot"));
            let shots = match shots.filter(|value| !value.is_null()) {
                None => None,
                Some(value) => Some(
                    value
                        .as_u64()
                        .ok_or_else(|| wrong(format!("n-shot.{name}"), "a whole number", value))?,
                ),
            };
            let samples = |inner| within("n-samples", inner).and_then(Value::as_u64);
            let result = TaskResult {
                file: file.into(),
                measures: measures.clone(),
                shots,
                asked: samples("effective").zip(samples("original")),
                chat_template: object.get("chat_template").map(|text| !text.is_null()),
            };
            if let Some(before) = self.tasks.insert(name.clone(), result) {
                self.older
                    .entry(name.clone())
                    .or_default()
                    .push(before.file);
            }
        }
        Ok(())
    }

    /// The result of the first of several names that is there.
    pub(super) fn task(&self, names: &[String]) -> Option<(&str, &TaskResult)> {
        let found = names.iter().find_map(|name| self.tasks.get_key_value(name));
        found.map(|(name, result)| (name.as_str(), result))
    }

    /// That a task's newest file was chosen among several.
    pub(super) fn replaced(&self, task: &str) -> Option<Replaced> {
        Some(Replaced {
            task: task.into(),
            newest: self.tasks.get(task)?.file.clone(),
            older: self.older.get(task)?.clone(),
        })
    }

    /// The tasks that are there.
    pub fn task_names(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }
}

impl TaskResult {
    /// A measure in 0..1 under the first of its keys that is there, with its standard error where the
    /// harness gives one.
    pub fn measure(
        &self,
        task: &str,
        keys: &[&str],
    ) -> Result<Option<(f64, Option<f64>)>, EvaluationError> {
        let Some(key) = keys.iter().find(|key| self.measures.contains_key(**key)) else {
            return Ok(None);
        };
        let value = &self.measures[*key];
        let number = value.as_f64().filter(|number| (0.0..=1.0).contains(number));
        let Some(number) = number else {
            let text: String = value.to_string().chars().take(40).collect();
            let problem =
                format!("key `results.{task}.{key}` must be a number from 0 to 1, found {text}");
            return Err(EvaluationError::content(&self.file, problem));
        };
        let error = match key.split_once(',') {
            Some((measure, filter)) => format!("{measure}_stderr,{filter}"),
            None => format!("{key}_stderr"),
        };
        // "N/A" where there is none.
        Ok(Some((
            number,
            self.measures.get(&error).and_then(Value::as_f64),
        )))
    }
}

/// The `.json` files below a folder, links to folders not followed; a file is itself.
fn json_files(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let (mut files, mut folders) = (Vec::new(), vec![path.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(FileError::new("read", &folder))? {
            let entry = entry.map_err(FileError::new("read", &folder))?;
            let kind = entry.file_type().map_err(FileError::new("read", &folder))?;
            let path = entry.path();
            if kind.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "json") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// When a file was made, as text that sorts: what its name says (`results_2024-05-01T10-11-12.3.json`),
/// else its `date`, else when it was written.
fn made_at(file: &Path, object: &Map<String, Value>) -> Result<String, FileError> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let named = stem.rsplit('_').next().unwrap_or_default();
    let shape: String = named
        .chars()
        .take(19)
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    if shape == "0000-00-00T00-00-00" {
        return Ok(named.to_string());
    }
    let text = |time: DateTime<Local>| time.format("%Y-%m-%dT%H-%M-%S%.6f").to_string();
    let date = object.get("date").and_then(Value::as_f64);
    let date = date.and_then(|seconds| DateTime::from_timestamp_micros((seconds * 1e6) as i64));
    if let Some(date) = date {
        return Ok(text(date.into()));
    }
    let written = fs::metadata(file).and_then(|meta| meta.modified());
    Ok(text(written.map_err(FileError::new("read", file))?.into()))
}

/// What the harness calls the model: by name, or by the arguments of its loader.
fn model(object: &Map<String, Value>) -> Option<String> {
    if let Some(name) = object.get("model_name").and_then(Value::as_str) {
        return Some(name.into());
    }
    match object.get("config")?.get("model_args")? {
        Value::String(text) => Some(text.clone()),
        Value::Object(arguments) => {
            let names = ["pretrained", "model"].iter();
            let mut values = names.filter_map(|name| arguments.get(*name)?.as_str());
            values.next().map(str::to_string)
        }
        _ => None,
    }
}

fn version(object: &Map<String, Value>) -> Option<String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let commit = || text("git_hash").map(|hash| format!("commit {hash}"));
    text("lm_eval_version").map(str::to_string).or_else(commit)
}

fn several_models(path: &Path, models: &BTreeMap<String, PathBuf>) -> EvaluationError {
    let some = models.iter().take(5);
    let some: Vec<String> = some
        .map(|(model, file)| format!("{model} ({})", file.display()))
        .collect();
    EvaluationError::content(
        path,
        format!(
            "holds results of {} models, and a table is of one: {}{}; give the folder of one of them",
            models.len(),
            some.join(", "),
            if models.len() > some.len() {
                ", …"
            } else {
                ""
            }
        ),
    )
}
