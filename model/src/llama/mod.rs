//! Llama: configuration, rotary embedding, the model, and the mapping to Hugging Face names.

pub mod attention;
pub mod block;
pub mod config;
pub mod decoder;
pub mod hf;
pub mod lora;
pub mod model;
mod names;
pub mod parameters;
mod prefill;
mod prefix;
pub mod reward;
pub mod rope;
pub mod slot_cache;

pub use config::{LlamaConfig, ModelConfigError, RopeScaling};
pub use decoder::{Decoder, activations_dtype, prefill_tokens};
pub use hf::CheckpointError;
pub use lora::Lora;
pub use model::Llama;
pub use parameters::{Group, Kind, Parameter, ParameterTable};
pub use prefill::Piece;
pub use prefix::Prefix;
pub use reward::RewardModel;
