//! Llama: configuration, rotary embedding, the model, and the mapping to Hugging Face names.

pub mod config;
pub mod decoder;
pub mod hf;
mod host_grid;
pub mod host_pass;
pub mod layout;
pub mod lora;
pub mod reward;
pub mod rope;
pub mod slot_cache;
pub mod transformer;

pub use config::{ConfigError, LlamaConfig, RopeScaling};
pub use decoder::Decoder;
pub use hf::CheckpointError;
pub use layout::PackedBatch;
pub use lora::Lora;
pub use reward::RewardModel;
pub use transformer::Llama;
