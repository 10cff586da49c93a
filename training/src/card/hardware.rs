//! What a model was computed on, as far as the system tells.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// The machine, or one of several alike, and how many processes computed together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Burn's name of the backend.
    pub backend: String,
    /// Processor or GPU, where the system names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// Cores of the processor; none of a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cores: Option<usize>,
    /// Processes that computed together.
    pub ranks: usize,
}

impl Hardware {
    /// Of this machine; `on_host` where the backend computes on its processor.
    pub fn here(backend: String, on_host: bool, ranks: usize) -> Self {
        let cores = || std::thread::available_parallelism().ok();
        Self {
            backend,
            processor: match on_host {
                true => processor_name(),
                false => card_name(),
            },
            cores: on_host.then(cores).flatten().map(usize::from),
            ranks,
        }
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ranks > 1 {
            write!(f, "{} processes, each on ", self.ranks)?;
        }
        if let Some(cores) = self.cores {
            write!(f, "{cores} cores of ")?;
        }
        let processor = self.processor.as_deref().unwrap_or("an unnamed processor");
        write!(f, "{processor} (backend {})", self.backend)
    }
}

fn processor_name() -> Option<String> {
    value_in(&fs::read_to_string("/proc/cpuinfo").ok()?, "model name")
}

/// What the NVIDIA driver calls its card, where all of a machine's have one name.
fn card_name() -> Option<String> {
    let cards = fs::read_dir("/proc/driver/nvidia/gpus").ok()?;
    let texts = cards.flatten().map(|card| card.path().join("information"));
    let mut names: Vec<String> = texts
        .filter_map(|path| value_in(&fs::read_to_string(path).ok()?, "Model"))
        .collect();
    names.dedup();
    names.pop().filter(|_| names.is_empty())
}

/// The value of the first line `key : value`.
fn value_in(text: &str, key: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.split_once(':'));
    let mut found = values.filter(|(name, _)| name.trim() == key);
    let value = found.next()?.1.trim();
    (!value.is_empty()).then(|| value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_said() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nmodel name\t: other\n";
        assert_eq!(value_in(text, "model name").unwrap(), "AMD EPYC 9R14");
        assert_eq!(
            value_in("Model: \t NVIDIA H100\n", "Model").unwrap(),
            "NVIDIA H100"
        );
        assert_eq!(value_in("Model:\n", "Model"), None);
        let mut hardware = Hardware {
            backend: "flex".into(),
            processor: Some("AMD EPYC".into()),
            cores: Some(2),
            ranks: 1,
        };
        assert_eq!(hardware.to_string(), "2 cores of AMD EPYC (backend flex)");
        hardware.ranks = 8;
        hardware.cores = None;
        let expected = "8 processes, each on AMD EPYC (backend flex)";
        assert_eq!(hardware.to_string(), expected);
    }
}
