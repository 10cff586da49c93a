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
pub mod reward;
pub mod rope;
pub mod slot_cache;

pub use config::{LlamaConfig, ModelConfigError, RopeScaling};
pub use decoder::Decoder;
pub use hf::CheckpointError;
pub use lora::Lora;
pub use model::Llama;
pub use parameters::{Group, Kind, Parameter, ParameterTable};
pub use reward::RewardModel;
