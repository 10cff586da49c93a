//! Which files of a model's repository are needed.

use std::path::Path;

use serde_json::Value;

/// How much of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Its sizes.
    Config,
    /// Its tokenizer and chat template too.
    Text,
    /// All that it takes to compute, weights and adapters too.
    Whole,
}

const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const ADAPTER: &str = "adapter_model.safetensors";

/// What tells a model's sizes: one of them.
const CONFIGS: [&str; 2] = ["config.json", "adapter_config.json"];

/// Tokenizer, template, and the card, which names the licence.
const TEXT: [&str; 12] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE",
];

/// Last among the files of the text: where it is, they are.
const TOKENIZER: &str = "tokenizer.json";

/// Those of a repository's files that `part` needs, the configuration last: where it is, the rest is.
/// The files that an index lists are not among them.
pub(super) fn needed<'f>(files: &[&'f str], part: Part) -> Vec<&'f str> {
    let there = |wanted: &[&str]| -> Vec<&'f str> {
        files
            .iter()
            .copied()
            .filter(|file| wanted.contains(file))
            .collect()
    };
    let mut found = Vec::new();
    if part == Part::Whole {
        let single = there(&[SINGLE]);
        found.extend(match single.is_empty() {
            true => there(&[INDEX]),
            false => single,
        });
        found.extend(there(&[ADAPTER]));
    }
    if part >= Part::Text {
        let mut text = there(&TEXT);
        text.sort_by_key(|file| *file == TOKENIZER);
        found.extend(text);
    }
    found.extend(there(&CONFIGS));
    found
}

/// Whether these hold weights.
pub(super) fn has_weights(needed: &[&str]) -> bool {
    [SINGLE, INDEX, ADAPTER]
        .iter()
        .any(|file| needed.contains(file))
}

/// The files that an index names; an error where it is none.
pub(super) fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let index: Value = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let map = index["weight_map"]
        .as_object()
        .ok_or("it has no weight_map")?;
    let names = map.values().map(|name| name.as_str().map(String::from));
    let names: Option<Vec<String>> = names.collect();
    let mut names = names.ok_or("its weight_map holds something else than names")?;
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether a snapshot has all of `part` that a model must have.
pub(super) fn is_whole(snapshot: &Path, part: Part) -> bool {
    let there = |name: &str| snapshot.join(name).is_file();
    let sizes = CONFIGS.iter().any(|name| there(name));
    let text = || there(TOKENIZER);
    let weights = || {
        if there(SINGLE) || there(ADAPTER) {
            return true;
        }
        let index = std::fs::read(snapshot.join(INDEX)).ok();
        let shards = index.and_then(|index| shards(&index).ok());
        shards.is_some_and(|shards| shards.iter().all(|shard| there(shard)))
    };
    sizes
        && match part {
            Part::Config => true,
            Part::Text => text(),
            // The configuration may be there from a plan.
            Part::Whole => weights() && (text() || there(ADAPTER)),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.00.pth",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let whole = [
            "model.safetensors.index.json",
            "README.md",
            "tokenizer.json",
            "config.json",
        ];
        assert_eq!(needed(&files, Part::Whole), whole);
        assert_eq!(needed(&files, Part::Text), whole[1..]);
        assert_eq!(needed(&files, Part::Config), whole[3..]);
        let both = ["model.safetensors", "model.safetensors.index.json"];
        assert_eq!(needed(&both, Part::Whole), both[..1]);
        assert!(has_weights(&whole) && !has_weights(&whole[1..]));
    }

    #[test]
    fn an_index_names_its_shards_once() {
        let index = br#"{"weight_map": {"a": "2", "b": "1", "c": "2"}}"#;
        assert_eq!(shards(index).unwrap(), ["1", "2"]);
        for bad in [&b"["[..], b"{}", br#"{"weight_map": {"a": 1}}"#] {
            assert!(shards(bad).is_err());
        }
    }

    #[test]
    fn a_snapshot_is_whole_with_all_its_shards() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let whole = |part| is_whole(dir.path(), part);
        assert!(!whole(Part::Config));
        put("config.json", "{}");
        assert!(whole(Part::Config) && !whole(Part::Text) && !whole(Part::Whole));
        put("tokenizer.json", "{}");
        put(INDEX, r#"{"weight_map": {"a": "x", "b": "y"}}"#);
        put("x", "");
        assert!(whole(Part::Text) && !whole(Part::Whole));
        put("y", "");
        assert!(whole(Part::Whole));
    }
}
