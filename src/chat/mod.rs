//! Conversations in the terminal, with one model or with two side by side, each behind a server that
//! speaks OpenAI's API.

mod ask;
mod client;
mod columns;
mod command;
mod input;
mod repl;
mod session;

pub use ask::{Answer, ask_all};
pub use client::Client;
pub use command::setting;
pub use repl::talk;
pub use session::Session;
