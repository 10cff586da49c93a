//! What a tokenizer.json must keep to before a text goes through it.
//!
//! The tokenizers library takes much that it then panics on, that never ends, or that grows without
//! end. What can be seen in the file is refused before the library reads it ([`check`]); the rest is
//! tried on a few texts ([`load`]), on a thread with a stack of its own and a time limit.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::quiet::quietly;

/// Normalizers and the like inside others: the library tries each level several times.
const MAX_NESTING: usize = 8;
/// How often longer a text may become by replacements.
const MAX_GROWTH: f64 = 4096.0;
/// Bytes of a regular expression, and its brackets inside brackets.
const MAX_PATTERN: (usize, usize) = (16 << 10, 100);
/// The product of all numbers of repetitions in a regular expression.
const MAX_REPEATS: f64 = 1e6;
/// Characters of a word that WordPiece looks up; its time grows with the third power.
const MAX_WORD: u64 = 1000;
/// Holes in the numbering that are taken: so many for each token, and so many more.
const HOLES: (u64, u64) = (10, 100_000);
/// Time for reading the file, and for the texts that it is tried on.
const LIMITS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3));
const STACK: usize = 64 << 20;

/// Reads a tokenizer and tries it; `path` is what the warning names of characters that it lacks.
pub(crate) fn load(path: &Path, bytes: Vec<u8>) -> Result<tokenizers::Tokenizer, String> {
    let json: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    check(&json)?;
    drop(json);
    let (sender, receiver) = mpsc::channel();
    let work = move || {
        let read = quietly(|| read(&bytes)).unwrap_or_else(|panic| Err(failed(&panic)));
        // The receiver is gone where a limit has passed.
        let _ = sender.send(None);
        let tried = read.and_then(|tokenizer| {
            let tried = quietly(|| try_out(&tokenizer));
            let tried = tried.unwrap_or_else(|panic| Err(failed(&panic)));
            tried.map(|lost| (tokenizer, lost))
        });
        let _ = sender.send(Some(tried));
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(work);
    thread.map_err(|error| format!("no thread to try it on: {error}"))?;
    let next = |what: &str, limit: Duration| {
        let late = |_| format!("{what} does not end within {} s", limit.as_secs());
        receiver.recv_timeout(limit).map_err(late)
    };
    next("reading it", LIMITS.0)?;
    let tried = next("encoding short texts", LIMITS.1)?;
    let (tokenizer, lost) = tried.unwrap_or_else(|| Err(failed("nothing was read")))?;
    if !lost.is_empty() {
        tracing::warn!(
            "{}: these characters encode to nothing and vanish from texts: {lost}",
            path.display()
        );
    }
    Ok(tokenizer)
}

fn failed(panic: &str) -> String {
    format!("the tokenizers library failed on it: {panic}")
}

fn read(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let mut tokenizer =
        tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
    // Limits and padding stored by whoever saved the file would silently change every text.
    tokenizer
        .with_truncation(None)
        .map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    if tokenizer.get_vocab_size(false) == 0 {
        return Err("its model has no tokens".into());
    }
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if tokenizer.token_to_id(&token.content) != Some(id) {
            return Err(format!(
                "the added token `{}` has not the id {id}",
                token.content
            ));
        }
    }
    Ok(tokenizer)
}

/// Encodes and decodes a few texts, for what only shows then; gives the characters of ASCII that
/// encode to nothing.
fn try_out(tokenizer: &tokenizers::Tokenizer) -> Result<String, String> {
    let letters: String = (0u8..=255).map(char::from).collect();
    let mut texts = vec![
        String::new(),
        "The quick brown fox didn't jump 1234 times.\n\n\tx = [1, 2]; \u{20}".into(),
        "\u{e9} \u{1f642} \u{6f22}\u{5b57} e\u{301} \u{0} \u{fffd} \u{2581}\u{a0}\u{200b} \u{fb01}"
            .into(),
        letters,
    ];
    texts.extend(["a", " ", "1", "\n", "\u{e9}", "A!", "a "].map(|text| text.repeat(200) + "!"));
    for text in &texts {
        for special in [false, true] {
            let encoding = tokenizer.encode_fast(text.as_str(), special);
            let ids = encoding.map_err(|error| format!("encoding: {error}"))?;
            let text = tokenizer.decode(ids.get_ids(), !special);
            text.map_err(|error| format!("decoding: {error}"))?;
        }
    }
    let mut ids: Vec<u32> = tokenizer.get_vocab(true).into_values().collect();
    ids.sort_unstable();
    for ids in ids.chunks(64).take(64) {
        tokenizer
            .decode(ids, false)
            .map_err(|error| format!("decoding: {error}"))?;
    }
    let lost = |char: &char| {
        let encoding = tokenizer.encode_fast(char.to_string(), false);
        encoding.is_ok_and(|encoding| encoding.get_ids().is_empty())
    };
    Ok(('!'..='~').filter(lost).collect())
}

