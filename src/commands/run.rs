//! `sppo run`: the whole self-play loop.

use std::path::Path;

use serde::Serialize;
use sppo_model::ops::TrainingOps;
use sppo_training::config::Config;
use sppo_training::plan::{Assumed, Plan};
use sppo_training::self_play::{self, Planned, Report};
use sppo_training::stages::StageError;
use tracing::subscriber::{NoSubscriber, with_default};

use super::args::{ConfigArgs, OverwriteArg, refuse_bf16};
use crate::backend::{Device, WithBackend, dispatch_connected};
#[cfg(feature = "dashboard")]
use crate::job;
use crate::progress::Console;
use crate::start::{Place, Start, inputs, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo run                                      the run of ./config.toml
  sppo run --config configs/llama3-8b-h200.toml
  sppo run --set iterations=1 --set output_dir=runs/short
  sppo run --dashboard                          live: curves, win rates, judged answers, time left
A run that was stopped goes on when the same command is given again. What was made with other
settings is set aside, as iteration-1.before-DATE; --overwrite replaces it.")]
pub struct Args {
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Shows the run in the whole terminal: q leaves the run alone, p pauses drawing.
    #[arg(long)]
    pub dashboard: bool,
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
    let job = Run {
        config: &config,
        overwrite: args.overwrite.overwrite,
        planned: planned(&config, Device::is_cpu_name(device.kind())?),
    };
    let report = {
        // It leaves with this block: the terminal is as it was before anything else is said.
        let _dashboard = match args.dashboard {
            true => dashboard(&config)?,
            false => None,
        };
        dispatch_connected(device, &config.cluster, config.train.matmul, job)??
    };
    output::print(&report.table())?;
    if let Some(page) = &report.page {
        output::print(&format!("\nTo look at: {}", page.display()))?;
    }
    match json {
        true => output::json(&Line::new(&report)),
        false => Ok(()),
    }
}

#[cfg(feature = "dashboard")]
type Dashboard = crate::dashboard::Live;
#[cfg(not(feature = "dashboard"))]
type Dashboard = std::convert::Infallible;

/// The dashboard, where there is a terminal for it and this is the rank that speaks.
#[cfg(feature = "dashboard")]
fn dashboard(config: &Config) -> anyhow::Result<Option<Dashboard>> {
    if job::follows() {
        return Ok(None);
    }
    if !crate::dashboard::has_terminal() {
        tracing::info!("stderr is no terminal, so there are lines instead of a dashboard");
        return Ok(None);
    }
    Dashboard::start(config.output_dir.clone()).map(Some)
}

#[cfg(not(feature = "dashboard"))]
fn dashboard(_: &Config) -> anyhow::Result<Option<Dashboard>> {
    Err(crate::errors::user(
        "--dashboard: this build has no dashboard; build it with the cargo feature `dashboard`",
    ))
}

/// What the stages of an iteration take by the plan; nothing where it cannot be reckoned, for then
/// what was measured has to do.
fn planned(config: &Config, host: bool) -> Option<Planned> {
    let assumed = Assumed {
        host,
        ..Assumed::default()
    };
    // What there is to say of the rows is said by the run itself.
    let silent = NoSubscriber::default();
    let plan = with_default(silent, || Plan::new(config, assumed)).ok()?;
    let hours = plan.cluster.by_ranks.last()?.hours;
    Some(Planned {
        generation: 3600.0 * hours.generation,
        judging: 3600.0 * hours.judging,
        reference: 3600.0 * hours.reference,
        training: 3600.0 * hours.training,
    })
}

struct Run<'a> {
    config: &'a Config,
    overwrite: bool,
    planned: Option<Planned>,
}

impl WithBackend for Run<'_> {
    type Output = Result<Report, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let console = Console::default();
        self_play::run::<B>(self.config, self.overwrite, self.planned, &device, &console)
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
