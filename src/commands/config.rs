//! `sppo config`: the resolved configuration, or what every key does.

use std::path::PathBuf;

use sppo_training::config::Config;

use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo config                                  every key, its default and what it does
  sppo config > my.toml                        a configuration to start from
  sppo config --config my.toml                 what my.toml means, defaults filled in
  sppo config --config my.toml --set train.learning_rate=1e-6")]
pub struct Args {
    /// Configuration file; without one, every key is documented.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Overrides a key of the file.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Documents every key instead.
    #[arg(long, conflicts_with_all = ["config", "set"])]
    keys: bool,
}

pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    if args.keys || (args.config.is_none() && args.set.is_empty()) {
        return match json {
            true => output::json(&Config::sections()),
            false => output::print(&Config::documented()),
        };
    }
    let config = Config::load(args.config.as_deref(), &args.set)?;
    match json {
        true => output::json(&config),
        false => output::print(&config.to_toml()),
    }
}
