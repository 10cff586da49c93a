//! Files in the local cache of the Hugging Face Hub, in the layout of the hf-hub crate.

use std::path::{Path, PathBuf};

/// Where the cache lies, from the variables that say it; none of them may be set.
pub(super) fn hub_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// A variable of the environment that holds a path.
pub(super) fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

/// A file of a repository in the cache (`datasets--org--name`): that of the snapshot that
/// `refs/main` names, else of the only snapshot that has it. Where it was looked for, if it is in
/// none.
pub fn cached_file(repository: &str, file: &str) -> Result<PathBuf, String> {
    match hub_folder(variable) {
        Some(hub) => in_repository(&hub.join(repository), file),
        None => Err("neither HF_HUB_CACHE, HF_HOME nor HOME is set".into()),
    }
}

fn in_repository(repository: &Path, file: &str) -> Result<PathBuf, String> {
    let snapshots = repository.join("snapshots");
    let reference = std::fs::read_to_string(repository.join("refs/main")).unwrap_or_default();
    let commit = reference.trim();
    // A name that leads out of the folder is no commit.
    if !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let newest = snapshots.join(commit).join(file);
        if newest.is_file() {
            return Ok(newest);
        }
    }
    let entries = std::fs::read_dir(&snapshots)
        .into_iter()
        .flatten()
        .flatten();
    let files = entries.map(|entry| entry.path().join(file));
    let mut files: Vec<PathBuf> = files.filter(|path| path.is_file()).collect();
    match (files.pop(), files.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), _) => Err(format!(
            "several snapshots in {} have {file}, and refs/main names none of them",
            snapshots.display()
        )),
        (None, _) => Err(format!("{file} is not in {}", snapshots.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_of_the_reference_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let put = |commit: &str| {
            let folder = dir.path().join("snapshots").join(commit);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("a.csv"), commit).unwrap();
            folder.join("a.csv")
        };
        let found = || in_repository(dir.path(), "a.csv");
        assert!(found().unwrap_err().contains("a.csv is not in"));
        let one = put("abc");
        assert_eq!(found().unwrap(), one);
        let two = put("def");
        assert!(found().unwrap_err().contains("several snapshots"));
        std::fs::create_dir_all(dir.path().join("refs")).unwrap();
        for (reference, expected) in [("abc\n", &one), ("def", &two)] {
            std::fs::write(dir.path().join("refs/main"), reference).unwrap();
            assert_eq!(&found().unwrap(), expected);
        }
        std::fs::write(dir.path().join("refs/main"), "../..").unwrap();
        assert!(found().is_err());
    }
}
