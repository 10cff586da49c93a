//! SHA-256 of settings and of model folders.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use sppo_model::progress::advance;

use super::error::FileError;

/// Files beside weights and templates that determine what a model folder answers.
const FINGERPRINTED: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
/// SHA-256 over labelled parts, in hex.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (label, bytes) in parts {
        for part in [label.as_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of the files of a model folder that determine what it computes.
pub fn model_fingerprint(dir: &Path) -> Result<String, FileError> {
    files_fingerprint(dir, |name| {
        is_weights(name) || name.ends_with(".jinja") || FINGERPRINTED.contains(&name)
    })
}

/// SHA-256 of a folder's adapters.
pub fn adapter_fingerprint(dir: &Path) -> Result<String, FileError> {
    files_fingerprint(dir, |name| {
        is_weights(name) || name == "adapter_config.json"
    })
}

/// SHA-256 of a model folder's weights alone.
pub fn weights_fingerprint(dir: &Path) -> Result<String, FileError> {
    files_fingerprint(dir, is_weights)
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

fn files_fingerprint(dir: &Path, counts: impl Fn(&str) -> bool) -> Result<String, FileError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(FileError::new("read", dir))? {
        let path = entry.map_err(FileError::new("read", dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if path.is_file() && counts(name) {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(digest(&path)?);
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of a file's content, in hex.
pub fn file_fingerprint(path: &Path) -> Result<String, FileError> {
    digest(path)
}

/// SHA-256 of a file's content, in hex.
///
/// A run asks for a model's many times: a file that this process hashed before, and that has the
/// size and time of then, is not read again.
pub(super) fn digest(path: &Path) -> Result<String, FileError> {
    type Known = HashMap<PathBuf, (u64, SystemTime, String)>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Default::default);
    let mut file = File::open(path).map_err(FileError::new("read", path))?;
    let meta = file.metadata().map_err(FileError::new("read", path))?;
    let key = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let now = (
        meta.len(),
        meta.modified().map_err(FileError::new("read", path))?,
    );
    let known = || {
        KNOWN
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    };
    if let Some((size, time, digest)) = known().get(&key)
        && (*size, *time) == now
    {
        return Ok(digest.clone());
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(FileError::new("read", path))?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        advance();
    }
    let digest = hex(&hash.finalize());
    // Within the clock's grain a file may change and keep its time.
    if now.1.elapsed().is_ok_and(|age| age > MEMORABLE) {
        known().insert(key, (now.0, now.1, digest.clone()));
    }
    Ok(digest)
}

/// Age from which a file's size and time stand for its content.
const MEMORABLE: Duration = Duration::from_secs(1);
