//! What a card says, gathered from the disk.

use std::path::Path;

use super::facts::{Base, Made, Run, Spent, training_folder, whereabouts};
use super::results::Results;
use crate::config::{Effective, Sft, Train};

/// What a card says.
pub(super) struct Contents {
    pub name: String,
    /// As the quick start names it.
    pub model: String,
    pub made: Made,
    /// The training behind it: its own, or that of merged adapters; none of a first model.
    pub training: Option<Made>,
    pub settings: Settings,
    pub adapters: bool,
    pub spent: Spent,
    pub base: Base,
    pub run: Option<Run>,
    pub results: Results,
}

/// The settings of a training.
pub(super) enum Settings {
    Pairs(Box<Train>),
    Supervised(Box<Sft>),
    /// Of another version, or of none.
    Unknown,
}

impl Settings {
    fn of(training: Option<&Made>) -> Self {
        let Some(training) = training else {
            return Self::Unknown;
        };
        let settings = &training.mark.made_from.settings;
        let found = match training.is("sft") {
            true => Effective::restored(settings).map(|sft| Self::Supervised(Box::new(sft))),
            false => Effective::restored(settings).map(|train| Self::Pairs(Box::new(train))),
        };
        found.unwrap_or(Self::Unknown)
    }
}

impl Contents {
    /// Of a model in `dir` whose place is `target`.
    pub fn new(dir: &Path, target: &Path, made: Made) -> Self {
        let own = training_folder(target);
        let stage = own.clone().or_else(|| std::path::absolute(target).ok());
        let mut run = stage.as_deref().and_then(Run::around);
        // Results are those of the model that a training ended with.
        let folder_name = target.parent().and_then(Path::file_name);
        if let Some(run) = &mut run
            && folder_name.is_some_and(|name| name == "checkpoints")
        {
            run.only_earlier_results();
        }
        let run_folder = run.as_ref().map(|run| run.folder.as_path());
        let (training, folder) = match (made.is("merge"), made.input("adapter")) {
            (true, Some(adapter)) => {
                let adapter = whereabouts(adapter, run_folder);
                (Made::read(&adapter), training_folder(&adapter))
            }
            _ if made.is("init") => (None, None),
            _ => (Some(made.clone()), own),
        };
        let spent = match (&folder, &training) {
            (Some(folder), Some(training)) => {
                Spent::read(folder, training.step.unwrap_or(usize::MAX))
            }
            _ => Spent::default(),
        };
        let base = Base::of(&made, run_folder);
        let settings = Settings::of(training.as_ref());
        Self {
            name: name(&base, &made, &settings, run.as_ref()),
            model: target.display().to_string(),
            adapters: dir.join("adapter_config.json").is_file(),
            training,
            settings,
            spent,
            base,
            run,
            made,
            results: Results::default(),
        }
    }
}

/// As the published models are called: the base's name, the method and the iteration.
fn name(base: &Base, made: &Made, settings: &Settings, run: Option<&Run>) -> String {
    let whole = match base.from_scratch || base.name.is_empty() {
        true => "Llama",
        false => &base.name,
    };
    let short = Path::new(whole).file_name();
    let short = short.map_or(whole.into(), |name| name.to_string_lossy());
    let method = match settings {
        Settings::Pairs(train) => {
            let loss = train.loss.word();
            loss.split('_').next().unwrap_or(loss).to_uppercase()
        }
        Settings::Supervised(_) => "SFT".into(),
        Settings::Unknown => made.mark.made_from.command.clone(),
    };
    match run.and_then(|run| run.iteration) {
        Some(iteration) => format!("{short}-{method}-Iter{iteration}"),
        None => format!("{short}-{method}"),
    }
}
