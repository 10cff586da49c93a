//! The binary itself, each test in a folder of its own.

mod bad_input;
mod card;
mod download;
mod eval_tables;
mod files;
#[cfg(unix)]
mod generate;
#[cfg(unix)]
mod http_judge;
mod judge;
mod logging;
mod lora;
mod plan;
mod recovery;
mod reward;
#[cfg(unix)]
pub(crate) mod run;
pub(crate) mod train;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use safetensors::SafeTensors;
use serde_json::Value;
use sppo_training::files::{Mark, mark_beside, read_mark, write_mark};
use tempfile::TempDir;

use crate::golden;

/// A test's own folder, in which its commands run.
pub(crate) struct Place(TempDir);

/// How a command ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A new folder that holds the golden checkpoint as `llama`.
    pub(crate) fn with_model() -> Self {
        let place = Self::new();
        place.copy_model("llama");
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn copy_model(&self, name: &str) {
        self.copy_golden_as("llama", name);
    }

    /// A model of the golden cases under its own name.
    pub(crate) fn copy_golden(&self, name: &str) {
        self.copy_golden_as(name, name);
    }

    pub(crate) fn copy_golden_as(&self, golden: &str, name: &str) {
        let folder = self.path(name);
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(golden::path(golden)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap();
            if !name.to_str().unwrap().starts_with("expected") {
                fs::copy(&path, folder.join(name)).unwrap();
            }
        }
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn write_rows(&self, name: &str, rows: &[Value]) {
        let lines: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
        self.write(name, lines.concat());
    }

    /// Leaves of a finished output its first bytes, as a kill would.
    pub(crate) fn cut(&self, name: &str, bytes: impl AsRef<[u8]>) {
        self.cut_as(name, name, bytes);
    }

    /// The same under another name.
    pub(crate) fn cut_as(&self, name: &str, cut: &str, bytes: impl AsRef<[u8]>) {
        let mut mark: Mark = read_mark(&mark_beside(&self.path(name))).unwrap().unwrap();
        mark.finished = None;
        write_mark(&mark_beside(&self.path(cut)), &mark).unwrap();
        self.write(cut, bytes);
    }

    pub(crate) fn read(&self, name: &str) -> String {
        let path = self.path(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// The rows of a .jsonl file.
    pub(crate) fn rows(&self, name: &str) -> Vec<Value> {
        let text = self.read(name);
        assert!(text.ends_with('\n'), "{name} ends with a whole line");
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Changes a JSON file of this folder.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        change(&mut value);
        self.write(name, value.to_string());
    }

    /// Every file of this folder by its path, with its bytes; links by what they lead to.
    pub(crate) fn tree(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut folders = vec![self.0.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if let Ok(target) = fs::read_link(&path) {
                    found.push((path, target.into_os_string().into_encoded_bytes()));
                } else if path.is_dir() {
                    found.push((path.clone(), Vec::new()));
                    folders.push(path);
                } else {
                    let bytes = fs::read(&path).unwrap();
                    found.push((path, bytes));
                }
            }
        }
        found.sort();
        found
    }

    /// `sppo` with arguments parted by spaces.
    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sppo"));
        command.args(args.split_whitespace());
        command.current_dir(self.0.path());
        for variable in [
            "SPPO_LOG",
            "SPPO_PROFILE",
            "HF_HOME",
            "HF_HUB_CACHE",
            "HF_ENDPOINT",
            "HF_TOKEN",
        ] {
            command.env_remove(variable);
        }
        command.env("HOME", self.0.path());
        // No test waits for a network.
        command.env("HF_HUB_OFFLINE", "1");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn sppo(&self, args: &str) -> Ran {
        let output = self.command(args).output().unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a command that must succeed; gives its stdout.
    pub(crate) fn ok(&self, args: &str) -> String {
        let ran = self.sppo(args);
        assert_eq!(ran.code, Some(0), "sppo {args}: {}", ran.stderr);
        ran.stdout
    }

    /// Runs a command that must succeed; gives the JSON of its last line.
    pub(crate) fn ok_json(&self, args: &str) -> Value {
        let stdout = self.ok(&format!("{args} --json"));
        let last = stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {stdout:?}"))
    }

    /// Runs a command that must be refused as the user's mistake (exit code 2), with all of
    /// `parts` in its message and nothing on stdout.
    pub(crate) fn refused(&self, args: &str, parts: &[&str]) {
        let ran = self.sppo(args);
        let stderr = &ran.stderr;
        assert_eq!(ran.code, Some(2), "sppo {args}: {stderr}");
        assert!(stderr.contains("error: "), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
        assert_eq!(ran.stdout, "");
    }

    /// Runs a command that must fail at work (exit code 1); gives its stderr.
    pub(crate) fn fails(&self, args: &str) -> String {
        let ran = self.sppo(args);
        assert_eq!(ran.code, Some(1), "sppo {args}: {}", ran.stderr);
        ran.stderr
    }

    pub(crate) fn start(&self, args: &str) -> Child {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }
}

/// The golden pairs as rows of ids, with the probabilities.
pub(crate) fn golden_pairs() -> Vec<Value> {
    let mut rows = golden::json("training_runs.json")["pairs"]
        .as_array()
        .unwrap()
        .clone();
    for (i, row) in rows.iter_mut().enumerate() {
        row["prompt_id"] = format!("pair-{i}").into();
    }
    rows
}

/// Every tensor of a folder with one safetensors file, as f32.
fn weights(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
            let values = tensor.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (name.to_string(), values.collect())
        })
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// The largest difference between two folders' weights.
fn weight_difference(one: &Path, other: &Path) -> f32 {
    let (one, other) = (weights(one), weights(other));
    assert_eq!(one.len(), other.len());
    let mut most = 0.0f32;
    for ((name, a), (other_name, b)) in one.iter().zip(&other) {
        assert_eq!((name, a.len()), (other_name, b.len()));
        let gaps = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        most = gaps.fold(most, f32::max);
    }
    most
}

#[cfg(unix)]
pub(crate) mod signals {
    use super::*;
    use std::time::{Duration, Instant};

    /// A small linear congruential generator: the moments of the kills.
    pub struct Moments(pub u64);

    impl Moments {
        /// A pause below `longest`.
        pub fn pause(&mut self, longest: Duration) -> Duration {
            self.0 = self
                .0
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            longest.mul_f64((self.0 >> 40) as f64 / (1u64 << 24) as f64)
        }
    }

    /// Waits until `due`; false where the process ended before.
    pub fn wait_until(child: &mut Child, mut due: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !due() {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "it never came so far");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Sends Ctrl-C and gives the exit code.
    pub fn interrupt(mut child: Child) -> Option<i32> {
        let kill = format!("kill -INT {}", child.id());
        Command::new("sh").args(["-c", &kill]).status().unwrap();
        child.wait().unwrap().code()
    }

    /// `kill -9`; whether the process was still at work.
    pub fn kill(mut child: Child) -> bool {
        child.kill().unwrap();
        child.wait().unwrap().code().is_none()
    }
}
