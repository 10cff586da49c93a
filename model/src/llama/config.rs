//! `config.json` of a Llama checkpoint, read strictly: what this crate does not compute is refused.

use std::path::Path;

use serde_json::{Map, Value, json};

pub use crate::config_json::ModelConfigError;
use crate::config_json::{
    flag, is_absent, is_one_of, number, read_config, refuse_absurd, size, token_ids,
};

/// Frequency scaling of Llama 3.1 and later (`rope_type: "llama3"`).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeScaling {
    /// What the lowest frequencies are divided by.
    pub factor: f64,
    /// Wavelengths above the original context divided by this are scaled in full.
    pub low_freq_factor: f64,
    /// Wavelengths below the original context divided by this stay as they are.
    pub high_freq_factor: f64,
    /// Context length in tokens that the base model was trained with.
    pub original_max_position_embeddings: usize,
}

/// Shape and constants of a Llama, named as in transformers' `LlamaConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Width of the hidden state.
    pub hidden_size: usize,
    /// Width of the feed-forward's inner layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads of a block.
    pub num_attention_heads: usize,
    /// Key and value heads of a block; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; independent of `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Number of token ids, rows of the embeddings.
    pub vocab_size: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// `None` leaves the frequencies as they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the attention's four projections have biases.
    pub attention_bias: bool,
    /// Whether the feed-forward's three projections have biases.
    pub mlp_bias: bool,
    /// Whether the vocabulary projection is the embeddings.
    pub tie_word_embeddings: bool,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
    /// Id that begins a sequence; `None` where the file names none.
    pub bos_token_id: Option<u32>,
    /// One or more ids that end a sequence.
    pub eos_token_id: Vec<u32>,
    /// Id that fills sequences up; `None` where the file names none.
    pub pad_token_id: Option<u32>,
    /// The file as it was read, so that saving keeps what this crate does not use.
    pub raw: Map<String, Value>,
}

/// Fields that change what a Llama computes, with the only value that this crate computes.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("quantization_config", &["null"]),
    ("sliding_window", &["null"]),
    ("partial_rotary_factor", &["null", "1"]),
    ("attention_dropout", &["null", "0"]),
    ("num_local_experts", &["null", "0"]),
    ("attn_logit_softcapping", &["null"]),
    ("final_logit_softcapping", &["null"]),
    ("logits_scaling", &["null", "1"]),
    ("logit_scale", &["null", "1"]),
    ("residual_multiplier", &["null", "1"]),
    ("embedding_multiplier", &["null", "1"]),
    ("attention_multiplier", &["null"]),
    ("use_qk_norm", &["null", "false"]),
    ("qk_norm", &["null", "false"]),
    ("clip_qkv", &["null"]),
    ("no_rope_layers", &["null", "[]"]),
];

impl LlamaConfig {
    /// Reads `config.json` of a checkpoint folder.
    pub fn from_dir(dir: &Path) -> Result<Self, ModelConfigError> {
        Self::from_map(read_config(dir)?)
    }

