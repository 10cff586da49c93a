//! `sppo train`: one iteration's training on the pairs of `[train] data`.

use super::args::ConfigArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo train --config train.toml
  sppo train --config train.toml --set train.data=pairs.jsonl --set train.loss=dpo --device wgpu")]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
}
