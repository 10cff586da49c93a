//! Downloads from a server on loopback that speaks as the Hub does.

mod server;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::name::Inside;
use super::settings::Token;
use super::{Cache, Fresh, Hub, HubError, Part, Repository, Settings};
use crate::monitor::{Monitor, Silent};
use server::{FakeHub, Faults};

const CONFIG: (&str, &[u8]) = ("config.json", b"{}");
const TOKENIZER: (&str, &[u8]) = ("tokenizer.json", b"{\"t\":1}");

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

struct Test {
    server: FakeHub,
    dir: tempfile::TempDir,
    token: Option<&'static str>,
    offline: bool,
}

impl Test {
    fn new() -> Self {
        Self {
            server: FakeHub::new(),
            dir: tempfile::tempdir().unwrap(),
            token: None,
            offline: false,
        }
    }

    /// With a model of one large file, and things that nobody needs.
    fn with_model() -> Self {
        let test = Self::new();
        let files: [(&str, &[u8]); 5] = [
            (".gitattributes", b"x"),
            CONFIG,
            ("model.safetensors", &weights()),
            ("pytorch_model.bin", b"y"),
            TOKENIZER,
        ];
        test.server.put("org/name", "main", 'a', &files);
        test
    }

    fn hub(&self) -> Hub {
        let settings = Settings {
            endpoint: self.server.address.clone(),
            cache: self.cache(),
            token: self.token.map(|secret| Token {
                secret: secret.into(),
                place: "HF_TOKEN".into(),
            }),
            offline: self.offline,
        };
        Hub::new(settings).with_pause(Duration::ZERO)
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("hub")
    }

    fn model(&self) -> Result<PathBuf, HubError> {
        self.get("org/name", Part::Whole)
    }

    fn get(&self, name: &str, part: Part) -> Result<PathBuf, HubError> {
        let repository = Repository::model(name).unwrap();
        self.hub()
            .model(&repository, part, Fresh::Cached, &Silent::default())
    }

    fn message(&self) -> String {
        self.model().unwrap_err().to_string()
    }

    fn rows(&self, path: &str, fresh: Fresh) -> Result<Vec<PathBuf>, HubError> {
        let inside = Inside::of(Path::new(path)).unwrap()?;
        self.hub().rows(&inside, fresh, &Silent::default())
    }

    /// What an attempt that broke off left.
    fn partial(&self) -> Option<u64> {
        let blobs = self.cache().join("models--org--name/blobs");
        let mut entries = std::fs::read_dir(blobs).ok()?.flatten();
        let partial =
            entries.find(|entry| entry.path().extension().is_some_and(|e| e == "incomplete"));
        Some(partial?.metadata().ok()?.len())
    }
}

#[test]
fn a_model_is_downloaded_once_and_only_what_it_needs() {
    let test = Test::with_model();
    let folder = test.model().unwrap();
    assert_eq!(
        folder,
        test.cache()
            .join("models--org--name/snapshots")
            .join("a".repeat(40))
    );
    assert_eq!(
        test.server.transferred(),
        ["model.safetensors", "tokenizer.json", "config.json"]
    );
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        weights()
    );
    // As huggingface_hub has them: links to what is named by its content.
    let link = std::fs::read_link(folder.join("model.safetensors")).unwrap();
    let name = link.file_name().unwrap().to_str().unwrap();
    assert_eq!((link.starts_with("../../blobs"), name.len()), (true, 64));
    let cache = Cache::new(test.cache());
    assert_eq!(
        cache.snapshot(&Repository::model("org/name").unwrap()),
        Some(folder)
    );
    // The second time nobody is asked.
    test.model().unwrap();
    assert_eq!(test.server.asked(), []);
}

#[test]
fn the_newest_is_asked_for_and_shares_what_is_the_same() {
    let test = Test::with_model();
    let old = test.model().unwrap();
    let changed: (&str, &[u8]) = ("config.json", b"{\"changed\": 1}");
    test.server.put(
        "org/name",
        "main",
        'b',
        &[changed, ("model.safetensors", &weights()), TOKENIZER],
    );
    test.server.asked();
    assert_eq!(test.model().unwrap(), old);
    let repository = Repository::model("org/name").unwrap();
    let newest = |test: &Test| {
        test.hub()
            .model(&repository, Part::Whole, Fresh::Newest, &Silent::default())
    };
    let new = newest(&test).unwrap();
    assert_ne!(new, old);
    // The ETags of the others are known.
    assert_eq!(test.server.transferred(), ["config.json"]);
    assert_eq!(std::fs::read(new.join("config.json")).unwrap(), changed.1);
    assert_eq!(test.model().unwrap(), new);
    newest(&test).unwrap();
    assert_eq!(test.server.transferred(), [""; 0]);
    // The old one is there by its commit.
    let by_commit = format!("org/name@{}", "a".repeat(40));
    assert_eq!(test.get(&by_commit, Part::Whole).unwrap(), old);
}

