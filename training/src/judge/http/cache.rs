//! Answers that were paid for already, one line each.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::DataError;

/// Logits by the hash of what was asked, kept in a file that only grows.
pub struct Cache {
    logits: HashMap<String, f64>,
    file: Option<(File, std::path::PathBuf)>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    logit: f64,
}

impl Cache {
    /// In memory only.
    pub fn none() -> Self {
        Cache {
            logits: HashMap::new(),
            file: None,
        }
    }

    /// Reads the file if it is there; `write` says whether new answers go into it. A line that is
    /// not whole (a process was killed) counts for nothing.
    pub fn open(path: &Path, write: bool) -> Result<Self, DataError> {
        let fail = |doing: &'static str| move |source| DataError::io(path, doing, source);
        let mut text = Vec::new();
        match File::open(path) {
            Ok(mut file) => {
                file.read_to_end(&mut text).map_err(fail("read it"))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("read it")(error)),
        }
        let lines = text.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        let logits = lines
            .filter(|line| line.logit.is_finite())
            .map(|line| (line.key, line.logit))
            .collect();
        if !write {
            return Ok(Cache { logits, file: None });
        }
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            std::fs::create_dir_all(folder).map_err(fail("make its folder"))?;
        }
        let file = OpenOptions::new().append(true).create(true).open(path);
        let mut file = file.map_err(fail("write it"))?;
        if text.last().is_some_and(|byte| *byte != b'\n') {
            file.write_all(b"\n").map_err(fail("write it"))?;
        }
        Ok(Cache {
            logits,
            file: Some((file, path.into())),
        })
    }

    /// The logit of what was asked before.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.logits.get(key).copied()
    }

    /// Keeps an answer, on disk before this returns.
    pub fn put(&mut self, key: String, logit: f64) -> Result<(), DataError> {
        if let Some((file, path)) = &mut self.file {
            let line = Line {
                key: key.clone(),
                logit,
            };
            let text = format!("{}\n", serde_json::json!(line));
            file.write_all(text.as_bytes())
                .map_err(|source| DataError::io(path, "write it", source))?;
        }
        self.logits.insert(key, logit);
        Ok(())
    }
}
