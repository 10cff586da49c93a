//! Whose an output is, and what becomes of one that was made from something else.

use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use chrono::Local;

use super::error::{Difference, FileError, OutputError, lines};
use super::mark::{IN_FOLDER, MadeFrom, Mark, read_mark};

/// What becomes of an output that was made from something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing<'a> {
    /// It stays; the new work is refused.
    Keep,
    /// It is removed.
    Overwrite,
    /// It is moved into `<folder>.before-<date>`.
    SetAside(&'a Path),
}

/// The files and folders of one output.
#[derive(Clone, Debug)]
pub struct Output {
    /// What it is called in messages.
    pub name: PathBuf,
    /// Says what it was made from.
    pub mark: PathBuf,
    /// All that belongs to it.
    pub parts: Vec<PathBuf>,
}

impl Output {
    /// A folder that is made as a whole and carries its mark.
    pub fn folder(dir: &Path) -> Self {
        Self {
            name: dir.into(),
            mark: dir.join(IN_FOLDER),
            parts: vec![dir.into()],
        }
    }

    /// Whether a whole output of this making is there; any other gives way as `existing` says.
    pub fn claim_finished(
        &self,
        made_from: &MadeFrom,
        existing: Existing<'_>,
    ) -> Result<bool, OutputError> {
        let Some(mark) = self.claim(made_from, existing)? else {
            return Ok(false);
        };
        self.check(&mark, existing)
    }

    /// Whether all that `mark` says of it is there as it was; what is damaged is removed where
    /// `existing` lets it.
    pub fn check(&self, mark: &Mark, existing: Existing<'_>) -> Result<bool, OutputError> {
        let parent = self.mark.parent().unwrap_or(Path::new(""));
        let damage = match &mark.finished {
            Some(seal) => seal.verify(parent)?,
            None => None,
        };
        match damage {
            None => Ok(true),
            Some(damage) if existing == Existing::Overwrite => {
                tracing::warn!(
                    "{} {}; it is made anew",
                    damage.path.display(),
                    damage.problem
                );
                self.remove()?;
                Ok(false)
            }
            Some(damage) => Err(damage.into()),
        }
    }

    /// The mark of an output of the same making. Whatever else is ours goes, as `existing` says;
    /// what is not ours is refused.
    pub fn claim(
        &self,
        made_from: &MadeFrom,
        existing: Existing<'_>,
    ) -> Result<Option<Mark>, OutputError> {
        for input in made_from.inputs.values() {
            if self.parts.iter().any(|part| is_within(part, &input.path)) {
                return Err(OutputError::Input {
                    path: input.path.clone(),
                });
            }
        }
        let Some(part) = self.parts.iter().find(|part| is_there(part)) else {
            // Without its output a mark says nothing.
            if !matches!(
                read_mark::<Mark>(&self.mark),
                Err(OutputError::Foreign { .. })
            ) {
                self.remove()?;
            }
            return Ok(None);
        };
        let mark = match read_mark::<Mark>(&self.mark) {
            Ok(Some(mark)) => mark,
            Ok(None) => {
                return Err(OutputError::Foreign {
                    path: part.clone(),
                    mark: self.mark.clone(),
                });
            }
            Err(OutputError::Damaged { .. }) if existing == Existing::Overwrite => {
                self.remove()?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let differences = mark.made_from.differences(made_from);
        if differences.is_empty() {
            return Ok(Some(mark));
        }
        self.give_way(differences, existing)?;
        Ok(None)
    }

    /// Makes room for another output, as `existing` says.
    pub fn give_way(
        &self,
        differences: Vec<Difference>,
        existing: Existing<'_>,
    ) -> Result<(), OutputError> {
        match existing {
            Existing::Keep => Err(OutputError::Different {
                path: self.name.clone(),
                differences,
            }),
            Existing::Overwrite => {
                tracing::warn!(
                    "{} was made from something else and is replaced:\n{}",
                    self.name.display(),
                    lines(&differences)
                );
                Ok(self.remove()?)
            }
            Existing::SetAside(folder) => {
                let aside = self.set_aside(folder)?;
                tracing::warn!(
                    "{} was made from something else and is now in {}:\n{}",
                    self.name.display(),
                    aside.display(),
                    lines(&differences)
                );
                Ok(())
            }
        }
    }

    /// Refuses what stands there without a mark; nothing is changed.
    pub fn refuse_foreign(&self) -> Result<(), OutputError> {
        match self.parts.iter().find(|part| is_there(part)) {
            Some(part) if !is_there(&self.mark) => Err(OutputError::Foreign {
                path: part.clone(),
                mark: self.mark.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Removes it, its mark last.
    pub fn remove(&self) -> Result<(), FileError> {
        self.all().into_iter().try_for_each(remove)
    }

    /// Parts and mark, as far as they are there; a mark within a part goes with it.
    fn all(&self) -> Vec<&Path> {
        let within = self.parts.iter().any(|part| self.mark.starts_with(part));
        let mark = Some(&self.mark).filter(|_| !within);
        let all = self.parts.iter().chain(mark).map(PathBuf::as_path);
        all.filter(|path| is_there(path)).collect()
    }

    /// Moves it into `<folder>.before-<date>`, or the first such name with a number behind it that
    /// has room; gives that folder.
    pub fn set_aside(&self, folder: &Path) -> Result<PathBuf, FileError> {
        let all = self.all();
        let folder = match folder.file_name() {
            Some(_) => folder.to_path_buf(),
            // `.` and the like have a name elsewhere only.
            None => folder
                .canonicalize()
                .map_err(FileError::new("read", folder))?,
        };
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{name}.before-{}", Local::now().format("%Y-%m-%d"));
        let mut aside = folder.with_file_name(&name);
        let within = |aside: &Path, path: &Path| aside.join(path.file_name().unwrap_or_default());
        let mut number = 2;
        while all.iter().any(|path| is_there(&within(&aside, path))) {
            aside = folder.with_file_name(format!("{name}-{number}"));
            number += 1;
        }
        // A mount point has nothing beside it on its disk.
        for place in [
            aside,
            folder.join(format!("before-{}", Local::now().format("%Y-%m-%d-%H%M%S"))),
        ] {
            fs::create_dir_all(&place).map_err(FileError::new("make", &place))?;
            let mut moved = all
                .iter()
                .map(|path| fs::rename(path, within(&place, path)));
            match moved.find(|moved| moved.is_err()) {
                None => return Ok(place),
                Some(Err(error)) if error.kind() == ErrorKind::CrossesDevices => {
                    let _ = fs::remove_dir(&place);
                }
                Some(Err(error)) => return Err(FileError::new("move to", &place)(error)),
                Some(Ok(())) => {}
            }
        }
        let error = ErrorKind::CrossesDevices.into();
        Err(FileError::new("set aside", &folder)(error))
    }
}

/// Whether both are one file.
#[cfg(unix)]
pub(crate) fn is_same_file(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Whether both are one file, as far as can be told here.
#[cfg(not(unix))]
pub(crate) fn is_same_file(_: &Metadata, _: &Metadata) -> bool {
    true
}

fn is_within(part: &Path, path: &Path) -> bool {
    matches!((part.canonicalize(), path.canonicalize()), (Ok(part), Ok(path)) if path.starts_with(&part))
}

/// Also a link to nothing.
pub(crate) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn remove(path: &Path) -> Result<(), FileError> {
    let Ok(meta) = path.symlink_metadata() else {
        return Ok(());
    };
    let removed = match meta.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    removed.map_err(FileError::new("remove", path))
}
