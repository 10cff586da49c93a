//! SHA-256 of settings and of model folders.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of the files of a model folder that determine what it computes.
pub fn model_fingerprint(dir: &Path) -> Result<String, FileError> {
    files_fingerprint(dir, |name| {
        is_weights(name) || name.ends_with(".jinja") || FINGERPRINTED.contains(&name)
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
        let mut file = File::open(&path).map_err(FileError::new("read", &path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file
                .read(&mut buffer)
                .map_err(FileError::new("read", &path))?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
        }
    }
    Ok(hex(&hash.finalize()))
}
