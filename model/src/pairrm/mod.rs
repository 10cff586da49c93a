//! PairRM: a DeBERTa-v3 that reads a prompt with two responses and says which is better
//! (LLM-Blender, arXiv 2306.02561).

mod config;
mod encoder;
mod hf;
mod packing;
mod positions;

pub use config::{PairRmConfig, Prefixes};
pub use encoder::{MOST_SCORES, PairRm};
pub use hf::PairRmError;
pub use packing::{Candidate, Packed, Packer, Source};
