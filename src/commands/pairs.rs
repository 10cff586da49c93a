//! `sppo pairs`: win probabilities and the best and worst response of each prompt.

use std::path::PathBuf;

use sppo_training::preference::Ties;
use sppo_training::stages::make_pairs;

use super::args::{BadRowArg, OverwriteArg};
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo pairs --judged judged.jsonl --out pairs.jsonl
  sppo pairs --judged judged.parquet --out pairs.parquet --drop-ties")]
pub struct Args {
    /// Judged responses of `sppo judge`.
    #[arg(long, value_name = "FILE")]
    pub judged: PathBuf,
    /// Pairs, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Leaves out prompts whose best and worst response are the same or score the same.
    #[arg(long)]
    pub drop_ties: bool,
    #[command(flatten)]
    pub bad: BadRowArg,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
}

/// Makes pairs.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let ties = match args.drop_ties {
        true => Ties::Drop,
        false => Ties::Keep,
    };
    let made = make_pairs(
        &args.judged,
        &args.out,
        ties,
        args.bad.on_bad_row,
        args.overwrite.existing(),
    )?;
    tracing::info!("{} pairs", made.pairs);
    output::made(&args.out, json)
}
