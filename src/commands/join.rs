//! `sppo join`: the shards of `sppo generate --shard` or `sppo judge --shard` as one file.

use std::path::PathBuf;

use sppo_training::data::{PromptRow, read_rows};
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
    #[command(flatten)]
    pub overwrite: OverwriteArg,
}

/// Joins shards.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let prompts: Vec<PromptRow> = read_rows(&args.prompts).or_user()?;
    let rows = join_responses(
        (&args.prompts, &prompts),
        &args.shards,
        &args.out,
        args.overwrite.existing(),
    )?;
    tracing::info!("{rows} rows");
    output::made(&args.out, json)
}
