//! A stage's files and the key of what they were made from.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{FileError, replace_file};
use crate::stages::StageError;

#[derive(Serialize, Deserialize)]
struct Mark {
    key: String,
    done: bool,
}

/// A stage that is to be done, or was done already.
pub(super) struct Stage {
    mark: PathBuf,
    key: String,
    done: bool,
}

impl Stage {
    /// Looks at the mark of an earlier run. Files made from something else are removed; files of
    /// the same key stay and are continued.
    pub fn open(mark: &Path, key: &str, files: &[&Path]) -> Result<Self, StageError> {
        let old: Option<Mark> = fs::read_to_string(mark)
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        let same = old.as_ref().is_some_and(|old| old.key == key);
        let stage = Self {
            mark: mark.into(),
            key: key.into(),
            done: same && old.is_some_and(|old| old.done) && files.iter().all(|f| f.exists()),
        };
        if !same {
            for file in files {
                if file.exists() {
                    tracing::warn!(
                        "{} was made from other settings or inputs; it is made anew",
                        file.display()
                    );
                }
                remove(file)?;
            }
            stage.write(false)?;
        }
        Ok(stage)
    }

    /// Whether nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Marks the stage as done.
    pub fn finish(self) -> Result<(), StageError> {
        self.write(true)
    }

    fn write(&self, done: bool) -> Result<(), StageError> {
        let mark = Mark {
            key: self.key.clone(),
            done,
        };
        let text = serde_json::to_string(&mark).map_err(std::io::Error::from);
        let text = text.map_err(FileError::new("write", &self.mark))?;
        Ok(replace_file(&self.mark, text.as_bytes())?)
    }
}

fn remove(path: &Path) -> Result<(), StageError> {
    let result = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}
