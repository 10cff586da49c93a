//! `sppo judge`: scores responses.

use std::path::PathBuf;

use sppo_training::config::{Config, JudgeKind};
use sppo_training::stages::{build_judge, judge_responses};

use crate::errors::user;
use crate::output;
use crate::progress::Console;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo judge --responses responses.jsonl --judge rubric --config config.toml --out judged.jsonl
  sppo judge --responses responses.jsonl --judge scores --scores scores.jsonl --out judged.jsonl")]
pub struct Args {
    /// Responses of `sppo generate`.
    #[arg(long, value_name = "FILE")]
    pub responses: PathBuf,
    /// What scores them: rubric or scores.
    #[arg(long, value_name = "KIND")]
    pub judge: JudgeKind,
    /// Judged responses, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Configuration whose [judge.rubric] holds the rules.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Overrides a key of the configuration, e.g. judge.rubric.KEY=VALUE.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Scores of every response, for --judge scores.
    #[arg(long, value_name = "FILE", required_if_eq("judge", "scores"))]
    pub scores: Option<PathBuf>,
    /// Folder of the judge's model.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Folder whose chat template renders prompts that are message lists, for judges that read
    /// the prompt; rubric and scores do not.
    #[arg(long, value_name = "DIR")]
    pub chat_template: Option<PathBuf>,
}

/// Judges responses.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let mut config = Config::load(args.config.as_deref(), &args.set)?.judge;
    config.kind = args.judge;
    config.scores = args.scores.or(config.scores);
    if let Some(folder) = args.model {
        return Err(user(format!(
            "--model {}: the {} judge has no model; leave the flag away",
            folder.display(),
            args.judge
        )));
    }
    let mut judge = build_judge(&config)?;
    judge_responses(
        &args.responses,
        judge.as_mut(),
        &args.out,
        &Console::default(),
    )?;
    output::made(&args.out, json)
}
