//! What commands name on the Hugging Face Hub, brought into its cache before they begin.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sppo_training::cluster::{doing, world};
use sppo_training::config::{Config, JudgeConfig, JudgeKind, resolve_model};
use sppo_training::hub::{Fresh, Hub, HubError, Inside, Part, Repository};

use crate::errors::{Interrupted, OrUser, user};
use crate::progress::Console;

/// Something that a command reads.
#[derive(Clone, Copy)]
pub enum Wanted<'a> {
    /// A model by folder or repository id, as far as it is needed.
    Model(&'a str, Part),
    /// A file of rows, or rows of the Hub.
    Rows(&'a Path),
}

/// The model that a configuration starts from.
pub fn policy(config: &Config) -> impl Iterator<Item = Wanted<'_>> {
    let name = config.model.path.iter();
    name.map(|name| Wanted::Model(name, Part::Whole))
}

/// What its judge reads.
pub fn judge(judge: &JudgeConfig) -> impl Iterator<Item = Wanted<'_>> {
    let has_model = matches!(judge.kind, JudgeKind::PairRm | JudgeKind::Reward);
    let model = judge.model.as_deref().filter(|_| has_model);
    let template = judge.chat_template.as_deref().and_then(Path::to_str);
    let model = model.map(|name| Wanted::Model(name, Part::Whole));
    let template = template.map(|name| Wanted::Model(name, Part::Text));
    model.into_iter().chain(template)
}

/// Files of rows, of those that are given.
pub fn rows<'a>(
    files: impl IntoIterator<Item = Option<&'a PathBuf>>,
) -> impl Iterator<Item = Wanted<'a>> {
    let files = files.into_iter().flatten();
    files.map(|path| Wanted::Rows(path))
}

/// Downloads what is neither on this machine nor in the cache: one rank of each machine does, and the
/// others wait.
pub fn bring<'a>(wanted: impl IntoIterator<Item = Wanted<'a>>) -> anyhow::Result<()> {
    let world = world();
    if world.local_rank() == 0 {
        for wanted in wanted {
            bring_one(wanted)?;
        }
    }
    doing("waiting for downloads");
    world.barrier();
    Ok(())
}

/// The folder of a model, downloaded if it has to be.
pub fn model(name: &str) -> anyhow::Result<PathBuf> {
    bring([Wanted::Model(name, Part::Whole)])?;
    Ok(resolve_model(name)?)
}

fn bring_one(wanted: Wanted<'_>) -> anyhow::Result<()> {
    let monitor = Console::default();
    match wanted {
        Wanted::Model(name, part) => match Repository::model(name) {
            Some(repository) if !Path::new(name).exists() => {
                let hub = Hub::from_env().or_user()?;
                let done = hub.model(&repository, part, Fresh::Cached, &monitor);
                // Whoever meant a folder has to hear of that.
                let no_folder =
                    || format!("there is no folder {name}, so it is a model of the Hub");
                done.map(drop).map_err(failed).with_context(no_folder)
            }
            // What else it may be is not the Hub's.
            _ => Ok(()),
        },
        Wanted::Rows(path) => match Inside::of(path) {
            Some(inside) => {
                let hub = Hub::from_env().or_user()?;
                let done = inside.and_then(|inside| hub.rows(&inside, Fresh::Cached, &monitor));
                done.map(drop).map_err(failed)
            }
            None => Ok(()),
        },
    }
}

/// The error with its exit code.
pub fn failed(error: HubError) -> anyhow::Error {
    match error {
        HubError::Stopped => Interrupted.into(),
        error if error.is_input() => user(error.to_string()),
        error => error.into(),
    }
}
