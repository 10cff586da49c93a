//! The keys that completions and chat share: how answers are drawn and what comes with them.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde_json::{Value, json};
use sppo_model::generate::{MOST_LIKELIEST, SamplingParams};

use super::error::ApiError;
use super::fields::{Fields, shown, token_ids, wrong};
use super::model::Served;

/// Answers to one prompt.
const MOST_SAMPLES: usize = 128;
/// Stop strings of one request, and bytes of one.
const MOST_STOPS: usize = 256;
const LONGEST_STOP: usize = 4096;
/// Entries of a list of ids or biases.
const MOST_IDS: usize = 4096;
/// vLLM's: a temperature below is greedy.
const GREEDY: f64 = 1e-5;

/// What a request asks for, its prompts aside.
pub struct Wishes {
    /// Answers to each prompt.
    pub n: usize,
    /// Tokens of an answer at most; what the context leaves room for unless given.
    pub max_tokens: Option<usize>,
    /// How tokens are drawn; without a length.
    pub params: SamplingParams,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Stop strings that are a token of their own, with its id.
    pub stop_tokens: Vec<(u32, String)>,
    /// Whether the answer comes as it is made.
    pub stream: bool,
    /// Whether a stream ends with the usage.
    pub include_usage: bool,
    /// So many of the likeliest tokens come with each token of the answer.
    pub logprobs: Option<usize>,
    /// So many come with each token of the prompt.
    pub prompt_logprobs: Option<usize>,
}

/// Takes the keys that both routes have. `max_tokens` and `logprobs` differ between them.
pub fn wishes(fields: &mut Fields, served: &Served) -> Result<Wishes, ApiError> {
    refuse_unsupported(fields)?;
    let n = fields.whole("n", 1, MOST_SAMPLES as i64)?.unwrap_or(1) as usize;
    let best = fields.whole("best_of", 0, i64::MAX)?;
    if best.is_some_and(|best| best != n as i64) {
        let message = "`best_of` other than `n` is not supported: ask for `n` answers";
        return Err(ApiError::param("best_of", message));
    }
    let (stop, stop_tokens) = stops(fields, served)?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let include_usage = stream_options(fields, stream)?;
    let prompt_logprobs = prompt_logprobs(fields, stream)?;
    let mut params = params(fields, served)?;
    params
        .stop_token_ids
        .extend(stop_tokens.iter().map(|(id, _)| *id));
    Ok(Wishes {
        n,
        max_tokens: None,
        params,
        stop,
        stop_tokens,
        stream,
        include_usage,
        logprobs: None,
        prompt_logprobs,
    })
}

/// Whether the model's name is the served one, where that matters.
pub fn check_model(fields: &mut Fields, served: &Served) -> Result<(), ApiError> {
    let asked = fields.text("model")?;
    match asked.filter(|asked| served.strict && *asked != served.name) {
        Some(asked) => Err(ApiError::unknown_model(
            &super::fields::cut(&asked),
            &served.name,
        )),
        None => Ok(()),
    }
}

/// Takes keys that say something about the request but nothing about the answer.
fn take_labels(fields: &mut Fields) -> Result<(), ApiError> {
    fields.text("user")?;
    let labels = [
        "metadata",
        "service_tier",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "request_id",
    ];
    labels.into_iter().for_each(|key| drop(fields.take(key)));
    Ok(())
}

/// Refuses what would change the answer and is not done here; values that change nothing pass.
fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    take_labels(fields)?;
    let off = [json!(false), json!([]), json!({}), json!("")];
    let why = "is not supported by this server: leave it out";
    for key in [
        "tools",
        "functions",
        "function_call",
        "suffix",
        "logits_processors",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
        "structured_outputs",
        "structural_tag",
        "grammar",
        "json_schema",
        "use_beam_search",
        "early_stopping",
        "include_stop_str_in_output",
        "truncate_prompt_tokens",
        "allowed_token_ids",
        "bad_words",
        "return_tokens_as_token_ids",
        "return_token_ids",
        "prompt_embeds",
        "audio",
        "prediction",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
        "vllm_xargs",
        "kv_transfer_params",
    ] {
        fields.refuse(key, &off, why)?;
    }
    let neutral = [
        ("tool_choice", vec![json!("none"), json!("auto")]),
        ("modalities", vec![json!(["text"]), json!([])]),
        ("skip_special_tokens", vec![json!(true)]),
        (
            "spaces_between_special_tokens",
            vec![json!(true), json!(false)],
        ),
        ("parallel_tool_calls", vec![json!(true), json!(false)]),
        ("length_penalty", vec![json!(1), json!(1.0)]),
        ("typical_p", vec![json!(1), json!(1.0)]),
        ("priority", vec![json!(0)]),
    ];
    for (key, values) in neutral {
        fields.refuse(
            key,
            &values,
            "has a value that is not supported by this server",
        )?;
    }
    response_format(fields)
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(format) = fields.take("response_format") else {
        return Ok(());
    };
    match format["type"].as_str() {
        Some("text") => Ok(()),
        _ => Err(ApiError::param(
            "response_format",
            "`response_format` other than {\"type\": \"text\"} is not supported: this server does not force JSON or a grammar",
        )),
    }
}

