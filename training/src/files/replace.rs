//! A file or a folder put in another's place in one step.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::error::FileError;

/// Writes a file beside its final name, flushes it and renames it: a kill leaves the old bytes or
/// the new ones.
pub fn replace_file(target: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let parent = parent_of(target);
    fs::create_dir_all(parent).map_err(FileError::new("make", parent))?;
    replace_with(target, bytes, put_in_place)
}

/// The same without waiting for the disk: for what may be lost where the machine itself stops.
pub(crate) fn replace_file_soon(target: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_with(target, bytes, |_, aside, target| fs::rename(aside, target))
}

fn replace_with(
    target: &Path,
    bytes: &[u8],
    put: impl FnOnce(&File, &Path, &Path) -> io::Result<()>,
) -> Result<(), FileError> {
    let aside = aside(target, PARTIAL);
    let written = create_aside(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        put(&file, &aside, target)
    });
    if written.is_err() {
        // Half a file is of no use and may be what filled the disk.
        let _ = fs::remove_file(&aside);
    }
    written.map_err(FileError::new("write", target))
}

/// Makes a file under one of this program's own names; what a kill left there goes.
pub(crate) fn create_aside(aside: &Path) -> io::Result<File> {
    match fs::remove_file(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(aside)
}

/// Flushes a file that was written as `aside`, renames it and flushes the folder.
pub(crate) fn put_in_place(file: &File, aside: &Path, target: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(aside, target)?;
    File::open(parent_of(target))?.sync_all()
}

fn parent_of(target: &Path) -> &Path {
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Makes a folder beside its final name and puts it there once `fill` has written it: a kill leaves
/// the old folder or the new one, whole and flushed.
pub fn replace_folder<T, E: From<FileError>>(
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let aside = begin_folder(target)?;
    match fill(&aside) {
        Ok(filled) => {
            put_folder(&aside, target)?;
            Ok(filled)
        }
        Err(error) => {
            // Half a folder is of no use and may be what filled the disk.
            let _ = fs::remove_dir_all(&aside);
            Err(error)
        }
    }
}

/// Makes the folder beside `target` that [`put_folder`] puts in its place.
pub(crate) fn begin_folder(target: &Path) -> Result<PathBuf, FileError> {
    let parent = parent_of(target);
    fs::create_dir_all(parent).map_err(FileError::new("make", parent))?;
    let aside = aside(target, PARTIAL);
    remove_folder(&aside)?;
    fs::create_dir(&aside).map_err(FileError::new("make", &aside))?;
    Ok(aside)
}

/// Flushes a folder that [`begin_folder`] made, and puts it in the place of `target`.
pub(crate) fn put_folder(aside: &Path, target: &Path) -> Result<(), FileError> {
    sync_tree(aside)?;
    match target.exists() {
        true => exchange(aside, target)?,
        false => fs::rename(aside, target).map_err(FileError::new("rename", aside))?,
    }
    sync(parent_of(target))?;
    remove_folder(aside)
}

fn remove_folder(dir: &Path) -> Result<(), FileError> {
    match dir.exists() {
        true => fs::remove_dir_all(dir).map_err(FileError::new("remove", dir)),
        false => Ok(()),
    }
}

/// Puts a folder in another's place, which then lies in its own: in one step, so that a kill
/// leaves one or the other under the name.
#[cfg(target_os = "linux")]
fn exchange(new: &Path, target: &Path) -> Result<(), FileError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // Some file systems cannot.
        Err(_) => replace_in_two_steps(new, target),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(new: &Path, target: &Path) -> Result<(), FileError> {
    replace_in_two_steps(new, target)
}

/// A rename cannot replace a folder that holds files, so the old one is set aside first.
fn replace_in_two_steps(new: &Path, target: &Path) -> Result<(), FileError> {
    let old = aside(target, OLD);
    if old.exists() {
        fs::remove_dir_all(&old).map_err(FileError::new("remove", &old))?;
    }
    fs::rename(target, &old).map_err(FileError::new("rename", target))?;
    fs::rename(new, target).map_err(FileError::new("rename", new))?;
    fs::remove_dir_all(&old).map_err(FileError::new("remove", &old))
}

// Names with `.sppo.` in them are this program's, as those of marks and locks are: what a user may
// have as `.model.partial` stays.
pub(crate) const PARTIAL: &str = ".sppo.partial";
pub(crate) const OLD: &str = ".sppo.old";

/// `.name.sppo.partial` or `.name.sppo.old` beside a file or folder.
fn aside(target: &Path, kind: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}{kind}"))
}

fn sync_tree(dir: &Path) -> Result<(), FileError> {
    for entry in fs::read_dir(dir).map_err(FileError::new("read", dir))? {
        let path = entry.map_err(FileError::new("read", dir))?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => sync(&path)?,
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(FileError::new("flush", path))
}
