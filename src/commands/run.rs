//! `sppo run`: the whole self-play loop.

use super::args::ConfigArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo run                                      the run of ./config.toml
  sppo run --config configs/llama3-8b.toml --device cuda
  sppo run --set iterations=1 --set output_dir=runs/short
A run that was stopped goes on when the same command is given again.")]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
}
