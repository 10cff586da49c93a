//! Answers that were paid for already, one line each.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::JudgeError;
use crate::data::DataError;
use crate::files::Lock;

/// Length of a key, which `stable_hash` makes.
const DIGITS: usize = 16;

/// Logits by the hash of what was asked, kept in a file that only grows.
pub struct Cache {
    logits: HashMap<String, f64>,
    file: Option<Kept>,
}

/// The file that new answers go into; made for the first of them, unless it is there.
struct Kept {
    path: PathBuf,
    file: Option<File>,
    _lock: Lock,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: String,
    logit: f64,
}

/// What the file holds.
struct Contents {
    logits: HashMap<String, f64>,
    /// Bytes of its whole lines; behind them lies a line of a process that was killed.
    whole: usize,
    /// Whether the last whole line lacks its end.
    open: bool,
}

impl Cache {
    /// In memory only.
    pub fn none() -> Self {
        Cache {
            logits: HashMap::new(),
            file: None,
        }
    }

    /// Reads the file if it is there; `write` says whether new answers go into it. A file that is
    /// no such cache is refused and left as it is.
    pub fn open(path: &Path, write: bool) -> Result<Self, JudgeError> {
        let fail = |doing: &'static str| move |source| DataError::io(path, doing, source);
        // Another process would pay for the same answers.
        let lock = write.then(|| Lock::beside(path)).transpose();
        let lock = lock.map_err(DataError::from)?;
        let mut text = Vec::new();
        let there = match File::open(path) {
            Ok(mut file) => {
                file.read_to_end(&mut text).map_err(fail("read it"))?;
                true
            }
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(fail("read it")(error).into()),
        };
        let Contents {
            logits,
            whole,
            open,
        } = read(&text, path)?;
        let Some(lock) = lock else {
            return Ok(Cache { logits, file: None });
        };
        let mut kept = Kept {
            path: path.into(),
            file: None,
            _lock: lock,
        };
        if there {
            let file = OpenOptions::new().append(true).open(path);
            let mut file = file.map_err(fail("write it"))?;
            if whole < text.len() {
                file.set_len(whole as u64)
                    .map_err(fail("cut off its last line"))?;
            }
            if open {
                file.write_all(b"\n").map_err(fail("write it"))?;
            }
            kept.file = Some(file);
        }
        Ok(Cache {
            logits,
            file: Some(kept),
        })
    }

    /// The logit of what was asked before.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.logits.get(key).copied()
    }

    /// Keeps an answer, on disk before this returns.
    pub fn put(&mut self, key: String, logit: f64) -> Result<(), DataError> {
        if let Some(kept) = &mut self.file {
            let line = Line {
                key: key.clone(),
                logit,
            };
            let text = format!("{}\n", serde_json::json!(line));
            kept.append(text.as_bytes())?;
        }
        self.logits.insert(key, logit);
        Ok(())
    }
}

impl Kept {
    fn append(&mut self, line: &[u8]) -> Result<(), DataError> {
        let path = &self.path;
        let fail = |doing: &'static str| move |source| DataError::io(path, doing, source);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
                if let Some(folder) = folder {
                    std::fs::create_dir_all(folder).map_err(fail("make its folder"))?;
                }
                // Another process may have made it since.
                let file = OpenOptions::new().append(true).create(true).open(path);
                self.file.insert(file.map_err(fail("write it"))?)
            }
        };
        file.write_all(line).map_err(fail("write it"))
    }
}

/// Reads every line. The last one may be torn; so may others where an older program went on behind
/// a torn one. Anything else is refused.
fn read(text: &[u8], path: &Path) -> Result<Contents, JudgeError> {
    let mut found = Contents {
        logits: HashMap::new(),
        whole: text.len(),
        open: false,
    };
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    for (number, line) in lines.iter().enumerate() {
        let place = || format!("{}, line {}", path.display(), number + 1);
        let ended = line.ends_with(b"\n");
        match answer(line) {
            Some(line) => {
                found.logits.insert(line.key, line.logit);
                found.open = !ended;
            }
            None if !is_torn(line.trim_ascii_end(), found.logits.is_empty()) => {
                return Err(refused(path, number, found.logits.is_empty()));
            }
            None if ended => {
                tracing::warn!("{}: half an answer is passed over", place());
            }
            None => {
                tracing::warn!(
                    "{}: half an answer, of a process that was killed, is dropped",
                    place()
                );
                found.whole -= line.len();
            }
        }
    }
    Ok(found)
}

/// The answer that a line holds.
fn answer(line: &[u8]) -> Option<Line> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let known = line.logit.is_finite() && line.key.len() == DIGITS;
    (known && line.key.bytes().all(is_digit)).then_some(line)
}

