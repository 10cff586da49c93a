//! `sppo pairs`: win probabilities and the best and worst response of each prompt.

use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo pairs --judged judged.jsonl --out pairs.jsonl
  sppo pairs --judged judged.parquet --out pairs.parquet --keep-ties")]
pub struct Args {
    /// Judged responses of `sppo judge`.
    #[arg(long, value_name = "FILE")]
    pub judged: PathBuf,
    /// Pairs, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Keeps prompts whose best and worst response have the same score.
    #[arg(long)]
    pub keep_ties: bool,
}
