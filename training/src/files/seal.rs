//! Sizes and hashes of finished files, by which they are known again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Damage, FileError};
use super::hash::digest;

/// One finished file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSeal {
    /// Its size.
    pub bytes: u64,
    /// Of its content, in hex.
    pub sha256: String,
}

/// A finished output: its files by their path within it (a file by its own name).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Rows of a row file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<usize>,
    /// Every file of it.
    pub files: BTreeMap<String, FileSeal>,
}

impl Seal {
    /// Of a single file; `rows` where it is a row file.
    pub fn of_file(path: &Path, rows: Option<usize>) -> Result<Self, FileError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            rows,
            files: BTreeMap::from([(name.into_owned(), seal(path)?)]),
        })
    }

    /// Of every file of a folder but those named, and its card, which is for people to edit.
    pub fn of_folder(dir: &Path, but: &[&str]) -> Result<Self, FileError> {
        let mut files = BTreeMap::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let here = dir.join(&folder);
            for entry in fs::read_dir(&here).map_err(FileError::new("read", &here))? {
                let entry = entry.map_err(FileError::new("read", &here))?;
                let (path, name) = (entry.path(), folder.join(entry.file_name()));
                let text = name.to_string_lossy().into_owned();
                if text == CARD || but.contains(&text.as_str()) {
                    continue;
                }
                match path.is_dir() {
                    true => folders.push(name),
                    false => {
                        files.insert(text, seal(&path)?);
                    }
                }
            }
        }
        Ok(Self { rows: None, files })
    }

    /// Looks at every file again; `parent` is the folder that they lie in. Files beside them are
    /// nobody's business.
    pub fn verify(&self, parent: &Path) -> Result<Option<Damage>, FileError> {
        for (name, sealed) in &self.files {
            let path = parent.join(name);
            let damage = |problem: String| {
                Ok(Some(Damage {
                    path: path.clone(),
                    problem,
                }))
            };
            if !path.is_file() {
                return damage("is missing".into());
            }
            let size = fs::metadata(&path)
                .map_err(FileError::new("read", &path))?
                .len();
            if size != sealed.bytes {
                return damage(format!(
                    "has {size} bytes and had {} when it was finished",
                    sealed.bytes
                ));
            }
            if seal(&path)?.sha256 != sealed.sha256 {
                return damage("was changed since it was finished".into());
            }
        }
        Ok(None)
    }
}

/// The card of a model.
pub const CARD: &str = "README.md";

fn seal(path: &Path) -> Result<FileSeal, FileError> {
    let bytes = fs::metadata(path)
        .map_err(FileError::new("read", path))?
        .len();
    Ok(FileSeal {
        bytes,
        sha256: digest(path)?,
    })
}
