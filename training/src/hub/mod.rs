//! The Hugging Face Hub: models and rows by name, from its cache on this machine or over the network.
//!
//! What is read comes from the cache alone ([`Cache`], [`row_files`]); a command brings what it names
//! there first ([`Hub`]). The cache has the layout of huggingface_hub, and both programs find what the
//! other downloaded.

mod cache;
mod client;
mod download;
mod error;
mod model;
mod name;
mod rows;
mod settings;
#[cfg(test)]
mod tests;
mod transfer;
mod url;

pub use cache::Cache;
pub use download::{Fresh, Hub};
pub use error::HubError;
pub use model::Part;
pub use name::{Inside, Kind, Repository};
pub use rows::{are_here, row_files};
pub use settings::Settings;
