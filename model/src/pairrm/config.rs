//! `config.json` of a PairRM folder: DeBERTa-v2/v3 with the comparison head of LLM-Blender.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::Checkpoint;
use crate::config_json::{
    ModelConfigError, is_absent, is_one_of, number, read_config, refuse_absurd, size, whole,
};
use crate::tokenizer::Tokenizer;

/// Shape and constants of a PairRM, named as in transformers' `DebertaV2Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRmConfig {
    /// Number of token ids, rows of the embeddings.
    pub vocab_size: usize,
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of a block; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Added to the variance in the norms.
    pub layer_norm_eps: f64,
    /// Buckets of relative positions on each side of 0.
    pub position_buckets: usize,
    /// Distance at which the last bucket begins.
    pub max_relative_positions: usize,
    /// Longest source in tokens, `[CLS]` and `[SEP]` included.
    pub source_maxlength: usize,
    /// The same of a candidate, before it gets half of what the source leaves.
    pub candidate_maxlength: usize,
    /// Ids of the prefix tokens.
    pub prefixes: Prefixes,
}

/// Ids of the tokens that stand before source and candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefixes {
    /// Of the source, which is the prompt.
    pub source: u32,
    /// Of either candidate, as it is tokenised.
    pub candidate: u32,
    /// Of the left candidate, in its place.
    pub candidate1: u32,
    /// Of the right candidate, in its place.
    pub candidate2: u32,
}

/// Texts of the prefix tokens and the keys of `config.json` that hold their ids.
const PREFIXES: [(&str, &str); 4] = [
    ("<|source|>", "source_prefix_id"),
    ("<|candidate|>", "cand_prefix_id"),
    ("<|candidate1|>", "cand1_prefix_id"),
    ("<|candidate2|>", "cand2_prefix_id"),
];

/// Fields that change what the encoder computes, with the only values that this crate computes.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("relative_attention", &["true"]),
    ("share_att_key", &["true"]),
    ("position_biased_input", &["false"]),
    ("type_vocab_size", &["0"]),
    ("hidden_act", &["\"gelu\""]),
    ("norm_rel_ebd", &["\"layer_norm\""]),
    ("conv_kernel_size", &["null", "0"]),
    ("embedding_size", &["null"]),
    ("n_tasks", &["null", "1"]),
    ("quantization_config", &["null"]),
];

impl PairRmConfig {
    /// Reads a folder in the layout of PairRM-hf (the encoder's sizes in `config.json`) or of
    /// llm-blender/PairRM (the settings of its trainer there, the sizes in the weights).
    pub fn from_dir(
        dir: &Path,
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
    ) -> Result<Self, ModelConfigError> {
        let raw = read_config(dir)?;
        let raw = match raw.get("ranker_type") {
            Some(kind) => from_trainer(kind, &raw, checkpoint)?,
            None => raw,
        };
        Self::from_map(&raw, tokenizer)
    }

    fn from_map(raw: &Map<String, Value>, tokenizer: &Tokenizer) -> Result<Self, ModelConfigError> {
        refuse_unsupported(raw)?;
        refuse_absurd(raw)?;
        let hidden = size(raw, "hidden_size", None)?;
        let heads = size(raw, "num_attention_heads", None)?;
        if hidden % heads != 0 {
            return Err(ModelConfigError::Value {
                key: "hidden_size".into(),
                found: hidden.to_string(),
                wanted: format!("it must be a multiple of num_attention_heads = {heads}"),
            });
        }
        let positions = size(raw, "max_position_embeddings", Some(512))?;
        let farthest = raw.get("max_relative_positions").and_then(whole);
        let max_relative_positions = farthest
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0)
            .unwrap_or(positions);
        let position_buckets = size(raw, "position_buckets", None)?;
        if position_buckets < 4 || max_relative_positions <= position_buckets / 2 + 1 {
            return Err(ModelConfigError::Value {
                key: "position_buckets".into(),
                found: position_buckets.to_string(),
                wanted: format!(
                    "expected 4 or more and less than twice the longest relative distance, {max_relative_positions}"
                ),
            });
        }
        let config = PairRmConfig {
            vocab_size: size(raw, "vocab_size", None)?,
            hidden_size: hidden,
            num_hidden_layers: size(raw, "num_hidden_layers", None)?,
            num_attention_heads: heads,
            intermediate_size: size(raw, "intermediate_size", None)?,
            layer_norm_eps: number(raw, "layer_norm_eps", Some(1e-7))?,
            position_buckets,
            max_relative_positions,
            source_maxlength: size(raw, "source_maxlength", Some(1224))?,
            candidate_maxlength: size(raw, "candidate_maxlength", Some(412))?,
            prefixes: prefixes(raw, tokenizer)?,
        };
        for (key, found) in [
            ("source_maxlength", config.source_maxlength),
            ("candidate_maxlength", config.candidate_maxlength),
        ] {
            if found < 3 {
                return Err(ModelConfigError::Value {
                    key: key.into(),
                    found: found.to_string(),
                    wanted: "expected 3 or more: [CLS], the prefix and [SEP] need a place".into(),
                });
            }
        }
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(ModelConfigError::Value {
                key: "vocab_size".into(),
                found: config.vocab_size.to_string(),
                wanted: format!(
                    "the tokenizer knows {} tokens; the two do not belong together",
                    tokenizer.vocab_size()
                ),
            });
        }
        Ok(config)
    }
}