    /// Reads a parsed `config.json`; both spellings of the rope settings are known.
    pub fn from_map(raw: Map<String, Value>) -> Result<Self, ModelConfigError> {
        refuse_unsupported(&raw)?;
        let heads = size(&raw, "num_attention_heads", None)?;
        let hidden = size(&raw, "hidden_size", None)?;
        let kv_heads = size(&raw, "num_key_value_heads", Some(heads))?;
        if heads % kv_heads != 0 {
            return Err(ModelConfigError::Value {
                key: "num_key_value_heads".into(),
                found: kv_heads.to_string(),
                wanted: format!("it must divide num_attention_heads = {heads}"),
            });
        }
        if is_absent(raw.get("head_dim")) && hidden % heads != 0 {
            return Err(ModelConfigError::Value {
                key: "hidden_size".into(),
                found: hidden.to_string(),
                wanted: format!(
                    "without head_dim it must be a multiple of num_attention_heads = {heads}"
                ),
            });
        }
        let head_dim = size(&raw, "head_dim", Some(hidden / heads))?;
        if head_dim % 2 != 0 {
            return Err(ModelConfigError::Value {
                key: "head_dim".into(),
                found: head_dim.to_string(),
                wanted: "rotary embedding needs an even head size".into(),
            });
        }
        let (rope_theta, rope_scaling) = rope(&raw)?;
        refuse_absurd(&raw)?;
        let config = Self {
            hidden_size: hidden,
            intermediate_size: size(&raw, "intermediate_size", None)?,
            num_hidden_layers: size(&raw, "num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: size(&raw, "vocab_size", None)?,
            max_position_embeddings: size(&raw, "max_position_embeddings", Some(2048))?,
            rms_norm_eps: number(&raw, "rms_norm_eps", Some(1e-6))?,
            rope_theta,
            rope_scaling,
            attention_bias: flag(&raw, "attention_bias")?,
            mlp_bias: flag(&raw, "mlp_bias")?,
            tie_word_embeddings: flag(&raw, "tie_word_embeddings")?,
            initializer_range: initializer_range(&raw),
            bos_token_id: token_ids(&raw, "bos_token_id")?.first().copied(),
            eos_token_id: token_ids(&raw, "eos_token_id")?,
            pad_token_id: token_ids(&raw, "pad_token_id")?.first().copied(),
            raw,
        };
        Ok(config)
    }

    /// The `config.json` to write beside weights of `torch_dtype` ("float32" or "bfloat16"):
    /// what was read, with the classic spelling of the rope settings.
    pub fn to_json(&self, torch_dtype: &str) -> Value {
        let mut map = self.raw.clone();
        // Newer spellings would contradict the classic ones beside them.
        for newer in ["rope_parameters", "dtype", "rope_type"] {
            map.remove(newer);
        }
        let scaling = self.rope_scaling.as_ref().map_or(Value::Null, |s| {
            json!({
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            })
        });
        let eos = match self.eos_token_id.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        let fields = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": torch_dtype,
        });
        if let Value::Object(fields) = fields {
            map.extend(fields);
        }
        Value::Object(map)
    }
}

fn refuse_unsupported(raw: &Map<String, Value>) -> Result<(), ModelConfigError> {
    let unsupported = |key: &str, found: &Value, hint: &str| ModelConfigError::Unsupported {
        key: key.into(),
        found: found.to_string(),
        hint: hint.into(),
    };
    match raw.get("model_type") {
        Some(Value::String(kind)) if kind == "llama" => {}
        Some(other) => {
            return Err(unsupported(
                "model_type",
                other,
                "only \"llama\" can be loaded as a policy",
            ));
        }
        None => {
            return Err(ModelConfigError::Missing {
                key: "model_type".into(),
                wanted: "expected \"llama\"".into(),
            });
        }
    }
    if let Some(act) = raw.get("hidden_act")
        && act != "silu"
        && act != "swish"
    {
        return Err(unsupported("hidden_act", act, "Llama uses \"silu\""));
    }
    for (key, neutral) in NEUTRAL {
        if let Some(value) = raw.get(*key)
            && !is_one_of(value, neutral)
        {
            return Err(unsupported(
                key,
                value,
                "it changes what the model computes and this program does not compute it",
            ));
        }
    }
    Ok(())
}

/// Of new weights only: no value of it keeps a checkpoint from being read.
fn initializer_range(raw: &Map<String, Value>) -> f64 {
    let given = raw.get("initializer_range").and_then(Value::as_f64);
    given.filter(|x| *x >= 0.0 && x.is_finite()).unwrap_or(0.02)
}

