//! The commands, one file each.

mod args;
mod config;

use clap::Subcommand;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Prints the resolved configuration, or the documentation of every key.
    Config(config::Args),
}

impl Command {
    /// Runs the command; `json` asks for one line of JSON at the end.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        match self {
            Self::Config(args) => config::run(args, json),
        }
    }
}
