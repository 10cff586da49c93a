//! The cache on this machine, in the layout of huggingface_hub: `refs/REVISION` names a commit,
//! `snapshots/COMMIT` has its files, links to `blobs`, which are named by what they hold.

use std::path::{Path, PathBuf};

use super::error::HubError;
use super::name::{Repository, inside, is_commit, is_plain};
use super::settings::{cache, variable};

/// The folder with a folder for each repository.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// Where the environment says.
    pub fn from_env() -> Result<Self, HubError> {
        cache(&variable).map(Self).ok_or(HubError::NoCache)
    }

    /// This folder, which need not be there.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The folder of a repository, which need not be there.
    pub fn repository(&self, repository: &Repository) -> PathBuf {
        self.0.join(repository.folder_name())
    }

    /// The snapshot of the repository's revision, if there is one; it may lack files.
    pub fn snapshot(&self, repository: &Repository) -> Option<PathBuf> {
        let folder = self.repository(repository);
        let snapshot = folder.join("snapshots").join(self.commit(repository)?);
        snapshot.is_dir().then_some(snapshot)
    }

    /// The commit that the revision was when somebody last looked.
    pub(super) fn commit(&self, repository: &Repository) -> Option<String> {
        let revision = inside(repository.revision())?;
        if is_commit(revision) {
            return Some(revision.into());
        }
        let reference = self.repository(repository).join("refs").join(revision);
        let commit = std::fs::read_to_string(reference).ok()?;
        // A name that leads out of the folder is no commit.
        Some(commit.trim().to_string()).filter(|commit| is_plain(commit))
    }

    /// A file of a repository: that of its revision's snapshot, else of the only snapshot that has
    /// it.
    pub fn file(&self, repository: &Repository, file: &str) -> Option<PathBuf> {
        let newest = self.snapshot(repository).map(|folder| folder.join(file));
        if let Some(newest) = newest.filter(|path| path.is_file()) {
            return Some(newest);
        }
        let mut files = self.snapshots(repository);
        files.iter_mut().for_each(|folder| folder.push(file));
        files.retain(|path| path.is_file());
        files.pop().filter(|_| files.is_empty())
    }

    /// All snapshots of a repository.
    pub fn snapshots(&self, repository: &Repository) -> Vec<PathBuf> {
        let folder = self.repository(repository).join("snapshots");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let folders = entries.map(|entry| entry.path());
        let mut folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    }

    /// The lock that programs of Hugging Face hold while they write this blob.
    pub(super) fn lock(&self, repository: &Repository, blob: &str) -> PathBuf {
        let locks = self.0.join(".locks").join(repository.folder_name());
        locks.join(format!("{blob}.lock"))
    }
}

/// Names of all files of a snapshot, with `/` between their parts, sorted.
pub(super) fn files_of(snapshot: &Path) -> Vec<String> {
    fn walk(folder: &Path, before: &str, out: &mut Vec<String>) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let name = format!("{before}{name}");
            match entry.path() {
                path if path.is_file() => out.push(name),
                // A link to a folder could lead in a circle.
                path if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                    walk(&path, &format!("{name}/"), out);
                }
                _ => {}
            }
        }
    }
    let mut files = Vec::new();
    walk(snapshot, "", &mut files);
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_of_the_reference_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::dataset("org/name").unwrap();
        let cache = Cache::new(dir.path());
        let folder = cache.repository(&repository);
        let put = |commit: &str| {
            let folder = folder.join("snapshots").join(commit);
            std::fs::create_dir_all(folder.join("data")).unwrap();
            std::fs::write(folder.join("data/a.csv"), commit).unwrap();
            folder.join("data/a.csv")
        };
        let found = || cache.file(&repository, "data/a.csv");
        assert_eq!(found(), None);
        let one = put("abc");
        assert_eq!(found().as_ref(), Some(&one));
        let two = put("def");
        // Nothing says which of the two.
        assert_eq!(found(), None);
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        for (reference, expected) in [("abc\n", &one), ("def", &two)] {
            std::fs::write(folder.join("refs/main"), reference).unwrap();
            assert_eq!(found().as_ref(), Some(expected));
        }
        assert_eq!(files_of(&folder.join("snapshots/abc")), ["data/a.csv"]);
        std::fs::write(folder.join("refs/main"), "../..").unwrap();
        assert_eq!((found(), cache.snapshot(&repository)), (None, None));
    }

    #[test]
    fn a_revision_has_its_own_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let commit = "0123456789".repeat(4);
        let repository = Repository::model("org/name@refs%2Fpr%2F1").unwrap();
        let folder = cache.repository(&repository);
        let snapshot = folder.join("snapshots").join(&commit);
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(folder.join("refs/refs/pr")).unwrap();
        std::fs::write(folder.join("refs/refs/pr/1"), &commit).unwrap();
        assert_eq!(cache.snapshot(&repository).as_ref(), Some(&snapshot));
        let by_commit = repository.at(&commit);
        assert_eq!(cache.snapshot(&by_commit), Some(snapshot));
        assert_eq!(cache.snapshot(&repository.at("main")), None);
    }
}