fn params(fields: &mut Fields, served: &Served) -> Result<SamplingParams, ApiError> {
    let temperature = fields.number("temperature", 0.0, 100.0)?.unwrap_or(1.0);
    let top_p = fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0);
    if top_p == 0.0 {
        let message =
            "`top_p` is 0; expected a number above 0 that is at most 1 (temperature 0 is greedy)";
        return Err(ApiError::param("top_p", message));
    }
    let top_k = fields.whole("top_k", -1, u32::MAX.into())?.unwrap_or(0);
    let repetition = fields.number("repetition_penalty", 0.01, 100.0)?;
    let seed = fields.whole("seed", i64::MIN, i64::MAX)?;
    let given = |ids: Vec<u32>| if ids.is_empty() { None } else { Some(ids) };
    let stop_token_ids = match fields.take("stop_token_ids") {
        None => None,
        Some(Value::Array(ids)) if ids.len() <= MOST_IDS => {
            given(token_ids(&ids, "stop_token_ids", served.vocab)?)
        }
        Some(other) => {
            let expected = format!("a list of at most {MOST_IDS} token ids");
            return Err(wrong("stop_token_ids", &other, &expected));
        }
    };
    Ok(SamplingParams {
        temperature: if temperature < GREEDY {
            0.0
        } else {
            temperature
        },
        top_p,
        top_k: top_k.max(0) as usize,
        min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
        min_tokens: fields.count("min_tokens", u32::MAX as usize)?.unwrap_or(0),
        stop_ids: served.stop_ids.clone(),
        ignore_eos: fields.flag("ignore_eos")?.unwrap_or(false),
        stop_token_ids: stop_token_ids.unwrap_or_default(),
        logit_bias: logit_bias(fields, served.vocab)?,
        presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: fields
            .number("frequency_penalty", -2.0, 2.0)?
            .unwrap_or(0.0),
        repetition_penalty: repetition.unwrap_or(1.0),
        seed: seed.map_or_else(random, |seed| seed as u64),
        ..SamplingParams::default()
    })
}

/// A number that nobody knows before.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn logit_bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let name = "logit_bias";
    let map = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) if map.len() <= MOST_IDS => map,
        Some(other) => {
            let expected = format!("an object of at most {MOST_IDS} token ids with their biases");
            return Err(wrong(name, &other, &expected));
        }
    };
    let entry = |(key, value): (String, Value)| {
        let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocab);
        let id = id.ok_or_else(|| {
            let key = shown(&key.clone().into());
            let message = format!("`logit_bias` names {key}; expected token ids below {vocab}");
            ApiError::param(name, message)
        })?;
        let bias = value
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias));
        let bias = bias.ok_or_else(|| {
            wrong(
                &format!("logit_bias.{id}"),
                &value,
                "a number from -100 to 100",
            )
        })?;
        Ok((id, bias as f32))
    };
    map.into_iter().map(entry).collect()
}

/// Stop strings, and those of them that are a token by themselves: its text never comes where it is
/// a special one.
type Stops = (Vec<String>, Vec<(u32, String)>);

fn stops(fields: &mut Fields, served: &Served) -> Result<Stops, ApiError> {
    let given = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong("stop", &other, "a string or a list of strings")),
    };
    if given.len() > MOST_STOPS {
        let message = format!(
            "`stop` has {} strings; at most {MOST_STOPS} are taken",
            given.len()
        );
        return Err(ApiError::param("stop", message));
    }
    let mut texts: Vec<String> = Vec::new();
    for value in given {
        match value {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {
                let message = "`stop` has an empty string, which would end every answer at once";
                return Err(ApiError::param("stop", message));
            }
            Value::String(text) if text.len() <= LONGEST_STOP => {
                if !texts.contains(&text) {
                    texts.push(text);
                }
            }
            other => {
                let expected = format!("strings of at most {LONGEST_STOP} bytes");
                return Err(wrong("stop", &other, &expected));
            }
        }
    }
    let tokenizer = &served.tokenizer;
    let token = |text: &String| {
        let id = tokenizer
            .token_to_id(text)
            .filter(|&id| tokenizer.is_added(id))?;
        Some((id, text.clone()))
    };
    let tokens = texts.iter().filter_map(token).collect();
    Ok((texts, tokens))
}

/// Whether the usage is to come at the end of a stream.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else {
        return Ok(false);
    };
    if !stream {
        let message = "`stream_options` needs `stream`: true";
        return Err(ApiError::param("stream_options", message));
    }
    let mut options = Fields::within(options, "stream_options")?;
    let off = [json!(false)];
    options.refuse(
        "continuous_usage_stats",
        &off,
        "is not supported by this server",
    )?;
    options.take("include_obfuscation");
    Ok(options.flag("include_usage")?.unwrap_or(false))
}

fn prompt_logprobs(fields: &mut Fields, stream: bool) -> Result<Option<usize>, ApiError> {
    let asked = fields.count("prompt_logprobs", MOST_LIKELIEST)?;
    match asked {
        Some(_) if stream => {
            let message = "`prompt_logprobs` cannot be streamed: leave `stream` out";
            Err(ApiError::param("prompt_logprobs", message))
        }
        asked => Ok(asked),
    }
}
