//! What is known of a model folder: from its mark, from the folders around it, and from the model
//! that it came from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::front_matter;
use super::hardware::Hardware;
use crate::config::{Config, model_name};
use crate::files::{CARD, IN_FOLDER, Mark, config_in_effect, file_fingerprint, read_mark};
use crate::hub::Inside;

/// The mark of a model, with what a training writes into it.
#[derive(Clone, Debug, Deserialize)]
pub struct Made {
    /// What it was made from.
    #[serde(flatten)]
    pub mark: Mark,
    /// Steps behind it.
    #[serde(default)]
    pub step: Option<usize>,
    /// Rows that it was trained on.
    #[serde(default)]
    pub rows: Option<usize>,
    /// What computed it.
    #[serde(default)]
    pub made_on: Option<Hardware>,
}

impl Made {
    /// Of a finished model or a checkpoint, where this program made it.
    pub fn read(dir: &Path) -> Option<Self> {
        let read = |name: &str| read_mark::<Self>(&dir.join(name)).ok().flatten();
        read(IN_FOLDER).or_else(|| read("trainer/state.json"))
    }

    /// Where an input lay.
    pub fn input(&self, name: &str) -> Option<&Path> {
        let input = self.mark.made_from.inputs.get(name)?;
        Some(input.path.as_path())
    }

    /// Whether it comes of `kind`: train, sft, merge or init.
    pub fn is(&self, kind: &str) -> bool {
        self.mark.made_from.command == kind
    }
}

/// The output folder of the training that a model folder or a checkpoint belongs to.
pub(super) fn training_folder(dir: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(dir).ok()?;
    let parents = whole.ancestors().skip(1).take(2);
    let mut trainings = parents.filter(|parent| parent.join("training.sppo.json").is_file());
    trainings.next().map(Path::to_path_buf)
}

/// What metrics.jsonl says of a training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spent {
    pub steps: usize,
    pub seconds: f64,
    pub tokens: f64,
    pub peak_memory_bytes: f64,
}

impl Spent {
    /// Of the first `steps` steps of the training in a folder; lines that cannot be read do not count.
    pub fn read(training: &Path, steps: usize) -> Self {
        let text = fs::read_to_string(training.join("metrics.jsonl")).unwrap_or_default();
        let lines = text.lines().take(steps);
        let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.fold(Self::default(), |sum, line| {
            let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
            Self {
                steps: sum.steps + 1,
                seconds: sum.seconds + number("step_seconds"),
                tokens: sum.tokens + number("tokens"),
                peak_memory_bytes: sum.peak_memory_bytes.max(number("peak_memory_bytes")),
            }
        })
    }
}

/// What an iteration of a run came to on the held-out prompts.
#[derive(Clone, Debug, Deserialize)]
pub struct IterationResult {
    /// Counted from 1.
    pub iteration: usize,
    /// Pairs it was trained on.
    pub pairs: usize,
    /// Against the first model, in 0..1.
    pub win_rate: f64,
    /// Standard error of it.
    pub win_rate_se: f64,
    /// Against the model of the iteration before, in 0..1.
    pub win_rate_previous: f64,
    /// Mean length of the answers in characters.
    pub mean_length: f64,
    /// The whole comparison with the first model.
    pub against_first: Compared,
}

/// A comparison on held-out prompts.
#[derive(Clone, Debug, Deserialize)]
pub struct Compared {
    /// Prompts compared.
    pub prompts: usize,
    /// Win rate at equal length, in 0..1.
    pub length_controlled_win_rate: f64,
    /// Mean length of the other's answers in characters.
    pub mean_length_against: f64,
    /// Who judged.
    #[serde(default)]
    pub judge: Value,
}

/// The run that a model comes from.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub folder: PathBuf,
    /// Counted from 1; none of the supervised stage and the first model.
    pub iteration: Option<usize>,
    /// Its configuration, where it can be read.
    pub config: Option<Config>,
    /// Of config.toml.
    pub config_sha256: Option<String>,
    /// Up to this iteration.
    pub results: Vec<IterationResult>,
}

impl Run {
    /// That of a folder within it: of an iteration, of the supervised stage.
    pub fn around(stage: &Path) -> Option<Self> {
        let folder = stage.parent()?;
        if !folder.join("run.sppo.json").is_file() {
            return None;
        }
        let name = stage.file_name()?.to_str()?;
        let iteration = name.strip_prefix("iteration-");
        let iteration = iteration.and_then(|number| number.parse().ok());
        let config = config_in_effect(folder);
        Some(Self {
            iteration,
            config_sha256: file_fingerprint(&config).ok(),
            config: Config::load(Some(&config), &[]).ok(),
            results: iteration.map_or(Vec::new(), |last| results(folder, last)),
            folder: folder.into(),
        })
    }
}

impl Run {
    /// Without those of the model's own iteration.
    pub fn only_earlier_results(&mut self) {
        let own = self.iteration;
        self.results.retain(|entry| Some(entry.iteration) < own);
    }
}

/// Those of a run's report, up to an iteration.
fn results(run: &Path, last: usize) -> Vec<IterationResult> {
    #[derive(Deserialize)]
    struct Report {
        iterations: Vec<IterationResult>,
    }
    let text = fs::read(run.join("report.json")).unwrap_or_default();
    let mut found = match serde_json::from_slice::<Report>(&text) {
        Ok(report) => report.iterations,
        Err(_) => Vec::new(),
    };
    found.retain(|entry| entry.iteration <= last);
    found
}