/// Refuses what can be seen in the file.
fn check(json: &Value) -> Result<(), String> {
    let model = &json["model"];
    check_ids(json)?;
    match &model["dropout"] {
        Value::Null => {}
        rate if rate.as_f64() == Some(0.0) => {}
        rate => {
            return Err(format!(
                "`model.dropout` is {rate}, which makes encodings random; set it to null"
            ));
        }
    }
    let word = &model["max_input_chars_per_word"];
    if word.as_u64().is_some_and(|word| word > MAX_WORD) {
        return Err(format!(
            "`model.max_input_chars_per_word` is {word}; the most accepted is {MAX_WORD}"
        ));
    }
    // A text goes through all of these but the last, which its ids do.
    let mut growth = 1.0;
    for key in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        if key == "decoder" {
            growth = 1.0;
        }
        check_part(&json[key], key, 0, &mut growth)?;
    }
    Ok(())
}

fn check_part(part: &Value, key: &str, depth: usize, growth: &mut f64) -> Result<(), String> {
    if depth > MAX_NESTING {
        return Err(format!(
            "`{key}` has more than {MAX_NESTING} sequences inside each other"
        ));
    }
    // The library's names for a list of parts.
    for list in ["normalizers", "pretokenizers", "processors", "decoders"] {
        for part in part[list].as_array().into_iter().flatten() {
            check_part(part, key, depth + 1, growth)?;
        }
    }
    let pattern = &part["pattern"];
    if let Some(regex) = pattern["Regex"].as_str() {
        check_pattern(regex, key)?;
    }
    let length = |value: &Value| value.as_str().map_or(0, |text| text.chars().count()) as f64;
    *growth *= match part["type"].as_str() {
        Some("Replace") => {
            let replaced = length(&pattern["String"]).max(1.0);
            // An empty pattern is found between any two characters.
            let more = if pattern["String"] == "" { 1.0 } else { 0.0 };
            (length(&part["content"]) / replaced + more).max(1.0)
        }
        // Every byte becomes a character of up to two.
        Some("ByteLevel") if key != "post_processor" => 2.0,
        _ => 1.0,
    };
    if *growth > MAX_GROWTH {
        return Err(format!(
            "`{key}` can make a text more than {MAX_GROWTH} times as long"
        ));
    }
    Ok(())
}

fn check_pattern(regex: &str, key: &str) -> Result<(), String> {
    let (mut depth, mut deepest) = (0usize, 0);
    for char in regex.chars() {
        match char {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    let numbers = regex
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split('}').next());
    let most = |range: &str| -> f64 {
        let numbers = range
            .split(',')
            .filter_map(|number| number.trim().parse().ok());
        numbers.fold(1.0, f64::max)
    };
    let repeats: f64 = numbers.map(most).product();
    if regex.len() > MAX_PATTERN.0 || deepest > MAX_PATTERN.1 || repeats > MAX_REPEATS {
        let shown: String = regex.chars().take(60).collect();
        return Err(format!(
            "`{key}` has a regular expression that is too large: {shown}"
        ));
    }
    Ok(())
}

/// Ids of the vocabulary and of added tokens: each for one token, without large holes.
fn check_ids(json: &Value) -> Result<(), String> {
    let mut owners: HashMap<u64, &str> = HashMap::new();
    let named = json["model"]["vocab"].as_object();
    let named = named
        .into_iter()
        .flatten()
        .map(|(token, id)| (token.as_str(), id));
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let added = added.map(|token| (token["content"].as_str().unwrap_or_default(), &token["id"]));
    let mut highest = 0;
    for (token, id) in named.chain(added) {
        // What is no number, the library refuses itself.
        let Some(id) = id.as_u64() else { continue };
        if let Some(other) = owners.insert(id, token).filter(|other| *other != token) {
            return Err(format!(
                "the tokens `{other}` and `{token}` both have the id {id}"
            ));
        }
        highest = highest.max(id);
    }
    let listed = json["model"]["vocab"].as_array().map_or(0, Vec::len);
    let tokens = (owners.len() + listed) as u64;
    if highest > tokens * HOLES.0 + HOLES.1 {
        return Err(format!(
            "the highest id is {highest}, but there are {tokens} tokens"
        ));
    }
    Ok(())
}
