//! `sppo judge`: scores responses.

use std::path::{Path, PathBuf};

use sppo_model::ops::TrainingOps;
use sppo_training::config::{self, Config, Date, JudgeKind, OnBadRow};
use sppo_training::files::mark_beside;
use sppo_training::judge::{DryRun, cache_beside};
use sppo_training::stages::{
    Judging, Part, StageError, build_judge, date_of, dry_run, judge_responses, same_date,
};

use super::args::{DateArg, DeviceArg, OverwriteArg, Shard, bad_row_override, refuse_bf16};
use crate::backend::{WithBackend, dispatch};
use crate::errors::user;
use crate::progress::Console;
use crate::start::{Place, Start, inputs, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo judge --responses responses.jsonl --judge pairrm --model llm-blender/PairRM-hf \
      --chat-template meta-llama/Meta-Llama-3-8B-Instruct --out judged.jsonl --device cuda
  sppo judge --responses responses.jsonl --judge reward --model DIR --out judged.jsonl --shard 0/4
  sppo judge --responses responses.jsonl --judge http --config config.toml --out judged.jsonl --dry-run
  sppo judge --responses responses.jsonl --judge rubric --config config.toml --out judged.jsonl
  sppo judge --responses responses.jsonl --judge scores --scores scores.jsonl --out judged.jsonl
Given again after a stop, it keeps the rows that are there and does the rest.")]
pub struct Args {
    /// Responses of `sppo generate`.
    #[arg(long, value_name = "FILE")]
    pub responses: PathBuf,
    /// What scores them: pairrm, reward, rubric, http or scores.
    #[arg(long, value_name = "KIND")]
    pub judge: JudgeKind,
    /// Judged responses, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Configuration whose [judge] holds the judge's settings.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Overrides a key of the configuration, e.g. judge.temperature=0.5.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Scores of every response, for --judge scores.
    #[arg(long, value_name = "FILE", required_if_eq("judge", "scores"))]
    pub scores: Option<PathBuf>,
    /// Folder of the judge's model, or Hugging Face repository id, downloaded if need be.
    #[arg(long, value_name = "DIR")]
    pub model: Option<String>,
    /// Folder whose chat template renders prompts that are message lists, as pairrm needs, or a
    /// Jinja file; reward takes such a file instead of its folder's template.
    #[arg(long, value_name = "DIR|FILE")]
    pub chat_template: Option<String>,
    /// Overrides on_bad_row: stop (nothing begins) or skip (rows that cannot be used are left out).
    #[arg(long, value_name = "WHAT")]
    pub on_bad_row: Option<OnBadRow>,
    #[command(flatten)]
    pub date: DateArg,
    /// Does only part I of N of the rows.
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Prints what --judge http would ask, and sends nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub device: DeviceArg,
}

impl Args {
    /// The configuration with the flags of the command line above it.
    fn config(&self) -> anyhow::Result<Config> {
        let mut overrides = vec![format!("judge.kind={}", self.judge)];
        let path = self.scores.as_ref().map(|path| path.display().to_string());
        let flags = [
            ("scores", path.as_ref()),
            ("model", self.model.as_ref()),
            ("chat_template", self.chat_template.as_ref()),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                overrides.push(format!("judge.{key}={}", toml::Value::from(value.as_str())));
            }
        }
        overrides.extend(self.set.iter().cloned());
        overrides.extend(self.date.overrides());
        overrides.extend(bad_row_override(self.on_bad_row));
        let mut config = Config::load(self.config.as_deref(), &overrides)?;
        let cache = || cache_beside(&self.out);
        let cache = config.judge.http.cache.get_or_insert_with(cache);
        let place = |path: &Path| std::path::absolute(path).ok();
        for (flag, path) in [("--out", &self.out), ("--responses", &self.responses)] {
            if place(path) == place(cache) {
                return Err(user(format!(
                    "judge.http.cache and {flag} are both {}; choose another file for the cache",
                    path.display()
                )));
            }
        }
        Ok(config)
    }
}

/// Judges responses.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let config = args.config()?;
    let Config { judge, model, .. } = &config;
    let on_bad_row = config.on_bad_row;
    if args.dry_run {
        return look(&args, judge, on_bad_row, json);
    }
    refuse_bf16("judge", judge.precision, args.device.device)?;
    hub::bring(hub::judge(judge).chain(hub::rows([Some(&args.responses)])))?;
    let device = start(Start {
        output: Place::File(&args.out),
        config: Some(&config),
        inputs: inputs(&config, [("the responses", Some(&args.responses))]),
        device: args.device.device,
    })?;
    dispatch(
        device,
        config.train.matmul,
        JudgeResponses {
            args: &args,
            config: judge,
            date: model.date,
            on_bad_row,
        },
    )??;
    output::made(&args.out, json)
}

/// Prints what the http judge would ask.
fn look(
    args: &Args,
    config: &config::JudgeConfig,
    on_bad_row: OnBadRow,
    json: bool,
) -> anyhow::Result<()> {
    if args.judge != JudgeKind::Http {
        return Err(user(
            "--dry-run is for --judge http; the other judges cost nothing",
        ));
    }
    let run = dry_run(config, &args.responses, on_bad_row)?;
    let DryRun {
        rows,
        comparisons,
        cached,
        ..
    } = run;
    let left = comparisons - cached;
    output::print(&format!(
        "{rows} rows, {comparisons} comparisons, {cached} of them in the cache: {left} requests to {}\n",
        run.url
    ))?;
    if let Some(example) = &run.example {
        output::print(&format!("the first request:\n{example:#}\n"))?;
    }
    match json {
        true => output::json(&serde_json::json!({
            "rows": rows, "comparisons": comparisons, "cached": cached, "requests": left
        })),
        false => Ok(()),
    }
}

struct JudgeResponses<'a> {
    args: &'a Args,
    config: &'a config::JudgeConfig,
    date: Option<Date>,
    on_bad_row: OnBadRow,
}

impl WithBackend for JudgeResponses<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let args = self.args;
        // One that was begun yesterday goes on with yesterday's date.
        let begun = || date_of(&mark_beside(&args.out), "judge.date");
        let date = same_date(self.date.map(|date| date.0).or_else(begun))?;
        let mut judge = build_judge::<B::InnerBackend>(self.config, date, &device)?;
        let part = args.shard.map(|shard| Part {
            index: shard.index,
            of: shard.of,
        });
        let console = Console::default();
        let job = Judging {
            responses: &args.responses,
            out: &args.out,
            part,
            label: "judging",
            on_bad_row: self.on_bad_row,
            existing: args.overwrite.existing(),
        };
        judge_responses(job, judge.as_mut(), &console).map(|_| ())
    }
}
