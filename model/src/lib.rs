//! Llama and PairRM on Burn, generic over the backend: the models, Hugging Face checkpoints in and out,
//! tokenizer and chat template, and generation.

#![warn(missing_docs)]

pub mod chat_template;
pub mod chat_text;
pub mod checkpoint;
mod config_json;
pub mod end_of_turn;
pub mod generate;
pub mod llama;
pub mod load_error;
pub mod model_folder;
pub mod nn;
// Passes over the host's memory are there for the CPU backends.
#[cfg_attr(
    not(any(feature = "flex", feature = "ndarray")),
    allow(dead_code, unused_imports, unused_macros)
)]
pub mod ops;
mod other_formats;
pub mod packed_batch;
pub mod pairrm;
pub mod progress;
pub mod quiet;
mod token_bytes;
pub mod tokenizer;
mod tokenizer_check;
#[cfg(test)]
mod tokenizer_hostile;
mod weights;
