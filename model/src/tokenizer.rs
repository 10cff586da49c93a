//! A model folder's tokenizer: text to ids and back, special tokens, and text as it streams.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::other_formats::not_downloaded;
use crate::quiet::quietly;
use crate::token_bytes::Alphabet;
use crate::tokenizer_check;

/// What can go wrong with the tokenizer files of a model folder.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A folder without `tokenizer.json`.
    #[error(
        "{path}: no tokenizer here; copy the model's tokenizer.json (the fast tokenizer, not tokenizer.model) into the folder"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that is no tokenizer, or one that panics, never ends or encodes at random.
    #[error(
        "{path} is not a tokenizer that can be used: {detail}; correct it or download it again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A file that is not valid JSON.
    #[error("{path} is not valid JSON: {source}; download the file again")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A key whose value has the wrong type.
    #[error("{path}: `{key}` is {found}; expected {expected}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// A special token that the tokenizer does not have.
    #[error(
        "{path}: {key} is `{token}`, which the folder's tokenizer.json does not have; correct one of the two files"
    )]
    UnknownSpecial {
        /// The `tokenizer_config.json` that names it.
        path: PathBuf,
        /// The key that holds it.
        key: &'static str,
        /// Its text.
        token: String,
    },
    /// Text that cannot be encoded; with the library's message.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// Ids that cannot be decoded; with the library's message.
    #[error("cannot decode the token ids: {0}")]
    Decode(String),
}

/// Files of a model folder that belong to its tokenizer and chat template.
const TEXT_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// Names under which the configuration files give special tokens, as chat templates see them.
const SPECIAL_KEYS: [&str; 7] = [
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "sep_token",
    "cls_token",
    "mask_token",
];

/// The tokenizer and template files in `dir`, to be copied unchanged into checkpoints.
pub fn files_to_carry(dir: &Path) -> Vec<PathBuf> {
    TEXT_FILES
        .iter()
        .map(|name| dir.join(name))
        .filter(|path| path.is_file())
        .collect()
}

/// Reads a JSON file of a model folder; `None` where there is no such file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, TokenizerError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(TokenizerError::Read {
                path: path.into(),
                source,
            });
        }
    };
    let value = serde_json::from_slice(&text).map_err(|source| TokenizerError::Json {
        path: path.into(),
        source,
    })?;
    Ok(Some(value))
}

/// What kind of JSON value this is, for messages.
pub(crate) fn json_kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => format!("the string `{text}`"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object without a `content` string".into(),
    }
}

/// Special tokens by name (`bos_token` → its text) from tokenizer_config.json, and from
/// special_tokens_map.json where the first does not give them.
pub fn special_tokens(dir: &Path) -> Result<BTreeMap<&'static str, String>, TokenizerError> {
    let mut tokens = BTreeMap::new();
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = dir.join(name);
        let Some(config) = read_json(&path)? else {
            continue;
        };
        for key in SPECIAL_KEYS {
            let Some(value) = config.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            // A plain string, or an AddedToken written as an object.
            let text = value.get("content").unwrap_or(value);
            let text = text.as_str().ok_or_else(|| TokenizerError::Field {
                path: path.clone(),
                key: key.into(),
                found: json_kind(value),
                expected: "a string or an object with a `content` string",
            })?;
            tokens.entry(key).or_insert_with(|| text.to_owned());
        }
    }
    Ok(tokens)
}

/// A Hugging Face tokenizer (tokenizer.json) with the special tokens of its folder.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    alphabet: Alphabet,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

impl Tokenizer {
    /// Loads tokenizer.json and its special tokens from a model folder.
    pub fn from_dir(dir: &Path) -> Result<Self, TokenizerError> {
        let path = dir.join("tokenizer.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(TokenizerError::Missing { path });
            }
            Err(source) => return Err(TokenizerError::Read { path, source }),
        };
        if let Some(hint) = not_downloaded(&bytes) {
            let detail = hint.into();
            return Err(TokenizerError::Corrupt { path, detail });
        }
        let inner = tokenizer_check::load(&path, bytes)
            .map_err(|detail| TokenizerError::Corrupt { path, detail })?;

