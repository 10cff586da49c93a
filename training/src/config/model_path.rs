//! Where a model comes from: a folder, the Hub's cache, or `[model.init]`.

use std::path::{Path, PathBuf};

use sppo_model::chat_template::TemplateSource;

use super::error::ConfigError;
use super::sections::{Init, Model};
use crate::hub::{Cache, Repository};

/// The model a configuration asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelSource<'m> {
    /// A checkpoint folder that exists.
    Folder(PathBuf),
    /// A small model from scratch.
    Init(&'m Init),
}

impl Model {
    /// The chat template that its text goes through.
    pub fn template(&self) -> TemplateSource<'_> {
        TemplateSource::of(self.chat_template.as_deref())
    }

    /// The checkpoint folder or the description of a new model; an error where neither is given
    /// or the folder is nowhere.
    pub fn source(&self) -> Result<ModelSource<'_>, ConfigError> {
        match (&self.path, &self.init) {
            (Some(path), _) => resolve_model(path).map(ModelSource::Folder),
            (None, Some(init)) => Ok(ModelSource::Init(init)),
            (None, None) => Err(ConfigError::Missing {
                at: "[model]".into(),
                message: "no model is given; set model.path to a checkpoint folder or a Hugging \
                          Face repository id, or describe a new one in [model.init]"
                    .into(),
            }),
        }
    }
}

/// The folder of a model given as a folder or as a repository id (`org/name` or
/// `org/name@revision`) whose snapshot is in the Hub's cache; nothing is downloaded.
pub fn resolve_model(name: &str) -> Result<PathBuf, ConfigError> {
    resolve_in(name, || {
        Cache::from_env().map_err(|error| error.to_string())
    })
}

/// What others call a model folder: its repository id where it lies in a Hugging Face cache, else
/// its whole path.
pub fn model_name(dir: &Path) -> String {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_string());
    let repository = || {
        let snapshots = whole
            .parent()
            .filter(|p| name(p).as_deref() == Some("snapshots"))?;
        let folder = name(snapshots.parent()?)?;
        let (owner, model) = folder.strip_prefix("models--")?.split_once("--")?;
        Some(format!("{owner}/{model}"))
    };
    repository().unwrap_or_else(|| whole.display().to_string())
}

fn resolve_in(
    name: &str,
    cache: impl Fn() -> Result<Cache, String>,
) -> Result<PathBuf, ConfigError> {
    if Path::new(name).is_dir() {
        return Ok(name.into());
    }
    let missing = |looked: String| ConfigError::NoModel {
        name: name.into(),
        looked,
    };
    if Path::new(name).is_file() {
        return Err(missing(about_file(Path::new(name))));
    }
    let Some(repository) = Repository::model(name) else {
        return Err(missing(
            "; give a checkpoint folder or a Hugging Face repository id (org/name)".into(),
        ));
    };
    let cache = cache().map_err(|problem| missing(format!(", and {problem}")))?;
    let snapshot = cache.snapshot(&repository);
    snapshot.ok_or_else(|| missing(about_cache(&cache, &repository)))
}

/// What to give instead of a file.
fn about_file(file: &Path) -> String {
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.display().to_string(),
        _ => ".".into(),
    };
    let gguf = file
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    match gguf {
        true => ", and GGUF files are not read; give the folder of the model in the Hugging Face \
                 format that it was made from"
            .into(),
        false => format!(" but a file; give the checkpoint's folder: {folder}"),
    }
}

/// Why the cache has no model of this name, and what to do.
fn about_cache(cache: &Cache, repository: &Repository) -> String {
    let folders = cache.snapshots(repository);
    let folders: Vec<String> = folders
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let place = cache.repository(repository);
    let place = place.display();
    if folders.is_empty() {
        return format!(
            ", and the Hugging Face cache has no snapshot of it in {place}; download it first \
             (sppo download {repository})"
        );
    }
    format!(
        ", and {place}/refs/{}, which says what that revision is, is missing or names none that is \
         there; give the folder of one that is: {}; or download it (sppo download {repository})",
        repository.revision(),
        folders.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("hub/models--org--tiny");
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::create_dir_all(repository.join("snapshots/abc123")).unwrap();
        std::fs::write(repository.join("refs/main"), "abc123\n").unwrap();
        dir
    }

    fn resolve(name: &str, dir: &tempfile::TempDir) -> Result<PathBuf, String> {
        let cache = Cache::new(dir.path().join("hub"));
        resolve_in(name, || Ok(cache.clone())).map_err(|error| error.to_string())
    }

    #[test]
    fn finds_a_repository_in_the_cache() {
        let dir = cache();
        let expected = dir.path().join("hub/models--org--tiny/snapshots/abc123");
        assert_eq!(resolve("org/tiny", &dir), Ok(expected.clone()));
        assert_eq!(resolve("org/tiny@main", &dir), Ok(expected));
        assert!(
            resolve("org/tiny@v1", &dir)
                .unwrap_err()
                .contains("refs/v1")
        );
    }

    #[test]
    fn says_where_it_looked() {
        let dir = cache();
        let message = resolve("org/other", &dir).unwrap_err();
        assert!(message.contains("models--org--other"), "{message}");
        assert!(message.contains("sppo download org/other"), "{message}");
        let message = resolve("../up", &dir).unwrap_err();
        assert!(message.contains("give a checkpoint folder"), "{message}");
    }

    #[test]
    fn a_reference_cannot_leave_the_cache() {
        let dir = cache();
        let reference = dir.path().join("hub/models--org--tiny/refs/main");
        std::fs::write(reference, "../../..").unwrap();
        assert!(resolve("org/tiny", &dir).is_err());
    }

    /// r041: without refs/main the message said that no snapshot was there.
    #[test]
    fn snapshots_without_a_reference_are_named() {
        let dir = cache();
        let reference = dir.path().join("hub/models--org--tiny/refs/main");
        let snapshot = dir.path().join("hub/models--org--tiny/snapshots/abc123");
        std::fs::write(&reference, "def456").unwrap();
        let stale = resolve("org/tiny", &dir).unwrap_err();
        std::fs::remove_file(&reference).unwrap();
        let message = resolve("org/tiny", &dir).unwrap_err();
        assert_eq!(stale, message);
        for part in [
            "refs/main",
            snapshot.to_str().unwrap(),
            "sppo download org/tiny",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }

    /// r041: a file was taken for a name that is nowhere.
    #[test]
    fn a_file_leads_to_its_folder() {
        let dir = cache();
        for (file, part) in [
            ("a.safetensors", "give the checkpoint's folder: "),
            ("a.gguf", "GGUF files are not read"),
        ] {
            let path = dir.path().join(file);
            std::fs::write(&path, "x").unwrap();
            let message = resolve_model(path.to_str().unwrap())
                .unwrap_err()
                .to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_folder_is_itself() {
        let dir = cache();
        let name = dir.path().to_str().unwrap();
        assert_eq!(resolve_model(name).unwrap(), dir.path());
    }
}
