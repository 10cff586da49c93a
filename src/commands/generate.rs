//! `sppo generate`: samples responses to prompts.

use std::path::{Path, PathBuf};

use sppo_model::chat_template::TemplateSource;
use sppo_model::ops::TrainingOps;
use sppo_training::cluster::{self, lead};
use sppo_training::config::{self, Matmul};
use sppo_training::data::{PromptRow, RowFile};
use sppo_training::stages::{
    AnswerFormat, Answers, Generation, ReadyAnswers, Sampling, StageError, generate,
};

use super::args::{
    DateArg, DeviceArg, OverwriteArg, PromptArgs, SamplingArgs, Shard, TemplateArg,
    refuse_bf16_flag,
};
use crate::backend::{Device, WithBackend, dispatch};
use crate::errors::{OrUser, user};
use crate::progress::Console;
use crate::start::{Place, Start, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo generate --model runs/default/iteration-3/model --prompts prompts.jsonl --out responses.jsonl
  sppo generate --model DIR --prompts p.parquet --out r.jsonl --samples 1 --temperature 0
  sppo generate --model BASE --prompts p.jsonl --out r.jsonl --raw --max-new-tokens 64
  sppo generate --model DIR --prompts p.jsonl --out r0.jsonl --shard 0/4 --device cuda:0 --precision bf16
  sppo generate --model DIR --prompts alpaca_eval.json --out outputs.json --format alpaca-eval
  sppo generate --model DIR --prompts question.jsonl --out NAME.jsonl --format arena-hard
Given again after a stop, it keeps the responses that are there and does the rest. FILE.sppo.json beside
the output says what it was made from; one that was made from something else stays as it is.")]
pub struct Args {
    /// Checkpoint folder, or Hugging Face repository id (org/name[@revision]), downloaded if need be.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Prompts, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Responses, .jsonl or .parquet; of another format its own kind of file.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// What is written: rows for the other commands; alpaca_eval's model outputs, a .json file; or
    /// arena-hard-auto's model answers, a .jsonl file. For the last two --samples is 1, and the rows
    /// go to .NAME.rows.jsonl beside the file, from which they are continued.
    #[arg(long, value_enum, default_value_t = Format::Rows)]
    pub format: Format,
    /// What the model is called in the files of other programs; its folder's name unless given.
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
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

/// Whose file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Rows for the other commands.
    Rows,
    /// alpaca_eval's model outputs.
    AlpacaEval,
    /// arena-hard-auto's model answers.
    ArenaHard,
}

impl Format {
    fn of_others(self) -> Option<AnswerFormat> {
        match self {
            Self::Rows => None,
            Self::AlpacaEval => Some(AnswerFormat::AlpacaEval),
            Self::ArenaHard => Some(AnswerFormat::ArenaHard),
        }
    }
}

/// Samples responses.
pub fn run(mut args: Args, json: bool) -> anyhow::Result<()> {
    refuse_bf16_flag(args.sampling.precision, args.device.device)?;
    let format = args.format.of_others();
    check_format(&mut args)?;
    hub::bring(hub::rows([Some(&args.prompts)]))?;
    let model = hub::model(&args.model)?;
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
    let name = model_name(&args);
    let answers = format.map(|format| Answers {
        format,
        out: &args.out,
        model_name: &name,
        prompts: &prompts.rows,
        numbers: &prompts.numbers,
        prompts_file: &args.prompts,
        skip_bad,
        existing: args.overwrite.existing(),
    });
    let answers = answers.map(Answers::check).transpose()?;
    let rows = match &answers {
        Some(_) => Answers::row_file(&args.out),
        None => args.out.clone(),
    };
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
        out: &rows,
        sampling: Sampling::from(&settings),
        stop_token_ids: settings.stop_token_ids.as_deref(),
        date: args.date.date.map(|date| date.0),
        seed: args.sampling.seed,
        logprobs: args.logprobs,
        label: "generating",
        existing: args.overwrite.existing(),
    };
    match answers {
        None => dispatch(device, Matmul::Auto, Generate(job))??,
        Some(answers) => answer(&answers, job, device)?,
    }
    output::made(&args.out, json)
}

/// Samples into the row file, and makes the other program's file of it.
fn answer(answers: &ReadyAnswers<'_>, job: Generation<'_>, device: Device) -> anyhow::Result<()> {
    let made_from = || job.made_from(&job.open_folder()?);
    let world = cluster::world();
    if lead(world, || answers.are_there(&made_from()?))? {
        return Ok(());
    }
    dispatch(device, Matmul::Auto, Generate(job))??;
    Ok(lead(world, || answers.write(&made_from()?, job.out))?)
}

/// The files of other programs hold one answer a prompt, to all of them.
fn check_format(args: &mut Args) -> anyhow::Result<()> {
    if args.format == Format::Rows {
        return match &args.model_name {
            Some(_) => Err(user(
                "--model-name is for --format alpaca-eval and arena-hard; rows do not name their model",
            )),
            None => Ok(()),
        };
    }
    if args.shard.is_some() {
        return Err(user(
            "--shard makes a part of the rows, and the file of --format is made of all; leave --shard out, or start many processes (mpirun), which share the prompts",
        ));
    }
    match args.sampling.samples {
        None | Some(1) => {
            args.sampling.samples = Some(1);
            Ok(())
        }
        Some(samples) => Err(user(format!(
            "--samples {samples}: the file of this --format holds one answer a prompt; give --samples 1"
        ))),
    }
}

/// The name of the model's folder.
fn model_name(args: &Args) -> String {
    let folder = Path::new(&args.model);
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
    // As it was given, if that says a name: a link has one of its own.
    let name = folder.file_name().or(whole.file_name()).unwrap_or_default();
    let name = name.to_string_lossy().into_owned();
    args.model_name.clone().unwrap_or(name)
}

struct Generate<'a>(Generation<'a>);

impl WithBackend for Generate<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        generate::<B::InnerBackend>(self.0, &device, &Console::default())
    }
}