        let special = special_tokens(dir)?;
        let id_of = |key: &'static str| match special.get(key) {
            None => Ok(None),
            // Nothing is padded: a token that was never added is as good as none.
            Some(token) if key == "pad_token" => Ok(inner.token_to_id(token)),
            Some(token) => match inner.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => Err(TokenizerError::UnknownSpecial {
                    path: dir.join("tokenizer_config.json"),
                    key,
                    token: token.clone(),
                }),
            },
        };
        let (bos, eos, pad) = (
            id_of("bos_token")?,
            id_of("eos_token")?,
            id_of("pad_token")?,
        );
        let decoder = inner.get_decoder().map(serde_json::to_value);
        let alphabet = Alphabet::of(&decoder.and_then(Result::ok).unwrap_or_default());
        let highest = inner.get_vocab(true).into_values().max();
        let vocab_size = highest.map_or(0, |id| id as usize + 1);
        Ok(Self {
            inner,
            vocab_size,
            alphabet,
            bos,
            eos,
            pad,
        })
    }

    /// Token ids of `text`; with `add_special_tokens`, also those that the tokenizer puts around it.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        // The library panics on some texts under some tokenizers that are sound for others.
        let encoding = quietly(|| self.inner.encode_fast(text, add_special_tokens));
        let encoding = encoding.map_err(TokenizerError::Encode)?;
        let encoding = encoding.map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; ids that the tokenizer does not have give no text.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        let text = quietly(|| self.inner.decode(ids, skip_special_tokens));
        let text = text.map_err(TokenizerError::Decode)?;
        text.map_err(|error| TokenizerError::Decode(error.to_string()))
    }

    /// Highest token id + 1, added tokens included: the least vocabulary a model needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The added tokens whose ids are `first` or more, as text with the id; none where ordinary
    /// tokens have such ids too.
    pub(crate) fn added_from(&self, first: usize) -> Option<Vec<String>> {
        let added = self.inner.get_added_tokens_decoder();
        let mut beyond: Vec<(u32, String)> = self
            .inner
            .get_vocab(true)
            .into_iter()
            .map(|(token, id)| (id, token))
            .filter(|(id, _)| *id as usize >= first)
            .collect();
        beyond.sort();
        let name =
            |(id, token): (u32, String)| added.contains_key(&id).then(|| format!("{token} ({id})"));
        beyond.into_iter().map(name).collect()
    }

    /// The id of a token given by its exact text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary writes it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The bytes that a token stands for by itself; none for an id without a token. An added token
    /// stands for its name.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.inner.id_to_token(id) else {
            return Vec::new();
        };
        match self.is_added(id) {
            true => token.into_bytes(),
            false => self.alphabet.bytes(&token),
        }
    }

    /// Whether `id` is an added token marked special (never part of ordinary text).
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        self.inner
            .id_to_token(id)
            .is_some_and(|token| added.is_special_token(&token))
    }

    /// Whether `id` is an added token: one that text is cut at before all else, special or not.
    pub fn is_added(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary().get_vocab();
        let token = self.inner.id_to_token(id);
        token.is_some_and(|token| added.get(&token) == Some(&id))
    }

    /// Beginning-of-sequence id.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-sequence id.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Padding id.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }
}

/// Turns a stream of token ids into text, whole characters at a time.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    skip_special_tokens: bool,
    /// Ids whose text was given out last (context for the decoder), then the waiting ones.
    ids: Vec<u32>,
    /// How many of `ids` have been given out.
    given: usize,
}

impl StreamDecoder {
    /// A decoder at the start of a stream.
    pub fn new(skip_special_tokens: bool) -> Self {
        Self {
            skip_special_tokens,
            ids: Vec::new(),
            given: 0,
        }
    }

