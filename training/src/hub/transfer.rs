//! A file from the Hub into the cache: in parts where it breaks off, and checked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sppo_model::progress::advance;
use ureq::Body;
use ureq::http::Response;

use super::cache::Cache;
use super::client::{Client, Failed, FileFacts, Place, header, wait};
use super::error::HubError;
use crate::files::{FileError, hex};
use crate::monitor::Monitor;

/// Attempts in a row that may bring nothing.
const ATTEMPTS: usize = 5;
const MIB: u64 = 1 << 20;

/// Brings files into the cache.
pub(super) struct Transfer<'a> {
    pub client: &'a Client,
    pub cache: &'a Cache,
    pub monitor: &'a dyn Monitor,
    /// Bytes that have not made up a MiB for the monitor yet.
    pub rest: u64,
}

/// A file that is growing beside its blob.
struct Partial {
    file: File,
    done: u64,
    hash: Sha256,
}

impl Transfer<'_> {
    /// Sees to it that the snapshot has the file.
    pub fn file(&mut self, place: Place<'_>, facts: &FileFacts) -> Result<(), HubError> {
        let folder = self.cache.repository(place.repository);
        let blob = folder.join("blobs").join(&facts.etag);
        let lock = self.cache.lock(place.repository, &facts.etag);
        let _lock = self.lock(&lock, place)?;
        let there = fs::metadata(&blob).is_ok_and(|meta| meta.len() == facts.size);
        if !there {
            self.blob(place, facts, &blob)?;
        }
        link(&folder, place, &blob)
    }

    /// Waits for another process that downloads the same.
    fn lock(&self, path: &Path, place: Place<'_>) -> Result<File, HubError> {
        make_parent(path)?;
        let file = File::create(path).map_err(FileError::new("write", path))?;
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    tracing::debug!("{}: no locks here: {error}", path.display());
                    return Ok(file);
                }
            }
            if !std::mem::replace(&mut said, true) {
                tracing::info!(
                    "waiting for another process that downloads {} of {}",
                    place.file,
                    place.repository
                );
            }
            wait(
                Duration::from_millis(200),
                &Failed::from(String::new()),
                self.monitor,
            )?;
            advance();
        }
    }

    fn blob(&mut self, place: Place<'_>, facts: &FileFacts, blob: &Path) -> Result<(), HubError> {
        let aside = blob.with_file_name(format!("{}.incomplete", facts.etag));
        let fail = |action: &'static str| FileError::new(action, &aside);
        make_parent(&aside)?;
        let mut partial = Partial::open(&aside, facts.size).map_err(fail("write"))?;
        self.count(partial.done);
        let (mut vain, mut pause) = (0, self.client.pause);
        let mut most = partial.done;
        while partial.done < facts.size {
            let failed = match self.client.open(place, partial.done)? {
                Ok(response) => self.receive(response, &mut partial, facts, place, &aside)?,
                Err(failed) => failed,
            };
            if partial.done == facts.size {
                break;
            }
            // What breaks off, but comes farther than before, is no failure.
            if partial.done > most {
                (most, vain, pause) = (partial.done, 0, self.client.pause);
            } else {
                vain += 1;
            }
            if vain == ATTEMPTS {
                return Err(HubError::Broken {
                    name: place.repository.to_string(),
                    file: place.file.into(),
                    done: most,
                    size: facts.size,
                    attempts: vain,
                    last: failed.message,
                });
            }
            tracing::debug!("{} at {}: {}", place.file, partial.done, failed.message);
            wait(pause, &failed, self.monitor)?;
            pause *= 2;
        }
        partial.file.sync_all().map_err(fail("write"))?;
        let hash = hex(&partial.hash.finalize());
        // Large files are named by their SHA-256; git's hash of small ones is another kind.
        if facts.etag.len() == hash.len() && facts.etag.to_ascii_lowercase() != hash {
            let problem = format!("its SHA-256 is {hash} where the Hub says {}", facts.etag);
            return Err(damaged(&aside, place, problem));
        }
        match fs::rename(&aside, blob) {
            // Where locks do not work, another was as fast.
            Err(_) if fs::metadata(blob).is_ok_and(|found| found.len() == facts.size) => Ok(()),
            done => Ok(done.map_err(FileError::new("write", blob))?),
        }
    }

    /// Appends what comes; why it ended.
    fn receive(
        &mut self,
        response: Response<Body>,
        partial: &mut Partial,
        facts: &FileFacts,
        place: Place<'_>,
        aside: &Path,
    ) -> Result<Failed, HubError> {
        let fail = |action: &'static str| FileError::new(action, aside);
        let status = response.status().as_u16();
        if status == 416 || (status == 200 && partial.done > 0) {
            // From the beginning: the server gives no ranges, or none from here on.
            partial.restart().map_err(fail("write"))?;
            if status == 416 {
                return Ok(Failed::from("status 416".to_string()));
            }
        } else if status == 206 {
            let range = header(response.headers(), "content-range").unwrap_or_default();
            let range = range.trim_start_matches("bytes ");
            let start = range.split('-').next().and_then(|start| start.parse().ok());
            if start != Some(partial.done) {
                return Ok(Failed::from(format!("the range {range} was not asked for")));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; MIB as usize];
        loop {
            if self.monitor.interrupted() {
                return Err(HubError::Stopped);
            }
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(Failed::from("it ended too early".to_string())),
                Ok(count) => count,
                Err(error) => return Ok(Failed::from(error.to_string())),
            };
            partial.add(&buffer[..count]).map_err(fail("write"))?;
            if partial.done > facts.size {
                let problem = format!(
                    "it has more than the {} bytes that the Hub says",
                    facts.size
                );
                return Err(damaged(aside, place, problem));
            }
            self.count(count as u64);
        }
    }

    /// Tells of bytes that are here.
    pub fn count(&mut self, bytes: u64) {
        self.rest += bytes;
        self.monitor.advance((self.rest / MIB) as usize, None);
        self.rest %= MIB;
        advance();
    }
}

