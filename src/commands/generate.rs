//! `sppo generate`: samples responses to prompts.

use std::path::PathBuf;

use sppo_model::chat_template::TemplateSource;
use sppo_model::ops::TrainingOps;
use sppo_training::config::{self, resolve_model};
use sppo_training::data::{PromptRow, RowFile};
use sppo_training::stages::{Generation, Sampling, StageError, generate};

use super::args::{
    DateArg, DeviceArg, OverwriteArg, PromptArgs, SamplingArgs, Shard, TemplateArg,
    refuse_bf16_flag,
};
use crate::backend::{WithBackend, dispatch};
use crate::errors::OrUser;
use crate::output;
use crate::progress::Console;
use crate::start::{Place, Start, start};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo generate --model runs/default/model --prompts prompts.jsonl --out responses.jsonl
  sppo generate --model DIR --prompts p.parquet --out r.jsonl --samples 1 --temperature 0
  sppo generate --model BASE --prompts p.jsonl --out r.jsonl --raw --max-new-tokens 64
  sppo generate --model DIR --prompts p.jsonl --out r0.jsonl --shard 0/4 --device cuda:0 --precision bf16
Given again after a stop, it keeps the responses that are there and does the rest. FILE.sppo.json beside
the output says what it was made from; one that was made from something else stays as it is.")]
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
    #[command(flatten)]
    pub limits: PromptArgs,
    #[command(flatten)]
    pub date: DateArg,
    /// Does only part I of N of the prompts.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    #[command(flatten)]
    pub template: TemplateArg,
    /// Continues prompts as they are, without a chat template; they must be strings.
    #[arg(long, conflicts_with = "chat_template")]
    pub raw: bool,
    /// Adds the summed log-probability of each response under the model, in nats.
    #[arg(long)]
    pub logprobs: bool,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub device: DeviceArg,
}

/// Samples responses.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    refuse_bf16_flag(args.sampling.precision, args.device.device)?;
    let model = resolve_model(&args.model)?;
    let device = start(Start {
        output: Place::File(&args.out),
        config: None,
        inputs: vec![
            ("the model", model.clone()),
            ("the prompts", args.prompts.clone()),
        ],
        device: args.device.device,
    })?;
    let skip_bad = args.limits.bad.on_bad_row.skips();
    let mut prompts = RowFile::<PromptRow>::read(&args.prompts, skip_bad).or_user()?;
    if let Some(shard) = args.shard {
        prompts.retain(|number, _| (number - 1) % shard.of == shard.index);
    }
    let settings = config::Generate::from(&args.sampling);
    let job = Generation {
        model: &model,
        template: match args.raw {
            true => TemplateSource::Raw,
            false => TemplateSource::of(args.template.chat_template.as_deref()),
        },
        prompts: &prompts.rows,
        prompts_file: &args.prompts,
        row_numbers: Some(&prompts.numbers),
        limits: (&args.limits).into(),
        out: &args.out,
        sampling: Sampling::from(&settings),
        stop_token_ids: settings.stop_token_ids.as_deref(),
        date: args.date.date.map(|date| date.0),
        seed: args.sampling.seed,
        logprobs: args.logprobs,
        label: "generating",
        existing: args.overwrite.existing(),
    };
    dispatch(device, Generate(job))??;
    output::made(&args.out, json)
}

struct Generate<'a>(Generation<'a>);

impl WithBackend for Generate<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        generate::<B::InnerBackend>(self.0, &device, &Console::default())
    }
}