    /// Takes the next id; returns the text that is complete now, often empty.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.waiting(tokenizer)?;
        // An unfinished character decodes to U+FFFD at the end.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.ids.drain(..self.given);
        self.given = self.ids.len();
        Ok(text)
    }

    /// Ends the stream; returns what was held back, an unfinished character as U+FFFD.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let text = self.waiting(tokenizer)?;
        self.ids.clear();
        self.given = 0;
        Ok(text)
    }

    /// Text of the ids that are not given out, decoded behind the ones that are.
    fn waiting(&self, tokenizer: &Tokenizer) -> Result<String, TokenizerError> {
        let before = tokenizer.decode(&self.ids[..self.given], self.skip_special_tokens)?;
        let text = tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(text.get(before.len()..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama")
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_dir(&golden()).unwrap()
    }

    fn copy_of_golden() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in files_to_carry(&golden()) {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        dir
    }

    fn expected() -> Value {
        read_json(&golden().join("expected.json")).unwrap().unwrap()
    }

    fn ids(value: &Value) -> Vec<u32> {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[test]
    fn golden_encodings() {
        let tokenizer = tokenizer();
        let cases = expected()["encode"].as_array().unwrap().clone();
        assert!(cases.len() > 5);
        for case in &cases {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids"]));
            let with_bos = ids(&case["ids_with_bos"]);
            assert_eq!(tokenizer.encode(text, true).unwrap(), with_bos);
            assert_eq!(tokenizer.decode(&with_bos[1..], false).unwrap(), text);
        }
    }

    #[test]
    fn special_ids_and_size() {
        let tokenizer = tokenizer();
        assert_eq!(tokenizer.bos_id(), Some(420));
        assert_eq!(tokenizer.eos_id(), Some(424));
        assert_eq!(tokenizer.pad_id(), Some(425));
        assert_eq!(tokenizer.vocab_size(), 426);
        assert_eq!(tokenizer.token_to_id("<|eot_id|>"), Some(424));
        assert_eq!(tokenizer.id_to_token(422).unwrap(), "<|start_header_id|>");
        assert_eq!(tokenizer.id_to_token(9999), None);
        assert!(tokenizer.is_special(424) && !tokenizer.is_special(64));
        assert_eq!(tokenizer.decode(&[424, 64, 9999], true).unwrap(), "a");
    }

    #[test]
    fn object_form_and_fallback_file() {
        let dir = copy_of_golden();
        let config =
            r#"{"bos_token": {"content": "<|end_of_text|>", "lstrip": false}, "eos_token": null}"#;
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let map = r#"{"eos_token": "<|eot_id|>", "bos_token": "<|begin_of_text|>"}"#;
        std::fs::write(dir.path().join("special_tokens_map.json"), map).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        assert_eq!(tokenizer.bos_id(), Some(421));
        assert_eq!(tokenizer.eos_id(), Some(424));
        assert_eq!(tokenizer.pad_id(), None);
    }

    #[test]
    fn stored_truncation_and_padding_are_off() {
        let dir = copy_of_golden();
        let path = dir.path().join("tokenizer.json");
        let mut json = read_json(&path).unwrap().unwrap();
        json["truncation"] = serde_json::json!(
            {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 425, "pad_type_id": 0, "pad_token": "<pad>"});
        std::fs::write(&path, json.to_string()).unwrap();
        let cut = tokenizers::Tokenizer::from_file(&path).unwrap();
        assert_eq!(cut.encode("short prefer", false).unwrap().len(), 64);
        let loaded = Tokenizer::from_dir(dir.path()).unwrap();
        let plain = tokenizer().encode("short prefer", false).unwrap();
        assert_eq!(loaded.encode("short prefer", false).unwrap(), plain);
    }

    #[test]
    fn bad_files_are_named() {
        let dir = copy_of_golden();
        let config = dir.path().join("tokenizer_config.json");
        let message = |dir: &Path| Tokenizer::from_dir(dir).unwrap_err().to_string();

        std::fs::write(&config, r#"{"eos_token": "<nope>"}"#).unwrap();
        let text = message(dir.path());
        assert!(text.contains("eos_token is `<nope>`"), "{text}");
        std::fs::write(&config, r#"{"eos_token": 7}"#).unwrap();
        let text = message(dir.path());
        assert!(
            text.contains("tokenizer_config.json: `eos_token` is 7"),
            "{text}"
        );
        std::fs::write(&config, "{").unwrap();
        assert!(message(dir.path()).contains("tokenizer_config.json is not valid JSON"));

        let tokens = dir.path().join("tokenizer.json");
        std::fs::write(&tokens, r#"{"version": "1.0"}"#).unwrap();
        assert!(message(dir.path()).contains("tokenizer.json is not a tokenizer that can be used"));
        std::fs::remove_file(&tokens).unwrap();
        assert!(message(dir.path()).contains("copy the model's tokenizer.json"));
    }

    #[test]
    fn files_to_carry_are_those_present() {
        let names: Vec<_> = files_to_carry(&golden())
            .into_iter()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["tokenizer.json", "tokenizer_config.json"]);
    }

    #[test]
    fn stream_holds_back_half_characters() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("a 🙂", false).unwrap();
        let mut decoder = StreamDecoder::new(true);
        let pieces: Vec<_> = ids
            .iter()
            .map(|&id| decoder.push(&tokenizer, id).unwrap())
            .collect();
        assert_eq!(pieces, ["a", " ", "", "", "", "🙂"]);

        // Cut inside the character: nothing until the end says so.
        let mut decoder = StreamDecoder::new(true);
        for &id in &ids[..4] {
            decoder.push(&tokenizer, id).unwrap();
        }
        assert_eq!(decoder.finish(&tokenizer).unwrap(), "\u{fffd}");
    }

    #[test]
    fn stream_pieces_join_to_the_whole_text() {
        let tokenizer = tokenizer();
        let mut state = 7u32;
        for skip in [true, false] {
            for _ in 0..50 {
                let ids: Vec<u32> = (0..40)
                    .map(|_| {
                        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (state >> 8) % 430
                    })
                    .collect();
                let mut decoder = StreamDecoder::new(skip);
                let mut text = String::new();
                for &id in &ids {
                    text += &decoder.push(&tokenizer, id).unwrap();
                }
                text += &decoder.finish(&tokenizer).unwrap();
                assert_eq!(text, tokenizer.decode(&ids, skip).unwrap());
            }
        }
    }
}