#[test]
fn shards_are_those_of_the_index() {
    let test = Test::new();
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let files: [(&str, &[u8]); 5] = [
        CONFIG,
        ("m-1.safetensors", b"1"),
        ("m-2.safetensors", b"2"),
        ("m-3.safetensors", b"3"),
        ("model.safetensors.index.json", index),
    ];
    test.server.put("org/name", "main", 'a', &files);
    test.get("org/name", Part::Config).unwrap();
    assert_eq!(test.server.transferred(), ["config.json"]);
    test.model().unwrap();
    assert_eq!(
        test.server.transferred(),
        [
            "model.safetensors.index.json",
            "m-1.safetensors",
            "m-2.safetensors"
        ]
    );
    let bad = br#"{"weight_map": {"a": "../../m.safetensors"}}"#;
    test.server.put(
        "org/bad",
        "main",
        'b',
        &[CONFIG, ("model.safetensors.index.json", bad)],
    );
    let message = test.get("org/bad", Part::Whole).unwrap_err().to_string();
    assert!(message.contains("out of its folder"), "{message}");
}

#[test]
fn a_revision_is_another_snapshot() {
    let test = Test::with_model();
    let other: (&str, &[u8]) = ("config.json", b"{\"v\": 1}");
    test.server.put(
        "org/name",
        "refs/pr/1",
        'c',
        &[other, ("model.safetensors", b"w")],
    );
    let main = test.model().unwrap();
    let pull = test.get("org/name@refs%2Fpr%2F1", Part::Whole).unwrap();
    assert_ne!(main, pull);
    assert_eq!(std::fs::read(pull.join("config.json")).unwrap(), other.1);
    let absent = test.get("org/name@v9", Part::Whole).unwrap_err();
    assert!(
        absent.to_string().contains("org/name has no revision v9"),
        "{absent}"
    );
    assert!(absent.is_input());
}

#[test]
fn redirects_are_followed_and_the_token_stays_with_the_hub() {
    let mut test = Test::with_model();
    test.token = Some("s3cret");
    test.model().unwrap();
    let asked = test.server.asked();
    let (other, own): (Vec<_>, Vec<_>) =
        asked.into_iter().partition(|a| a.path.starts_with("cdn:"));
    assert_eq!(other.len(), 1);
    assert!(other.iter().all(|asked| asked.token.is_none()));
    assert!(
        own.iter()
            .all(|asked| asked.token.as_deref() == Some("Bearer s3cret"))
    );
    // A repository that has another name today.
    test.server.put(
        "org/new",
        "main",
        'd',
        &[CONFIG, ("model.safetensors", &weights())],
    );
    test.server.faults(Faults {
        renamed: true,
        ..Faults::default()
    });
    let folder = test.get("org/old", Part::Whole).unwrap();
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        weights()
    );
}

#[test]
fn a_broken_transfer_goes_on_where_it_broke_off() {
    let test = Test::with_model();
    let breaks = |times| Faults {
        breaks: (times, 30_000),
        ..Faults::default()
    };
    test.server.faults(breaks(3));
    let folder = test.model().unwrap();
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        weights()
    );
    let asked = test.server.asked();
    let ranges = asked.iter().filter(|asked| asked.path.starts_with("cdn:"));
    let ranges: Vec<_> = ranges.map(|asked| asked.range.as_deref()).collect();
    let expected = ["bytes=30000-", "bytes=60000-", "bytes=90000-"].map(Some);
    assert_eq!((ranges[0], &ranges[1..]), (None, &expected[..]));
}

#[test]
fn a_later_command_goes_on_where_an_earlier_one_gave_up() {
    let test = Test::with_model();
    test.server.faults(Faults {
        breaks: (1, 50_000),
        ..Faults::default()
    });
    let stopping = Stopping::default();
    let repository = Repository::model("org/name").unwrap();
    let stopped = test
        .hub()
        .model(&repository, Part::Whole, Fresh::Cached, &stopping);
    assert!(matches!(stopped, Err(HubError::Stopped)));
    let kept = test.partial().unwrap();
    assert!(kept > 0 && kept <= 50_000);
    // Nothing is there before all is there.
    assert_eq!(Cache::new(test.cache()).snapshot(&repository), None);
    test.server.asked();
    let folder = test.model().unwrap();
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        weights()
    );
    let asked = test.server.asked();
    let ranges: Vec<_> = asked
        .iter()
        .filter_map(|asked| asked.range.clone())
        .collect();
    // Its hop to the other server has the range too.
    assert_eq!(ranges, [format!("bytes={kept}-"), format!("bytes={kept}-")]);
    assert_eq!(test.partial(), None);
}

