//! `sppo run`: the whole self-play loop.

use std::path::Path;

use serde::Serialize;
use sppo_model::ops::TrainingOps;
use sppo_training::config::Config;
use sppo_training::self_play::{self, Report};
use sppo_training::stages::StageError;

use super::args::{ConfigArgs, OverwriteArg, refuse_bf16};
use crate::backend::{WithBackend, dispatch_connected};
use crate::progress::Console;
use crate::start::{Place, Start, inputs, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo run                                      the run of ./config.toml
  sppo run --config configs/llama3-8b-h200.toml
  sppo run --set iterations=1 --set output_dir=runs/short
A run that was stopped goes on when the same command is given again. What was made with other
settings is set aside, as iteration-1.before-DATE; --overwrite replaces it.")]
pub struct Args {
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs the loop, or what is left of it.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (config, device) = args.config.load()?;
    refuse_bf16("train", config.train.precision, device)?;
    refuse_bf16("judge", config.judge.precision, device)?;
    refuse_bf16("generate", config.generate.precision, device)?;
    let files = [
        ("sft.data", config.sft.data.as_ref()),
        ("prompts.heldout", config.prompts.heldout.as_ref()),
    ];
    let prompts = config.prompts.files().iter();
    let prompts = prompts.map(|file| ("prompts", Some(file)));
    let files: Vec<_> = prompts.chain(files).collect();
    let rows = hub::rows(files.iter().map(|(_, file)| *file));
    let models = hub::policy(&config).chain(hub::judge(&config.judge));
    hub::bring(models.chain(rows))?;
    let device = start(Start {
        output: Place::Folder(&config.output_dir),
        config: Some(&config),
        inputs: inputs(&config, files),
        device,
    })?;
    let report = dispatch_connected(
        device,
        &config.cluster,
        Run(&config, args.overwrite.overwrite),
    )??;
    output::print(&report.table())?;
    match json {
        true => output::json(&Line::new(&report)),
        false => Ok(()),
    }
}

struct Run<'a>(&'a Config, bool);

impl WithBackend for Run<'_> {
    type Output = Result<Report, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        self_play::run::<B>(self.0, self.1, &device, &Console::default())
    }
}

/// The last line for programs.
#[derive(Serialize)]
struct Line<'a> {
    iterations: Vec<Iteration<'a>>,
}

#[derive(Serialize)]
struct Iteration<'a> {
    iteration: usize,
    win_rate: f64,
    win_rate_se: f64,
    win_rate_previous: f64,
    mean_length: f64,
    checkpoint: &'a Path,
}

impl<'a> Line<'a> {
    fn new(report: &'a Report) -> Self {
        let iterations = report.iterations.iter().map(|entry| Iteration {
            iteration: entry.iteration,
            win_rate: entry.win_rate,
            win_rate_se: entry.win_rate_se,
            win_rate_previous: entry.win_rate_previous,
            mean_length: entry.mean_length,
            checkpoint: &entry.checkpoint,
        });
        Self {
            iterations: iterations.collect(),
        }
    }
}