/// `rope_theta` and the scaling, from `rope_scaling` or else `rope_parameters` (the newer name, with
/// `rope_theta` in it), by the precedence of transformers' `convert_rope_params_to_dict`.
fn rope(raw: &Map<String, Value>) -> Result<(f64, Option<RopeScaling>), ModelConfigError> {
    let object = |key: &'static str| match raw.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok((!map.is_empty()).then_some((key, map))),
        Some(other) => Err(ModelConfigError::Value {
            key: key.into(),
            found: other.to_string(),
            wanted: "expected an object".into(),
        }),
    };
    let parameters = object("rope_parameters")?;
    let places = [object("rope_scaling")?, parameters];
    let theta_from = places.iter().flatten().map(|(_, map)| *map);
    let theta_from = theta_from.chain([raw]);
    let theta_from = theta_from
        .into_iter()
        .find(|m| !is_absent(m.get("rope_theta")));
    let theta = number(theta_from.unwrap_or(raw), "rope_theta", Some(10_000.0))?;
    let Some((section, map)) = places.into_iter().flatten().next() else {
        return Ok((theta, None));
    };
    let unsupported = |key: &str, found: &Value, hint: &str| ModelConfigError::Unsupported {
        key: format!("{section}.{key}"),
        found: found.to_string(),
        hint: hint.into(),
    };
    if let Some(part) = map.get("partial_rotary_factor")
        && !is_one_of(part, &["null", "1"])
    {
        let hint = "this program rotates whole heads";
        return Err(unsupported("partial_rotary_factor", part, hint));
    }
    let named = ["rope_type", "type"].map(|key| (key, map.get(key).filter(|v| !v.is_null())));
    let named = named.into_iter().find_map(|(key, kind)| Some((key, kind?)));
    let Some((key, kind)) = named else {
        return Ok((theta, None));
    };
    match kind.as_str() {
        Some("default") => Ok((theta, None)),
        // Positions divided by 1.
        Some("linear") if map.get("factor").is_some_and(|f| is_one_of(f, &["1"])) => {
            Ok((theta, None))
        }
        Some("llama3") => Ok((theta, Some(llama3_scaling(raw, map)?))),
        _ => Err(unsupported(
            key,
            kind,
            "known are \"default\" and \"llama3\"",
        )),
    }
}

/// The length before scaling may stand beside the scaling instead, and is the whole context where
/// it stands nowhere.
fn llama3_scaling(
    raw: &Map<String, Value>,
    map: &Map<String, Value>,
) -> Result<RopeScaling, ModelConfigError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let mut places = [raw, map].into_iter();
    let original = match places.find(|map| !is_absent(map.get(ORIGINAL))) {
        Some(place) => size(place, ORIGINAL, None)?,
        None => size(raw, "max_position_embeddings", Some(2048))?,
    };
    Ok(RopeScaling {
        factor: number(map, "factor", None)?,
        low_freq_factor: number(map, "low_freq_factor", None)?,
        high_freq_factor: number(map, "high_freq_factor", None)?,
        original_max_position_embeddings: original,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Map<String, Value> {
        match json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": 100, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        }) {
            Value::Object(map) => map,
            _ => unreachable!(),
        }
    }

    fn with(key: &str, value: Value) -> Result<LlamaConfig, ModelConfigError> {
        let mut map = base();
        map.insert(key.into(), value);
        LlamaConfig::from_map(map)
    }

    #[test]
    fn both_rope_spellings_agree() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
        let classic = with("rope_scaling", scaling.clone()).unwrap();
        let mut newer = scaling;
        newer["rope_theta"] = json!(500000.0);
        let mut map = base();
        map.remove("rope_theta");
        map.insert("rope_parameters".into(), newer);
        let newer = LlamaConfig::from_map(map).unwrap();
        assert_eq!(classic.rope_scaling, newer.rope_scaling);
        assert_eq!(classic.rope_theta, newer.rope_theta);
        let written = newer.to_json("float32");
        assert!(written.get("rope_parameters").is_none());
        assert_eq!(written["rope_scaling"]["factor"], json!(8.0));
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (key, value) in [
            ("model_type", json!("mistral")),
            ("hidden_act", json!("gelu")),
            ("sliding_window", json!(4096)),
            ("quantization_config", json!({"bits": 4})),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0})),
        ] {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
            assert!(message.contains("not supported"), "{message}");
        }
    }

    #[test]
    fn bad_numbers_name_their_key() {
        for (key, value) in [
            ("hidden_size", json!(0)),
            ("vocab_size", json!("many")),
            ("num_key_value_heads", json!(3)),
            ("head_dim", json!(15)),
            ("max_position_embeddings", json!(1_000_000_000_000u64)),
            ("rms_norm_eps", json!(-1.0)),
            ("eos_token_id", json!("x")),
        ] {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
    }

    #[test]
    fn eos_is_an_id_or_a_list() {
        assert_eq!(with("eos_token_id", json!(7)).unwrap().eos_token_id, [7]);
        assert_eq!(
            with("eos_token_id", json!([7, 9])).unwrap().eos_token_id,
            [7, 9]
        );
    }
}