/// Asks to stop once something came.
#[derive(Default)]
struct Stopping(AtomicBool, AtomicUsize);

impl Monitor for Stopping {
    fn interrupt(&self) -> &AtomicBool {
        &self.0
    }
    fn begin(&self, _: &str, _: &'static str, _: usize, _: usize) {}
    fn advance(&self, _: usize, _: Option<String>) {
        // Told once of what is there already, then of what came.
        if self.1.fetch_add(1, Ordering::Relaxed) > 0 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    fn end(&self) {}
}

#[test]
fn a_server_without_ranges_begins_again() {
    let test = Test::with_model();
    test.server.faults(Faults {
        breaks: (2, 30_000),
        no_ranges: true,
        ..Faults::default()
    });
    let folder = test.model().unwrap();
    assert_eq!(
        std::fs::read(folder.join("model.safetensors")).unwrap(),
        weights()
    );
}

#[test]
fn a_transfer_that_never_comes_on_ends() {
    let test = Test::with_model();
    test.server.faults(Faults {
        breaks: (usize::MAX, 0),
        ..Faults::default()
    });
    let error = test.model().unwrap_err();
    let message = error.to_string();
    for part in [
        "model.safetensors of org/name",
        "0 of 400000 bytes",
        "5 times",
        "goes on from there",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!error.is_input());
}

#[test]
fn what_has_another_size_is_no_model() {
    for more in [-5, 5] {
        let test = Test::with_model();
        test.server.faults(Faults {
            announced_more: more,
            ..Faults::default()
        });
        let message = test.message();
        match more {
            5 => assert!(
                message.contains("after 400000 of 400005 bytes"),
                "{message}"
            ),
            _ => assert!(message.contains("more than the 399995 bytes"), "{message}"),
        }
        let repository = Repository::model("org/name").unwrap();
        assert_eq!(Cache::new(test.cache()).snapshot(&repository), None);
    }
}

#[test]
fn what_has_another_content_is_thrown_away() {
    let test = Test::with_model();
    test.server.faults(Faults {
        altered: true,
        ..Faults::default()
    });
    let message = test.message();
    assert!(message.contains("its SHA-256 is"), "{message}");
    assert_eq!(test.partial(), None);
    test.server.faults(Faults::default());
    test.model().unwrap();
}

#[test]
fn a_busy_hub_is_asked_again() {
    let test = Test::with_model();
    test.server.faults(Faults {
        busy: 3,
        ..Faults::default()
    });
    test.model().unwrap();
    let test = Test::with_model();
    test.server.faults(Faults {
        busy: 4,
        ..Faults::default()
    });
    let error = test.model().unwrap_err();
    assert!(error.to_string().contains("status 503"), "{error}");
    assert!(!error.is_input());
}

#[test]
fn refusals_say_what_to_do() {
    let mut test = Test::with_model();
    let mut refused = |status: u16, code, token, parts: &[&str]| {
        test.server.faults(Faults {
            status: Some((status, code)),
            ..Faults::default()
        });
        test.token = token;
        let error = test.model().unwrap_err();
        let message = error.to_string();
        for part in parts {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("s3cret"), "{message}");
        assert!(error.is_input(), "{message}");
    };
    let none = "huggingface.co/settings/tokens";
    refused(
        401,
        "",
        None,
        &["status 401", "everybody", "HF_TOKEN", none],
    );
    refused(
        401,
        "",
        Some("s3cret"),
        &["owner of your token", "that of HF_TOKEN"],
    );
    refused(
        401,
        "GatedRepo",
        None,
        &["org/name is gated", "/org/name", "accept", none],
    );
    refused(
        403,
        "GatedRepo",
        Some("s3cret"),
        &["org/name is gated", "that of HF_TOKEN"],
    );
    refused(403, "DisabledRepo", Some("s3cret"), &["refuses org/name"]);
    refused(
        404,
        "RepoNotFound",
        None,
        &["the Hub has no org/name", "check the name"],
    );
}

#[test]
fn the_token_opens_what_is_private() {
    let mut test = Test::with_model();
    test.server.faults(Faults {
        token: Some("s3cret"),
        ..Faults::default()
    });
    assert!(test.model().is_err());
    test.token = Some("other");
    assert!(test.model().is_err());
    test.token = Some("s3cret");
    test.model().unwrap();
}

#[test]
fn without_a_network_it_says_how_to_get_on() {
    let mut test = Test::with_model();
    test.offline = true;
    let error = test.model().unwrap_err();
    assert!(error.is_input());
    let message = error.to_string();
    for part in [
        "HF_HUB_OFFLINE",
        "sppo download org/name",
        "models--org--name",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(test.server.asked(), []);
    test.offline = false;
    test.model().unwrap();
    test.offline = true;
    test.model().unwrap();
    // Nobody listens there.
    test.server.address = "http://127.0.0.1:9".into();
    test.offline = false;
    let error = test.get("org/other", Part::Whole).unwrap_err();
    assert!(!error.is_input());
    let message = error.to_string();
    for part in [
        "http://127.0.0.1:9",
        "HF_HUB_CACHE",
        "sppo download org/other",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_model_without_safetensors_is_refused_before_anything_is_downloaded() {
    let test = Test::new();
    test.server.put(
        "org/name",
        "main",
        'a',
        &[CONFIG, ("pytorch_model.bin", b"x")],
    );
    let message = test.message();
    assert!(
        message.contains("config.json, pytorch_model.bin"),
        "{message}"
    );
    assert_eq!(test.server.transferred(), [""; 0]);
}

#[test]
fn what_is_no_hub_is_said() {
    let test = Test::with_model();
    test.server.faults(Faults {
        status: Some((200, "")),
        ..Faults::default()
    });
    let message = test.message();
    assert!(message.contains("HF_ENDPOINT"), "{message}");
}

#[test]
fn rows_of_a_file_and_of_a_split() {
    let test = Test::new();
    let rows = vec![b'r'; server::LARGE];
    let files: [(&str, &[u8]); 4] = [
        ("README.md", b"r"),
        ("data/train-00000-of-00002.parquet", &rows),
        ("data/train-00001-of-00002.parquet", b"2"),
        ("extra.jsonl", b"{}"),
    ];
    test.server.put("datasets/org/set", "main", 'a', &files);
    let names = |paths: Vec<PathBuf>| -> Vec<String> {
        let snapshot = test
            .cache()
            .join("datasets--org--set/snapshots")
            .join("a".repeat(40));
        let names = paths
            .iter()
            .map(|path| path.strip_prefix(&snapshot).unwrap());
        names
            .map(|name| name.to_str().unwrap().to_string())
            .collect()
    };
    let file = test
        .rows("hf://datasets/org/set/extra.jsonl", Fresh::Cached)
        .unwrap();
    assert_eq!(names(file), ["extra.jsonl"]);
    let split = test
        .rows("hf://datasets/org/set/train", Fresh::Cached)
        .unwrap();
    assert_eq!(names(split), [files[1].0, files[2].0]);
    assert_eq!(
        test.server.transferred(),
        ["extra.jsonl", files[1].0, files[2].0]
    );
    test.rows("hf://datasets/org/set/train", Fresh::Cached)
        .unwrap();
    assert_eq!(test.server.asked(), []);
    let error = test
        .rows("hf://datasets/org/set/test", Fresh::Cached)
        .unwrap_err();
    assert!(error.is_input());
    let message = error.to_string();
    assert!(
        message.contains("hf://datasets/org/set/test") && message.contains("extra.jsonl"),
        "{message}"
    );
}

/// A download that stopped, or another program, leaves a part of a split whose names count nothing.
#[test]
fn a_part_of_a_split_is_not_the_split() {
    let test = Test::new();
    let files: [(&str, &[u8]); 2] = [("train/a.jsonl", b"{}"), ("train/b.jsonl", b"{ }")];
    test.server.put("datasets/org/set", "main", 'a', &files);
    let one = test.rows("hf://datasets/org/set/train/a.jsonl", Fresh::Cached);
    assert_eq!(one.unwrap().len(), 1);
    let split = || test.rows("hf://datasets/org/set/train", Fresh::Cached);
    assert_eq!(split().unwrap().len(), 2);
    assert_eq!(test.server.transferred(), [files[0].0, files[1].0]);
    test.server.asked();
    assert_eq!(split().unwrap().len(), 2);
    assert_eq!(test.server.asked(), []);
}

#[test]
fn a_split_of_another_format_is_the_hubs_own_parquet() {
    let test = Test::new();
    test.server.put(
        "datasets/org/set",
        "main",
        'a',
        &[("a.jsonl", b"{}"), ("b.jsonl", b"{}")],
    );
    let files: [(&str, &[u8]); 3] = [
        ("default/train/0000.parquet", b"1"),
        ("default/train/0001.parquet", b"2"),
        ("default/partial-test/0000.parquet", b"3"),
    ];
    test.server
        .put("datasets/org/set", "refs/convert/parquet", 'b', &files);
    let rows = test
        .rows("hf://datasets/org/set/train", Fresh::Cached)
        .unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows[0].ends_with("default/train/0000.parquet"));
    test.server.asked();
    assert_eq!(
        test.rows("hf://datasets/org/set/train", Fresh::Cached)
            .unwrap(),
        rows
    );
    assert_eq!(test.server.asked(), []);
    let message = test
        .rows("hf://datasets/org/set/test", Fresh::Cached)
        .unwrap_err()
        .to_string();
    assert!(message.contains("partial-test"), "{message}");
}