impl Partial {
    /// What an earlier attempt left, or nothing yet.
    fn open(path: &Path, size: u64) -> std::io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut partial = Self {
            file,
            done: 0,
            hash: Sha256::new(),
        };
        if partial.file.metadata()?.len() > size {
            partial.restart()?;
        }
        let mut buffer = vec![0; MIB as usize];
        loop {
            let count = partial.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(partial);
            }
            partial.hash.update(&buffer[..count]);
            partial.done += count as u64;
            advance();
        }
    }

    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.done, self.hash) = (0, Sha256::new());
        Ok(())
    }
}

fn damaged(aside: &Path, place: Place<'_>, problem: String) -> HubError {
    let _ = fs::remove_file(aside);
    HubError::Damaged {
        name: place.repository.to_string(),
        file: place.file.into(),
        problem,
    }
}

/// Makes the snapshot's file a link to the blob, as other programs do; a copy where there are none.
/// It is made aside: others may read the file, or make it, at the same time.
fn link(folder: &Path, place: Place<'_>, blob: &Path) -> Result<(), HubError> {
    let pointer = folder.join("snapshots").join(place.commit).join(place.file);
    make_parent(&pointer)?;
    let size = |path: &Path| fs::metadata(path).ok().map(|facts| facts.len());
    if size(&pointer).is_some_and(|bytes| size(blob) == Some(bytes)) {
        return Ok(());
    }
    let up = "../".repeat(2 + place.file.matches('/').count());
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let aside = pointer.with_file_name(format!(".{name}.{}.sppo", std::process::id()));
    let _ = fs::remove_file(&aside);
    let made = symlink(&format!("{up}blobs/{name}"), &aside);
    let made = made.or_else(|_| fs::copy(blob, &aside).map(drop));
    let made = made.and_then(|()| fs::rename(&aside, &pointer));
    Ok(made.map_err(FileError::new("write", &pointer))?)
}

#[cfg(unix)]
fn symlink(target: &str, pointer: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

#[cfg(not(unix))]
fn symlink(_target: &str, _pointer: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

fn make_parent(path: &Path) -> Result<(), FileError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(FileError::new("make", parent)),
        None => Ok(()),
    }
}
