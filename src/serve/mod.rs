//! The OpenAI-compatible server: HTTP on its own threads, the engine on the one that computes.

mod answer;
mod app;
mod ask;
mod body;
mod chat;
mod completions;
mod error;
mod fields;
mod head;
mod keys;
mod life;
mod listen;
mod logprobs;
mod messages;
mod metrics;
mod model;
mod prompts;
mod routes;
mod sampling;
mod sink;
mod socket;
mod sse;
mod tokenise;
mod tokens;
mod unknown;

pub use app::App;
pub use keys::{ApiKey, key_of_file};
pub use life::Life;
pub use listen::Server;
pub use metrics::Metrics;
pub use model::{Served, TextOptions, open_folder};
pub use tokenise::tokenizer_info;
pub use unknown::UnknownKeys;
