//! Files that only look like tokenizers, and what becomes of them.

use std::sync::mpsc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::tokenizer_check::load;

const GOLDEN: &[u8] = include_bytes!("../../tests/fixtures/golden/llama/tokenizer.json");

fn golden() -> Value {
    serde_json::from_slice(GOLDEN).unwrap()
}

/// The error of a file, or none; panics where it does not end within a minute.
fn refusal(bytes: Vec<u8>) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(load("tokenizer.json".as_ref(), bytes).err()));
    receiver
        .recv_timeout(Duration::from_secs(60))
        .expect("it does not end")
}

fn nested(kind: &str, list: &str, inner: Value, depth: usize) -> Value {
    (0..depth).fold(inner, |inner, _| json!({"type": kind, list: [inner]}))
}

fn word_piece(max: u64) -> Value {
    json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": max, "vocab": {"[UNK]": 0, "a": 1, "##a": 2}})
}

fn unigram(unk: Value, vocab: Value) -> Value {
    json!({"type": "Unigram", "unk_id": unk, "vocab": vocab, "byte_fallback": false})
}

/// The golden tokenizer with one part exchanged.
fn with(key: &str, part: Value) -> Value {
    let mut json = golden();
    match key.split_once('.') {
        Some((outer, inner)) => json[outer][inner] = part,
        None => json[key] = part,
    }
    json
}

/// Hostile by themselves, with a word of what is said.
fn crafted() -> Vec<(Value, &'static str)> {
    let replace =
        |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
    let doubling: Vec<Value> = (0..64)
        .map(|_| replace(json!({"String": "a"}), "aa"))
        .collect();
    let split = |regex: String| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let levels = vec![
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        64
    ];
    let added = |content: &str, id: u64| {
        json!([{"id": id, "content": content, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}])
    };
    let list = |kind: &str, key: &str, parts: Value| json!({"type": kind, key: parts});
    vec![
        (with("model.dropout", json!(0.1)), "dropout"),
        (with("model.dropout", json!(1.0)), "dropout"),
        (with("model.dropout", json!("x")), "dropout"),
        (with("model.vocab", json!({})), ""),
        (with("model.vocab", json!({"a": 4_000_000_000u64})), ""),
        (with("model.vocab", json!({"a": u64::MAX})), ""),
        (with("model.vocab", json!({"a": -1})), ""),
        (
            with("model.vocab", json!({"a": 1, "b": 1})),
            "both have the id 1",
        ),
        (with("model.merges", json!(["q q"])), ""),
        (with("model.merges", json!([["nope", "nope"]])), ""),
        (with("model.merges", json!([["a"]])), ""),
        (
            with("model.continuing_subword_prefix", json!("é".repeat(9))),
            "",
        ),
        (
            with("model", json!({"type": "BPE", "vocab": {}, "merges": []})),
            "its model has no tokens",
        ),
        (
            with(
                "model",
                json!({"type": "BPE", "continuing_subword_prefix": "éé",
            "vocab": {"a": 0, "bé": 1}, "merges": ["a bé"]}),
            ),
            "",
        ),
        (
            with("model", word_piece(u64::MAX)),
            "max_input_chars_per_word",
        ),
        (
            with(
                "model",
                json!({"type": "WordPiece", "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 0, "vocab": {"a": 1}}),
            ),
            "",
        ),
        (
            with(
                "model",
                json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": {"a": 0}}),
            ),
            "",
        ),
        (with("model", unigram(json!(9), json!([["a", 0.0]]))), ""),
        (
            with("model", unigram(json!(u64::MAX), json!([["a", 0.0]]))),
            "",
        ),
        (with("model", unigram(json!(null), json!([["a", 0.0]]))), ""),
        (with("model", unigram(json!(0), json!([]))), ""),
        (with("model", unigram(json!(0), json!([["a", null]]))), ""),
        (with("added_tokens", added("", 9)), ""),
        (with("added_tokens", added("<a>", 4_294_967_295)), ""),
        (with("added_tokens", added("<a>", 4_294_967_296)), ""),
        (with("added_tokens", added("<a>", 5)), "both have the id 5"),
        (
            with(
                "normalizer",
                list("Sequence", "normalizers", json!(doubling)),
            ),
            "as long",
        ),
        (
            with(
                "normalizer",
                replace(json!({"String": ""}), &"x".repeat(5000)),
            ),
            "as long",
        ),
        (
            with(
                "normalizer",
                replace(json!({"Regex": "."}), &"x".repeat(5000)),
            ),
            "as long",
        ),
        (with("normalizer", replace(json!({"Regex": "("}), "")), ""),
        (
            with(
                "normalizer",
                nested("Sequence", "normalizers", json!({"type": "NFC"}), 50),
            ),
            "",
        ),
        (
            with(
                "normalizer",
                nested("Sequence", "normalizers", json!({"type": "NFC"}), 40),
            ),
            "inside each other",
        ),
        (
            with(
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
            ),
            "",
        ),
        (
            with(
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}),
            ),
            "",
        ),
        (
            with(
                "pre_tokenizer",
                nested(
                    "Sequence",
                    "pretokenizers",
                    json!({"type": "Whitespace"}),
                    60,
                ),
            ),
            "inside each other",
        ),
        (
            with(
                "pre_tokenizer",
                list("Sequence", "pretokenizers", json!(levels)),
            ),
            "as long",
        ),
        (
            with("pre_tokenizer", split("(".repeat(100_000))),
            "too large",
        ),
        (
            with("pre_tokenizer", split("((a{1000}){1000}){1000}".into())),
            "too large",
        ),
        (
            with("pre_tokenizer", split("(?:(?=a)a{999}){999999}".into())),
            "too large",
        ),
        (with("pre_tokenizer", split("(a*)*(?=b)c".into())), ""),
        (
            with("pre_tokenizer", split("(?:a|a)*(?!x)(?=b)b(?<=q)".into())),
            "",
        ),
        (with("pre_tokenizer", split("((a+)+)+(?=b)".into())), ""),
        (
            with(
                "pre_tokenizer",
                json!({"type": "Metaspace", "replacement": "", "prepend_scheme": "always"}),
            ),
            "",
        ),
        (
            with(
                "pre_tokenizer",
                json!({"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always"}),
            ),
            "",
        ),
        (
            with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
            "",
        ),
        (with("pre_tokenizer", json!({"type": "Nope"})), ""),
        (
            with(
                "decoder",
                nested("Sequence", "decoders", json!({"type": "Fuse"}), 60),
            ),
            "inside each other",
        ),
        (
            with(
                "post_processor",
                json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<no>", "type_id": 0}}], "pair": [], "special_tokens": {}}),
            ),
            "",
        ),
        (
            with(
                "post_processor",
                json!({"type": "TemplateProcessing", "single": "$A <no>", "pair": "$A $B", "special_tokens": {}}),
            ),
            "",
        ),
        (json!([]), ""),
        (json!(null), ""),
        (json!({"model": 1}), ""),
    ]
}

