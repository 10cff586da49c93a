//! `sppo generate`: samples responses to prompts.

use std::path::PathBuf;

use super::args::{DeviceArg, SamplingArgs, Shard};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo generate --model runs/default/model --prompts prompts.jsonl --out responses.jsonl
  sppo generate --model DIR --prompts p.parquet --out r.jsonl --samples 1 --temperature 0
  sppo generate --model DIR --prompts p.jsonl --out r0.jsonl --shard 0/4 --device cuda:0
Given again after a stop, it keeps the responses that are there and does the rest.")]
pub struct Args {
    /// Checkpoint folder or Hugging Face repository id in the local cache.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Prompts, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Responses, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// Does only part I of N of the prompts.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    #[command(flatten)]
    pub device: DeviceArg,
}