/// Whether `line` is the start of an answer as [`Cache::put`] writes it. The `first` of a file must
/// hold a whole key: less could be the start of anything.
fn is_torn(line: &[u8], first: bool) -> bool {
    let (start, middle) = (&b"{\"key\":\""[..], &b"\",\"logit\":"[..]);
    let Some(rest) = line.strip_prefix(start) else {
        return !first && start.starts_with(line);
    };
    let digits = rest.iter().take_while(|byte| is_digit(**byte)).count();
    let (key, rest) = rest.split_at(digits);
    if key.len() < DIGITS {
        return !first && rest.is_empty();
    }
    let Some(rest) = rest.strip_prefix(middle) else {
        return key.len() == DIGITS && middle.starts_with(rest);
    };
    rest.iter().all(|byte| b"+-.0123456789eE".contains(byte))
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn refused(path: &Path, number: usize, none_before: bool) -> JudgeError {
    let path = path.display();
    let line = number + 1;
    let problem = match none_before {
        true => format!(
            "{path} is not a cache of answers (line {line} is none); nothing was changed in it: choose another file"
        ),
        false => format!(
            "{path}, line {line}: not an answer ({{\"key\", \"logit\"}}); nothing was changed in it: remove the line, and it is asked again, or choose another file"
        ),
    };
    JudgeError::Config {
        key: "judge.http.cache".into(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "{\"key\":\"0123456789abcdef\",\"logit\":-0.5}\n";

    fn opened(text: &str, write: bool) -> (Result<Cache, String>, Option<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.jsonl");
        std::fs::write(&path, text).unwrap();
        let cache = Cache::open(&path, write).map_err(|error| error.to_string());
        let after = std::fs::read_to_string(&path).ok();
        (cache, after)
    }

    /// r020: any file was taken for a cache, and answers appended to it.
    #[test]
    fn other_files_are_refused_and_left_alone() {
        for text in [
            "notes",
            "\n",
            "{}\n",
            "{\"prompt_id\": \"a\", \"prompt\": \"q\", \"responses\": [\"x\", \"y\"]}\n",
            "{\"key\":\"0123456789abcdef\",\"logit\":1,\"more\":2}\n",
            "{\"key\":\"0123456789abcdef\",\"logit\":null}\n",
            "{\"key\":\"0123\",\"logit\":1}\n",
            "{\"key\":\"0123",
            "{",
            "\u{fffd}",
        ] {
            for write in [false, true] {
                let (cache, after) = opened(text, write);
                let error = cache.err().unwrap();
                assert!(
                    error.contains("is not a cache of answers (line 1"),
                    "{error}"
                );
                assert_eq!(after.as_deref(), Some(text));
            }
        }
        let text = format!("{LINE}notes\n{LINE}");
        let (cache, after) = opened(&text, true);
        let error = cache.err().unwrap();
        assert!(error.contains("line 2: not an answer"), "{error}");
        assert_eq!(after, Some(text));
    }

    /// r020: a torn line was kept for good.
    #[test]
    fn torn_lines_are_dropped_at_the_end_only() {
        for length in 1..LINE.len() {
            let torn = &LINE[..length];
            // Of a first line too, once it begins as only such a line does.
            for before in ["", LINE] {
                if before.is_empty() && length < 24 {
                    continue;
                }
                let text = format!("{before}{torn}");
                let (cache, after) = opened(&text, false);
                assert_eq!(after.as_ref(), Some(&text));
                let whole = length == LINE.len() - 1;
                let count = usize::from(!before.is_empty() || whole);
                assert_eq!(cache.unwrap().logits.len(), count, "{text}");
                let (_, after) = opened(&text, true);
                let kept = if whole { LINE } else { "" };
                assert_eq!(after, Some(format!("{before}{kept}")), "{text}");
            }
        }
        let older = format!("{LINE}{}\n{LINE}", &LINE[..20]);
        let (cache, after) = opened(&older, true);
        assert_eq!((cache.unwrap().logits.len(), after), (1, Some(older)));
    }

    #[test]
    fn a_cache_is_made_for_its_first_answer() {
        const KEYS: [&str; 2] = ["0123456789abcdef", "123456789abcdef0"];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/cache.jsonl");
        let mut cache = Cache::open(&path, true).unwrap();
        assert!(!path.exists());
        cache.put(KEYS[0].into(), 1.5).unwrap();
        cache.put(KEYS[1].into(), f64::MIN_POSITIVE).unwrap();
        let second = Cache::open(&path, true).err().unwrap().to_string();
        assert!(second.contains("is being written by process"), "{second}");
        let again = Cache::open(&path, false).unwrap();
        assert_eq!(again.logits, cache.logits);
        assert_eq!((again.get(KEYS[0]), again.get("0c")), (Some(1.5), None));
    }
}