/// The model that all training began with.
#[derive(Clone, Debug, Default)]
pub(super) struct Base {
    /// Its repository, or its folder.
    pub name: String,
    /// Whether `name` is that of a repository of the Hub.
    pub repository: bool,
    /// Random weights.
    pub from_scratch: bool,
    /// Keys of its own card: license, license_name, license_link, language.
    pub metadata: BTreeMap<String, Vec<String>>,
}

/// Most models that one came from by turns; a circle of marks ends there.
const LONGEST: usize = 1000;

impl Base {
    /// Follows the marks of models to one that this program did not train.
    pub fn of(made: &Made, run: Option<&Path>) -> Self {
        let mut input = made.input("model").map(Path::to_path_buf);
        if made.is("init") {
            return Self::scratch();
        }
        for _ in 0..LONGEST {
            let Some(path) = input.take() else { break };
            let dir = whereabouts(&path, run);
            match Made::read(&dir) {
                Some(before) if before.is("init") => return Self::scratch(),
                Some(before) => input = before.input("model").map(Path::to_path_buf),
                None => return Self::at(&dir),
            }
        }
        Self::default()
    }

    fn scratch() -> Self {
        Self {
            from_scratch: true,
            ..Self::default()
        }
    }

    fn at(dir: &Path) -> Self {
        let (name, repository) = named(dir);
        let card = fs::read_to_string(dir.join(CARD)).unwrap_or_default();
        let mut metadata = front_matter::read(&card);
        if repository
            && !metadata.contains_key("license")
            && let Some(license) = license_of(&name)
        {
            metadata.insert("license".into(), vec![license.into()]);
        }
        Self {
            name,
            repository,
            from_scratch: false,
            metadata,
        }
    }

    /// The first value of a key of its card.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.first().map(String::as_str)
    }
}

/// A model's repository on the Hub, or its folder as it was given; whether it is the former.
pub(super) fn named(dir: &Path) -> (String, bool) {
    let name = model_name(dir);
    match Path::new(&name).is_absolute() {
        true => (dir.display().to_string(), false),
        false => (name, true),
    }
}

/// Meta's licences by the Hub's names for them: its repositories are gated, and a cache often has
/// no card of them.
fn license_of(repository: &str) -> Option<&'static str> {
    let model = repository.strip_prefix("meta-llama/")?;
    let licenses = [
        ("Llama-3.3", "llama3.3"),
        ("Llama-3.2", "llama3.2"),
        ("Llama-3.1", "llama3.1"),
        ("Llama-3-", "llama3"),
    ];
    let mut found = licenses.iter().filter(|(name, _)| model.contains(name));
    found.next().map(|(_, license)| *license)
}

/// Where a folder lies that a mark names: there, or, if the run was moved or started elsewhere, under
/// the same name in its folder.
pub(super) fn whereabouts(path: &Path, run: Option<&Path>) -> PathBuf {
    if path.is_dir() {
        return path.into();
    }
    let parts: Vec<_> = path.components().collect();
    let moved = run.into_iter().flat_map(|run| {
        let ends = (1..=parts.len().min(2)).rev();
        ends.map(|count| run.join(parts[parts.len() - count..].iter().collect::<PathBuf>()))
    });
    let mut moved = moved.filter(|dir| Made::read(dir).is_some());
    moved.next().unwrap_or_else(|| path.into())
}

/// The data set of the Hub that a file belongs to, by its place in the cache or its address.
pub(super) fn dataset(path: &Path) -> Option<String> {
    if let Some(inside) = Inside::of(path) {
        return inside.ok().map(|inside| inside.repository.id);
    }
    path.components().find_map(|part| {
        let name = part.as_os_str().to_str()?.strip_prefix("datasets--")?;
        let (owner, name) = name.split_once("--")?;
        Some(format!("{owner}/{name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_and_licences_have_the_hubs_names() {
        let name = |path: &str| dataset(Path::new(path));
        let cached = "/hub/datasets--openbmb--UltraFeedback/snapshots/abc/train.parquet";
        assert_eq!(name(cached).unwrap(), "openbmb/UltraFeedback");
        let address = "hf://datasets/UCLA-AGI/data@main/train.parquet";
        assert_eq!(name(address).unwrap(), "UCLA-AGI/data");
        assert_eq!(name("data/prompts.jsonl"), None);
        for (name, license) in [
            ("meta-llama/Meta-Llama-3-8B-Instruct", Some("llama3")),
            ("meta-llama/Llama-3.2-1B", Some("llama3.2")),
            ("org/Llama-3.2-1B", None),
        ] {
            assert_eq!(license_of(name), license, "{name}");
        }
    }

    #[test]
    fn time_and_tokens_are_sums_of_the_steps_behind_the_model() {
        let dir = tempfile::tempdir().unwrap();
        let line = |memory: u32| {
            format!("{{\"step_seconds\": 1.5, \"tokens\": 100, \"peak_memory_bytes\": {memory}}}\n")
        };
        let text = [line(5), line(7), line(6), "torn".into()].concat();
        fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
        let expected = Spent {
            steps: 3,
            seconds: 4.5,
            tokens: 300.0,
            peak_memory_bytes: 7.0,
        };
        assert_eq!(Spent::read(dir.path(), 100), expected);
        assert_eq!(Spent::read(dir.path(), 2).tokens, 200.0);
        assert_eq!(Spent::read(&dir.path().join("none"), 2), Spent::default());
    }
}
