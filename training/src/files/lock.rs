//! One process an output: a lock that the operating system drops with its process.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use chrono::{SecondsFormat, Utc};

use super::error::{FileError, Holder, OutputError};
use super::output::is_same_file;

/// Held as long as it lives. The file goes with it; one that a killed process left does not bind.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// `None` where the file system has no locks.
    file: Option<File>,
    /// Folders that were made for it, the outermost first.
    made: Vec<PathBuf>,
}

const NAME: &str = ".sppo.lock";

impl Lock {
    /// Of a file or of a folder that is replaced as a whole: `.<name>.sppo.lock` beside it.
    pub fn beside(output: &Path) -> Result<Self, OutputError> {
        let name = output.file_name().unwrap_or_default().to_string_lossy();
        Self::take(output, output.with_file_name(format!(".{name}{NAME}")))
    }

    /// Of a folder that many files are written into: `.sppo.lock` in it.
    pub fn inside(folder: &Path) -> Result<Self, OutputError> {
        Self::take(folder, folder.join(NAME))
    }

    fn take(output: &Path, path: PathBuf) -> Result<Self, OutputError> {
        let made = make_folders(&path)?;
        let mut lock = Self {
            path: path.clone(),
            file: None,
            made,
        };
        let fail = |error| FileError::new("lock", &path)(error);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(FileError::new("write", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    // It is not ours to remove.
                    lock.made.clear();
                    return Err(OutputError::Locked {
                        output: output.into(),
                        holder: read_holder(&path),
                    });
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(
                        "{}: this file system has no locks ({error}); see to it that no second process writes here",
                        path.display()
                    );
                    let _ = fs::remove_file(&path);
                    return Ok(lock);
                }
            }
            // The one before may have removed the name between our opening and our locking.
            if !is_at(&file, &path) {
                continue;
            }
            write_holder(&file).map_err(fail)?;
            lock.file = Some(file);
            return Ok(lock);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
        // Empty ones only: a command that wrote nothing leaves nothing.
        for folder in self.made.iter().rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Makes the folders that `path` lies in; gives those that were not there.
fn make_folders(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    let parents = path.ancestors().skip(1);
    let missing = parents.take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
    let mut made: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
    made.reverse();
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(FileError::new("make", parent))?;
    }
    Ok(made)
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(here), Ok(there)) => is_same_file(&here, &there),
        _ => false,
    }
}

fn write_holder(mut file: &File) -> std::io::Result<()> {
    let holder = Holder {
        pid: std::process::id(),
        host: host(),
        since: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
    };
    file.set_len(0)?;
    file.write_all(serde_json::to_string(&holder)?.as_bytes())
}

/// The other may be about to write it.
fn read_holder(path: &Path) -> Option<Holder> {
    for _ in 0..20 {
        let mut text = String::new();
        let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
        if let Ok(holder) = serde_json::from_str(&text)
            && read.is_ok()
        {
            return Some(holder);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    None
}

/// What this machine is called.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.map(|name| name.trim().to_string());
    name.filter(|name| !name.is_empty())
        .or_else(|| std::env::var("HOSTNAME").ok())
        .unwrap_or_else(|| "this machine".into())
}
