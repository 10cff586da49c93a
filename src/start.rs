//! How a command begins where it is one of many processes: logs, the watch over the others, devices,
//! and what has to be the same on all of them. Nothing of it where it is alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sppo_training::cluster::start::{Fact, blind_rank, difference};
use sppo_training::cluster::{doing, watchdog, world};
use sppo_training::config::{Config, resolve_model};
use sppo_training::files::{FileError, file_fingerprint, fingerprint, model_fingerprint};
use sppo_training::hub::row_files;

use crate::backend::Device;
use crate::errors::{OrUser, user};
use crate::{devices, job, logging};

/// What a command begins with.
pub struct Start<'a> {
    /// Where it writes.
    pub output: Place<'a>,
    /// The resolved configuration of commands that have one.
    pub config: Option<&'a Config>,
    /// Folders of models, and files of rows, that it reads.
    pub inputs: Vec<(&'static str, PathBuf)>,
    /// As it was asked for.
    pub device: Device,
}

/// Where the files of the ranks lie.
pub enum Place<'a> {
    /// A folder of outputs: logs in its `ranks`, the watch in `.ranks`.
    Folder(&'a Path),
    /// A file: `NAME.ranks` and `.NAME.ranks` beside it.
    File(&'a Path),
}

impl Place<'_> {
    fn logs(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join("ranks"),
            Self::File(file) => file.with_file_name(format!("{}.ranks", name(file))),
        }
    }

    fn watch(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(".ranks"),
            Self::File(file) => file.with_file_name(format!(".{}.ranks", name(file))),
        }
    }
}

fn name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What it reads that a configuration names: the model and its tokenizer, and the judge's; files that
/// are not given are left out.
pub fn inputs<'a>(
    config: &'a Config,
    files: impl IntoIterator<Item = (&'static str, Option<&'a PathBuf>)>,
) -> Vec<(&'static str, PathBuf)> {
    let (model, judge) = (&config.model, &config.judge);
    let folder = |name: &Option<String>| resolve_model(name.as_ref()?).ok();
    let mut found: Vec<_> = [
        ("model", folder(&model.path)),
        ("judge.model", folder(&judge.model)),
    ]
    .into_iter()
    .filter_map(|(name, path)| Some((name, path?)))
    .collect();
    let own = [
        (
            "model.init.tokenizer",
            model.init.as_ref().map(|init| &init.tokenizer),
        ),
        ("model.chat_template", model.chat_template.as_ref()),
        ("judge.scores", judge.scores.as_ref()),
    ];
    let files = own.into_iter().chain(files);
    found.extend(files.filter_map(|(name, path)| Some((name, path?.clone()))));
    found
}

/// Begins; gives the device that is this rank's.
pub fn start(start: Start<'_>) -> anyhow::Result<Device> {
    if world().size() == 1 {
        return Ok(start.device);
    }
    watch(&start)?;
    doing("comparing what the ranks begin with");
    for facts in [facts, fingerprints] {
        if let Some(difference) = difference(world(), facts(&start)) {
            return Err(user(difference));
        }
    }
    devices::share_cores();
    devices::of_rank(start.device)
}

/// Sees to it that all ranks see one folder, and begins to watch over them through it.
fn watch(start: &Start<'_>) -> anyhow::Result<()> {
    let folder = start.output.watch();
    let made = match world().leads() {
        true => clear(&folder),
        false => Ok(()),
    };
    let blind = blind_rank(world(), &folder);
    match made {
        Err(error) if error.is_input() => return Err(error).or_user(),
        made => made?,
    }
    if let Some((rank, host)) = blind {
        let (Place::Folder(output) | Place::File(output)) = start.output;
        let _ = std::fs::remove_dir(&folder);
        return Err(user(format!(
            "output_dir {} is not seen by rank {rank} ({host}): write into a folder that all nodes \
             share",
            output.display()
        )));
    }
    logging::to_file(&start.output.logs(), world().rank())?;
    let seconds = start
        .config
        .map_or(Config::default().cluster.stall_seconds, |config| {
            config.cluster.stall_seconds
        });
    let stall = Duration::from_secs(seconds as u64);
    let watchdog = watchdog::watch(world(), &folder, stall, |message| {
        job::say(&format!("error: {message}\n"));
        job::fail(1);
    })?;
    job::keep(watchdog, folder);
    // From here on each finds the files of all.
    world().barrier();
    Ok(())
}

/// Makes the folder, without what an earlier job left there.
fn clear(folder: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(folder).map_err(FileError::new("make", folder))?;
    let entries = std::fs::read_dir(folder).map_err(FileError::new("read", folder))?;
    for entry in entries.flatten() {
        let _ = std::fs::remove_file(entry.path());
    }
    Ok(())
}

/// What has to be the same on all ranks, and costs nothing to compare.
fn facts(start: &Start<'_>) -> Vec<Fact> {
    let text = |config: &Config| config.to_toml();
    // An address may hold secrets, which nobody prints.
    let shown = |argument: String| match argument.contains(['?', '@']) {
        true => fingerprint([("argument", argument.as_bytes())]),
        false => argument,
    };
    let arguments = std::env::args_os().skip(1);
    let arguments: Vec<String> = arguments
        .map(|a| shown(a.to_string_lossy().into_owned()))
        .collect();
    let config = start.config.map(text).unwrap_or_default();
    let facts = [
        ("the version of sppo", env!("CARGO_PKG_VERSION").to_string()),
        ("the command line", arguments.join(" ")),
        ("the configuration", config),
        ("the device", start.device.kind().into()),
    ];
    facts
        .map(|(name, value)| (name.to_string(), Some(value)))
        .into()
}

/// Fingerprints of what is read, made once a host: what its other ranks would read is the same.
fn fingerprints(start: &Start<'_>) -> Vec<Fact> {
    let hashes = world().local_rank() == 0;
    let inputs = start.inputs.iter();
    let facts = inputs.map(|(name, path)| {
        (
            format!("{name} {}", path.display()),
            hashes.then(|| hash(path)),
        )
    });
    facts.collect()
}

/// A fingerprint, or why there is none: whoever needs what is missing says more of it later.
fn hash(path: &Path) -> String {
    if let Ok(Some(files)) = row_files(path) {
        let hashes: Vec<String> = files.iter().map(|file| hash(file)).collect();
        return hashes.join(",");
    }
    doing(format!("hashing {}", path.display()));
    let hashed = match path.is_dir() {
        true => model_fingerprint(path),
        false => file_fingerprint(path),
    };
    match hashed {
        Ok(hash) => hash.get(..12).unwrap_or(&hash).into(),
        Err(error) => error.to_string(),
    }
}
