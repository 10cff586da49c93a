//! Llama and PairRM on Burn, generic over the backend: the models, Hugging Face checkpoints in and out,
//! tokenizer and chat template, and generation.

pub mod chat_template;
pub mod checkpoint;
mod config_json;
pub mod generate;
pub mod host;
pub mod llama;
pub mod nn;
pub mod pairrm;
pub mod tokenizer;
mod weights;
