//! Llama: configuration, rotary embedding, the model, and the mapping to Hugging Face names.

pub mod config;
pub mod hf;
pub mod kv_cache;
pub mod layout;
pub mod reward;
pub mod rope;
pub mod transformer;

pub use config::{ConfigError, LlamaConfig, RopeScaling};
pub use hf::CheckpointError;
pub use kv_cache::KvCache;
pub use layout::PackedBatch;
pub use reward::RewardModel;
pub use transformer::Llama;
