//! `sppo sft`: supervised fine-tuning on the rows of `[sft] data`.

use super::args::ConfigArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo sft --config config.toml
  sppo sft --config config.toml --set sft.epochs=3 --set sft.data=rows.jsonl")]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
}
