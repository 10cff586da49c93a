//! `sppo generate`: samples responses to prompts.

use sppo_model::ops::TrainingOps;
use std::path::PathBuf;

use sppo_training::config::{Precision, resolve_model};
use sppo_training::data::{PromptRow, read_rows};
use sppo_training::stages::{Generation, StageError, generate};

use super::args::{DeviceArg, SamplingArgs, Shard, count, refuse_bf16_flag};
use crate::backend::{WithBackend, dispatch};
use crate::errors::OrUser;
use crate::output;
use crate::progress::Console;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo generate --model runs/default/model --prompts prompts.jsonl --out responses.jsonl
  sppo generate --model DIR --prompts p.parquet --out r.jsonl --samples 1 --temperature 0
  sppo generate --model DIR --prompts p.jsonl --out r0.jsonl --shard 0/4 --device cuda:0 --precision bf16
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
    /// Adds the summed log-probability of each response under the model, in nats.
    #[arg(long)]
    pub logprobs: bool,
    /// Most memory for keys and values; fewer sequences are generated together where it is short.
    #[arg(long, value_name = "MIB", value_parser = count)]
    pub cache_memory_mib: Option<usize>,
    /// Number format of weights, activations and cache: f32 or bf16.
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    #[command(flatten)]
    pub device: DeviceArg,
}

/// Samples responses.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    refuse_bf16_flag(args.precision, args.device.device)?;
    let model = resolve_model(&args.model)?;
    let mut prompts: Vec<PromptRow> = read_rows(&args.prompts).or_user()?;
    if let Some(shard) = args.shard {
        let mut number = 0..;
        prompts.retain(|_| {
            number
                .next()
                .is_some_and(|n: usize| n % shard.of == shard.index)
        });
    }
    let sampling = args.sampling;
    let job = Generation {
        model: &model,
        prompts: &prompts,
        out: &args.out,
        samples: sampling.samples,
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        max_new_tokens: sampling.max_new_tokens,
        seed: sampling.seed,
        batch: sampling.batch,
        cache_memory_mib: args.cache_memory_mib,
        dtype: args.precision.dtype(),
        logprobs: args.logprobs,
        label: "generating",
    };
    dispatch(args.device.device, Generate(job))??;
    output::made(&args.out, json)
}

struct Generate<'a>(Generation<'a>);

impl WithBackend for Generate<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        generate::<B::InnerBackend>(self.0, &device, &Console::default())
    }
}
