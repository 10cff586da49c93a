//! `sppo join`: the shards of `sppo generate --shard` or `sppo judge --shard` as one file.

use std::path::PathBuf;

use sppo_training::config::OnBadRow;
use sppo_training::data::{PromptRow, RowFile};
use sppo_training::stages::join_responses;

use super::args::OverwriteArg;
use crate::errors::OrUser;
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo join --prompts prompts.jsonl --out responses.jsonl r0.jsonl r1.jsonl
  sppo join --prompts prompts.parquet --out responses.parquet shards/*.parquet
The result is the file that one process would have written. Missing prompts are named.")]
pub struct Args {
    /// The prompts of all shards, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// The rows of all shards, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What `sppo generate --shard I/N` or `sppo judge --shard I/N` wrote, for every I.
    #[arg(required = true, value_name = "SHARD")]
    pub shards: Vec<PathBuf>,
    /// What becomes of prompts that cannot be used, or have no row in any shard: stop or skip (left
    /// out and counted).
    #[arg(long, value_name = "WHAT", default_value_t = OnBadRow::Stop)]
    pub on_bad_row: OnBadRow,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
}

/// Joins shards.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let skip_bad = args.on_bad_row.skips();
    let prompts = RowFile::<PromptRow>::read(&args.prompts, skip_bad).or_user()?;
    let rows = join_responses(
        (&args.prompts, &prompts.rows),
        &args.shards,
        &args.out,
        args.on_bad_row,
        args.overwrite.existing(),
    )?;
    tracing::info!("{rows} rows");
    output::made(&args.out, json)
}
