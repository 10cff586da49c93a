//! Names of repositories on the Hub, and of what lies in them.

use std::fmt;
use std::path::Path;

use super::error::HubError;

/// What rows of the Hub begin with.
const SCHEME: &str = "hf://";
const DATASETS: &str = "datasets/";

/// The branch on which the Hub keeps its own conversion of a data set's files to Parquet.
pub(super) const CONVERTED: &str = "refs/convert/parquet";

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model, or adapters.
    Model,
    /// A data set.
    Dataset,
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// What it holds.
    pub kind: Kind,
    /// `org/name`.
    pub id: String,
    /// Branch, tag or commit; `main` unless given.
    pub revision: Option<String>,
}

impl Repository {
    /// A model by `org/name` or `org/name@revision`; none where the text is no such name.
    pub fn model(text: &str) -> Option<Self> {
        Self::parse(Kind::Model, text)
    }

    /// A data set by the same.
    pub fn dataset(text: &str) -> Option<Self> {
        Self::parse(Kind::Dataset, text)
    }

    fn parse(kind: Kind, text: &str) -> Option<Self> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision.replace("%2F", "/"))),
            None => (text, None),
        };
        let (owner, name) = id.split_once('/')?;
        let good = is_plain(owner)
            && is_plain(name)
            && revision
                .as_deref()
                .is_none_or(|text| inside(text).is_some());
        good.then(|| Self {
            kind,
            id: id.into(),
            revision,
        })
    }

    /// The same at another revision.
    pub fn at(&self, revision: &str) -> Self {
        Self {
            revision: Some(revision.into()),
            ..self.clone()
        }
    }

    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Its folder in the cache.
    pub(super) fn folder_name(&self) -> String {
        let kind = match self.kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        format!("{kind}--{}", self.id.replace('/', "--"))
    }

    /// Where its files and its page lie below the Hub's address.
    pub(super) fn page(&self) -> String {
        match self.kind {
            Kind::Model => self.id.clone(),
            Kind::Dataset => format!("{DATASETS}{}", self.id),
        }
    }

    /// Where the Hub tells of it.
    pub(super) fn api(&self) -> String {
        match self.kind {
            Kind::Model => format!("api/models/{}", self.id),
            Kind::Dataset => format!("api/{}", self.page()),
        }
    }

    /// As an argument of `sppo download`.
    pub(super) fn argument(&self) -> String {
        match self.kind {
            Kind::Model => self.to_string(),
            Kind::Dataset => format!("{SCHEME}{DATASETS}{self}/…"),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        let mut revision = self.revision.iter();
        revision.try_for_each(|revision| write!(f, "@{}", revision.replace('/', "%2F")))
    }
}

/// Something within a data set: a file, or a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The data set.
    pub repository: Repository,
    /// A file's path in it, or `split` or `config/split`.
    pub path: String,
}

impl Inside {
    /// Of `hf://datasets/org/name[@revision]/path-or-split`; none for another kind of path.
    pub fn of(path: &Path) -> Option<Result<Self, HubError>> {
        let text = path.to_str()?;
        let rest = text.strip_prefix(SCHEME)?;
        let found = rest.strip_prefix(DATASETS).and_then(|rest| {
            let (owner, rest) = rest.split_once('/')?;
            let (name, path) = rest.split_once('/')?;
            Some(Self {
                repository: Repository::dataset(&format!("{owner}/{name}"))?,
                path: inside(path)?.into(),
            })
        });
        Some(found.ok_or_else(|| HubError::Name { name: text.into() }))
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{DATASETS}{}/{}", self.repository, self.path)
    }
}

/// Whether the text is one plain component of a path.
pub(super) fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && !text.starts_with('.') && text.chars().all(plain)
}

/// The path, where it cannot lead out of its folder.
pub(super) fn inside(path: &str) -> Option<&str> {
    let good = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0'])
    };
    path.split('/').all(good).then_some(path)
}

/// Whether a revision is a commit, which stays what it is.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories() {
        let plain = Repository::model("org/a-b_c.d").unwrap();
        assert_eq!(
            (plain.revision(), plain.folder_name().as_str()),
            ("main", "models--org--a-b_c.d")
        );
        let other = Repository::dataset("org/name@refs%2Fpr%2F1").unwrap();
        assert_eq!(other.revision(), "refs/pr/1");
        assert_eq!(other.to_string(), "org/name@refs%2Fpr%2F1");
        assert_eq!(other.api(), "api/datasets/org/name");
        for bad in [
            "name", "../up", "a/b/c", "a/.b", "a/b@", "a/b@../c", "a/b@x//y", "", "a b/c",
        ] {
            assert_eq!(Repository::model(bad), None, "{bad}");
        }
    }

    #[test]
    fn rows() {
        let of = |text: &str| Inside::of(Path::new(text));
        let found = of("hf://datasets/org/name@v1/data/train.parquet").unwrap();
        let found = found.unwrap();
        assert_eq!(found.repository.to_string(), "org/name@v1");
        assert_eq!(found.path, "data/train.parquet");
        assert_eq!(
            found.to_string(),
            "hf://datasets/org/name@v1/data/train.parquet"
        );
        assert!(of("data/train.parquet").is_none());
        for bad in [
            "hf://org/name/train",
            "hf://datasets/org/name",
            "hf://datasets/org/name/",
            "hf://datasets/org/name/../x",
            "hf://",
        ] {
            let message = of(bad).unwrap().unwrap_err().to_string();
            assert!(message.contains("hf://datasets/org/name"), "{message}");
        }
    }

    #[test]
    fn commits() {
        assert!(is_commit(&"0a".repeat(20)));
        assert!(!is_commit("main") && !is_commit(&"0g".repeat(20)));
    }
}
