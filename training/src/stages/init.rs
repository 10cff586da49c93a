//! A small Llama from scratch, written as a checkpoint folder.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use serde_json::{Map, Value, json};
use sppo_model::llama::{Llama, LlamaConfig};
use sppo_model::ops::ModelOps;
use sppo_model::tokenizer::Tokenizer;

use super::error::StageError;
use crate::card::write_new;
use crate::cluster::{self, lead};
use crate::config::{Config, Init, ModelSource, Section};
use crate::files::{
    Existing, IN_FOLDER, Lock, MadeFrom, Mark, Output, model_fingerprint, replace_folder,
    write_mark,
};

/// Writes `dir` with random weights drawn by `seed`, and the tokenizer files of `init.tokenizer`;
/// a whole one of the same making stays. Among several ranks, rank 0 does it.
pub fn init_model<B: ModelOps>(
    init: &Init,
    seed: u64,
    dir: &Path,
    existing: Existing<'_>,
    device: &B::Device,
) -> Result<(), StageError> {
    cluster::doing("a model from scratch");
    lead(cluster::world(), || {
        write_model::<B>(init, seed, dir, existing, device)
    })
}

fn write_model<B: ModelOps>(
    init: &Init,
    seed: u64,
    dir: &Path,
    existing: Existing<'_>,
    device: &B::Device,
) -> Result<(), StageError> {
    let config = init_config(init)?;
    let made_from = MadeFrom::new("init")
        .settings(init.effective().into_settings())
        .setting("seed", seed)
        .input(
            "tokenizer",
            &init.tokenizer,
            model_fingerprint(&init.tokenizer)?,
        );
    let _lock = Lock::beside(dir)?;
    if Output::folder(dir).claim_finished(&made_from, existing)? {
        return Ok(());
    }
    let model = Llama::<B>::init(&config, seed, device)?;
    replace_folder(dir, |folder| {
        model.save(folder, &config, DType::F32, &init.tokenizer)?;
        let mark = Mark::of_folder(made_from, folder)?;
        write_mark(&folder.join(IN_FOLDER), &mark)?;
        Ok(write_new(folder, dir)?)
    })
}

/// The shape of such a model; its vocabulary is the tokenizer's.
pub fn init_config(init: &Init) -> Result<LlamaConfig, StageError> {
    let tokenizer = Tokenizer::from_dir(&init.tokenizer)?;
    LlamaConfig::from_map(config_map(init, &tokenizer))
        .map_err(|error| StageError::Input(format!("[model.init] gives no valid model: {error}")))
}

/// The folder of the model that `config` starts from; a model from scratch is written to
/// `<output_dir>/init` first (the same weights each time).
pub fn start_model<B: ModelOps>(
    config: &Config,
    overwrite: bool,
    device: &B::Device,
) -> Result<PathBuf, StageError> {
    match config.model.source()? {
        ModelSource::Folder(path) => Ok(path),
        ModelSource::Init(init) => {
            let dir = config.output_dir.join("init");
            let existing = match overwrite {
                true => Existing::Overwrite,
                false => Existing::SetAside(&dir),
            };
            init_model::<B>(init, config.seed, &dir, existing, device)?;
            Ok(dir)
        }
    }
}

fn config_map(init: &Init, tokenizer: &Tokenizer) -> Map<String, Value> {
    let fields = json!({
        "model_type": "llama",
        "hidden_size": init.hidden_size,
        "intermediate_size": init.intermediate_size,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "num_key_value_heads": init.kv_heads,
        "vocab_size": tokenizer.vocab_size(),
        "max_position_embeddings": init.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": init.rope_theta,
        "tie_word_embeddings": init.tie_word_embeddings,
        "initializer_range": init.initializer_range,
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": tokenizer.eos_id(),
        "pad_token_id": tokenizer.pad_id(),
    });
    match fields {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
