//! LoRA (arXiv 2106.09685): low-rank adapters of a Llama's linear layers beside frozen weights,
//! kept in PEFT's layout and names, and merged into whole models.

mod folder;
mod merge;
mod model;
mod settings;
mod targets;

pub use crate::load_error::AdapterError;
pub use folder::AdapterFolder;
pub use merge::{Merge, Merged};
pub use settings::Lora;
pub use targets::targets;
