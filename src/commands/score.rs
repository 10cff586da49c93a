//! `sppo score`: summed response log-probabilities of pairs.

use std::path::PathBuf;

use sppo_model::chat_template::TemplateSource;
use sppo_model::ops::TrainingOps;
use sppo_training::config::{Matmul, Rows, Train};
use sppo_training::stages::{Scoring, StageError, score};

use super::args::{BadRowArg, DateArg, DeviceArg, OverwriteArg, TemplateArg, count};
use crate::backend::{WithBackend, dispatch};
use crate::progress::Console;
use crate::start::{Place, Start, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo score --model runs/default/iteration-3/model --data pairs.jsonl --out scores.jsonl
  sppo score --model DIR --data pairs.parquet --out scores.parquet --rows official")]
pub struct Args {
    /// Checkpoint folder, or Hugging Face repository id (org/name[@revision]), downloaded if need be.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Pairs, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// chosen_logps and rejected_logps of each row, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How a row becomes tokens: clean or official.
    #[arg(long, default_value_t = Train::default().rows)]
    pub rows: Rows,
    /// Longest prompt with response, in tokens.
    #[arg(long, value_name = "N", default_value_t = Train::default().max_length, value_parser = count)]
    pub max_length: usize,
    /// Longest prompt, in tokens, where prompt and response are too long together.
    #[arg(long, value_name = "N", default_value_t = Train::default().max_prompt_length, value_parser = count)]
    pub max_prompt_length: usize,
    #[command(flatten)]
    pub template: TemplateArg,
    /// Pairs computed together; does not change the result.
    #[arg(long, value_name = "N", default_value_t = Train::default().batch_size, value_parser = count)]
    pub batch: usize,
    #[command(flatten)]
    pub bad: BadRowArg,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub date: DateArg,
    #[command(flatten)]
    pub device: DeviceArg,
}

/// Scores pairs.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    hub::bring(hub::rows([Some(&args.data)]))?;
    let model = hub::model(&args.model)?;
    let job = Scoring {
        model: &model,
        template: TemplateSource::of(args.template.chat_template.as_deref()),
        data: &args.data,
        out: &args.out,
        rows: args.rows,
        max_length: args.max_length,
        max_prompt_length: args.max_prompt_length,
        on_bad_row: args.bad.on_bad_row,
        batch: args.batch,
        existing: args.overwrite.existing(),
        date: args.date.date.map(|date| date.0),
    };
    let device = start(Start {
        output: Place::File(&args.out),
        config: None,
        inputs: vec![
            ("the model", model.clone()),
            ("the pairs", args.data.clone()),
        ],
        device: args.device.device,
    })?;
    dispatch(device, Matmul::Auto, Score(job))??;
    output::made(&args.out, json)
}

struct Score<'a>(Scoring<'a>);

impl WithBackend for Score<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        score::<B::InnerBackend>(self.0, &device, &Console::default())
    }
}