fn refuse_unsupported(raw: &Map<String, Value>) -> Result<(), ModelConfigError> {
    let unsupported = |key: &str, found: &Value, hint: &str| ModelConfigError::Unsupported {
        key: key.into(),
        found: found.to_string(),
        hint: hint.into(),
    };
    match raw.get("model_type") {
        Some(kind) if kind == "deberta-v2" => {}
        kind => {
            return Err(unsupported(
                "model_type",
                kind.unwrap_or(&Value::Null),
                "the pairrm judge needs a PairRM folder (model_type \"deberta-v2\"), such as llm-blender/PairRM-hf",
            ));
        }
    }
    for (key, allowed) in NEUTRAL {
        if let Some(value) = raw.get(*key)
            && !is_one_of(value, allowed)
        {
            return Err(unsupported(
                key,
                value,
                "it changes what the model computes and this program does not compute it",
            ));
        }
    }
    for key in ["relative_attention", "share_att_key", "position_buckets"] {
        if is_absent(raw.get(key)) {
            return Err(ModelConfigError::Missing {
                key: key.into(),
                wanted: "PairRM is a DeBERTa-v3 with shared relative attention".into(),
            });
        }
    }
    let terms = match raw.get("pos_att_type") {
        // Written as a list or as "c2p|p2c".
        Some(Value::Array(terms)) => terms
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_string)
            .collect(),
        Some(Value::String(terms)) => terms.split('|').map(str::to_string).collect(),
        _ => Vec::new(),
    };
    let mut terms: Vec<String> = terms;
    terms.sort();
    if terms != ["c2p", "p2c"] {
        let found = raw.get("pos_att_type").unwrap_or(&Value::Null);
        return Err(unsupported("pos_att_type", found, "expected c2p and p2c"));
    }
    Ok(())
}

/// The prefix ids of the tokenizer, which must be those of `config.json` where it names them.
fn prefixes(raw: &Map<String, Value>, tokenizer: &Tokenizer) -> Result<Prefixes, ModelConfigError> {
    let mut ids = [0; 4];
    for ((token, key), id) in PREFIXES.iter().zip(&mut ids) {
        let known = tokenizer.token_to_id(token);
        let named = raw.get(*key).filter(|value| !value.is_null());
        match (known, named) {
            (None, _) => {
                return Err(ModelConfigError::Value {
                    key: (*key).into(),
                    found: named.map_or("absent".into(), Value::to_string),
                    wanted: format!(
                        "the folder's tokenizer has no token {token}, so it is not PairRM's"
                    ),
                });
            }
            (Some(known), Some(named)) if whole(named) != Some(known.into()) => {
                return Err(ModelConfigError::Value {
                    key: (*key).into(),
                    found: named.to_string(),
                    wanted: format!("the folder's tokenizer says that {token} is {known}"),
                });
            }
            (Some(known), _) => *id = known,
        }
    }
    let [source, candidate, candidate1, candidate2] = ids;
    Ok(Prefixes {
        source,
        candidate,
        candidate1,
        candidate2,
    })
}

/// The settings of llm-blender/PairRM as those of an encoder: its sizes are read off the weights;
/// the rest is the same for every DeBERTa-v3, whose heads are 64 wide.
fn from_trainer(
    kind: &Value,
    raw: &Map<String, Value>,
    checkpoint: &Checkpoint,
) -> Result<Map<String, Value>, ModelConfigError> {
    let name = raw.get("model_name").and_then(Value::as_str).unwrap_or("");
    if kind != "pairranker" || !name.contains("deberta-v3") {
        return Err(ModelConfigError::Unsupported {
            key: "ranker_type".into(),
            found: format!("{kind} on {name:?}"),
            hint: "known is \"pairranker\" on a deberta-v3 model, as llm-blender/PairRM has it"
                .into(),
        });
    }
    let shapes: std::collections::BTreeMap<&str, &[usize]> = checkpoint.shapes().collect();
    let side = |name: &str, axis: usize| {
        let shape = shapes.get(name).and_then(|shape| shape.get(axis));
        shape.copied().ok_or_else(|| ModelConfigError::Missing {
            key: "hidden_size".into(),
            wanted: format!("and the weights have no {name} to read it off"),
        })
    };
    let words = "pretrained_model.embeddings.word_embeddings.weight";
    let hidden = side(words, 1)?;
    let layers = (0..)
        .take_while(|i| {
            let name = format!("pretrained_model.encoder.layer.{i}.intermediate.dense.weight");
            shapes.contains_key(name.as_str())
        })
        .count();
    let first = "pretrained_model.encoder.layer.0.intermediate.dense.weight";
    let sizes = serde_json::json!({
        "model_type": "deberta-v2",
        "vocab_size": side(words, 0)?,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden / 64,
        "intermediate_size": side(first, 0)?,
        "relative_attention": true,
        "share_att_key": true,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": side("pretrained_model.encoder.rel_embeddings.weight", 0)? / 2,
        "max_position_embeddings": 512,
        "layer_norm_eps": 1e-7,
    });
    let mut map = match sizes {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    for key in ["source_maxlength", "candidate_maxlength", "n_tasks"] {
        if let Some(value) = raw.get(key) {
            map.insert(key.into(), value.clone());
        }
    }
    Ok(map)
}
