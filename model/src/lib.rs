//! Llama on Burn, generic over the backend: the model, Hugging Face checkpoints in and out,
//! tokenizer and chat template, and generation.

pub mod chat_template;
pub mod checkpoint;
pub mod generate;

pub mod llama;
pub mod tokenizer;