/// r032: crafted files panicked, aborted or encoded at random.
#[test]
fn crafted_tokenizers_are_refused_or_sound() {
    for (index, (json, word)) in crafted().into_iter().enumerate() {
        let text = json.to_string();
        let shown: String = text.chars().take(200).collect();
        let refusal = refusal(text.into_bytes());
        if !word.is_empty() {
            let said = refusal.unwrap_or_else(|| panic!("{index} was taken: {shown}"));
            assert!(said.contains(word), "{index}: {said}");
        }
    }
}

/// The golden file and sound files of other kinds are taken.
#[test]
fn sound_tokenizers_are_taken() {
    let sound = [
        golden(),
        with(
            "truncation",
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}),
        ),
        with("model.dropout", json!(0.0)),
    ];
    for json in sound {
        assert_eq!(refusal(json.to_string().into_bytes()), None);
    }
}

/// r033: mutated files end, with an error or a tokenizer that works.
#[test]
fn mutated_tokenizers_end() {
    let rounds = std::env::var("SPPO_FUZZ_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut random = StdRng::seed_from_u64(33);
    let crafted = crafted();
    for _ in 0..rounds.unwrap_or(300usize) {
        let mut json = match random.random_range(0..3) {
            0 => crafted[random.random_range(0..crafted.len())].0.clone(),
            _ => golden(),
        };
        for _ in 0..random.random_range(1..4) {
            mutate(&mut json, &mut random);
        }
        let mut bytes = json.to_string().into_bytes();
        if random.random_range(0..4) == 0 {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random_range(0..=255);
        }
        refusal(bytes);
    }
}

/// Changes something at a random place of the file.
fn mutate(json: &mut Value, random: &mut StdRng) {
    let stop = random.random_range(0..3) == 0;
    match json {
        Value::Object(map) if !map.is_empty() && !stop => {
            let key = map
                .keys()
                .nth(random.random_range(0..map.len()))
                .cloned()
                .unwrap();
            if random.random_range(0..12) == 0 {
                map.remove(&key);
            } else {
                mutate(&mut map[&key], random);
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let at = random.random_range(0..list.len());
            match random.random_range(0..12) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => mutate(&mut list[at], random),
            }
        }
        other => {
            let values = [
                json!(null),
                json!(true),
                json!(0),
                json!(-1),
                json!(u64::MAX),
                json!(4294967295u64),
                json!(0.5),
                json!(1e300),
                json!(""),
                json!("a"),
                json!("é🙂"),
                json!("x".repeat(1000)),
                json!([]),
                json!({}),
                json!([null]),
                json!({"type": "Sequence"}),
                json!({"type": "ByteLevel"}),
                json!({"type": "BPE"}),
                json!({"Regex": "(a|a)*b"}),
                json!({"String": ""}),
            ];
            *other = values[random.random_range(0..values.len())].clone();
        }
    }
}
