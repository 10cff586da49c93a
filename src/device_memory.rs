//! A GPU that ran out of memory: what is said of it.
//!
//! CubeCL panics in a thread of its own where an allocation fails, and what was to be computed fails
//! later, when it is read. Autotune's trials may fail so, too, and nobody misses them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sppo_model::quiet::quietly;
use sppo_training::config::Config;
use sppo_training::plan::{Assumed, Plan};

/// What CubeCL (CUDA) and wgpu say.
const SIGNS: [&str; 2] = ["can't allocate buffer of size: ", "Not enough memory left"];

/// How errors begin that come from reading what was computed.
const READING: [&str; 2] = [
    "reading from the device failed",
    "reading the logits failed",
];

/// Whether an allocation failed, and of how many bytes where that is known.
static LACKED: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicU64 = AtomicU64::new(0);

static CONFIG: OnceLock<Config> = OnceLock::new();

/// Keeps what drives this run, so that it can be said what it was reckoned to take.
pub fn reckon_with(config: &Config) {
    let _ = CONFIG.set(config.clone());
}

/// The bytes that an allocation failed to get, 0 where they are not said; None of other texts.
fn lacking(text: &str) -> Option<u64> {
    let sign = SIGNS.iter().find(|sign| text.contains(**sign))?;
    let digits = text.split(sign).nth(1)?;
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    Some(digits.parse().unwrap_or(0))
}

/// Notes what a panic says; whether it was for memory.
pub fn notice(panic: &str) -> bool {
    let Some(bytes) = lacking(panic) else {
        return false;
    };
    if !LACKED.swap(true, Ordering::Relaxed) {
        BYTES.store(bytes, Ordering::Relaxed);
    }
    true
}

/// What to say instead of an error or a panic that comes from lacking memory.
pub fn instead_of(text: &str) -> Option<String> {
    let of_reading = READING.iter().any(|sign| text.contains(sign));
    let lacked = notice(text) || of_reading;
    (lacked && LACKED.load(Ordering::Relaxed)).then(|| said(BYTES.load(Ordering::Relaxed)))
}

/// The same for a panic that came after an allocation failed; nothing where it has been said, or where
/// one of CubeCL's threads goes on without what it lacks.
pub fn instead_of_panic() -> Option<String> {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !LACKED.load(Ordering::Relaxed) {
        return None;
    }
    let of_cubecl = std::thread::current()
        .name()
        .is_some_and(|name| name.starts_with("DS"));
    match of_cubecl || SAID.swap(true, Ordering::Relaxed) {
        true => Some(String::new()),
        false => Some(said(BYTES.load(Ordering::Relaxed))),
    }
}

fn said(bytes: u64) -> String {
    let lacked = match bytes {
        0 => String::new(),
        bytes => format!(": {} MiB more were not to be had", bytes.div_ceil(1 << 20)),
    };
    let what = match CONFIG.get() {
        Some(config) => {
            let reckoned = reckoned(config).unwrap_or_default();
            format!(
                "{reckoned}in training lower train.batch_size or set train.memory_mib, \
                 train.recompute = \"layer\", or [train.lora]; in generation lower generate.batch or \
                 set generate.cache_memory_mib; in judging lower judge.batch_tokens"
            )
        }
        None => "lower --batch (of bench also --generate), the lengths, or see with nvidia-smi \
                 whether another program uses the card"
            .into(),
    };
    format!("error: the device ran out of memory{lacked}; {what}\n")
}

fn reckoned(config: &Config) -> Option<String> {
    let plan = quietly(|| Plan::new(config, Assumed::default()))
        .ok()?
        .ok()?;
    let gib = plan.peak_bytes as f64 / (1 << 30) as f64;
    Some(format!(
        "sppo plan reckons {gib:.1} GiB for this configuration; "
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_allocations_are_known_by_their_words() {
        let panic = "called `Result::unwrap()` on an `Err` value: can't allocate buffer of size: \
                     15728640\n    No backtrace available";
        assert_eq!(lacking(panic), Some(15 << 20));
        assert_eq!(lacking("wgpu error: Not enough memory left."), Some(0));
        assert_eq!(lacking("reading from the device failed: lost"), None);
    }

    #[test]
    fn what_is_said_names_what_to_lower() {
        let said = said(15 << 20);
        let begins =
            "error: the device ran out of memory: 15 MiB more were not to be had; lower --batch";
        assert!(said.starts_with(begins), "{said}");
    }
}
