//! `sppo eval`: win rate of one model's answers against another's under a judge; below it the
//! numbers of other programs' files.

mod leaderboard;
mod winrate;

use std::path::{Path, PathBuf};

use sppo_model::chat_template::{NaiveDate, TemplateSource, today};
use sppo_model::ops::TrainingOps;
use sppo_training::cluster::{self, lead};
use sppo_training::config::{Date, JudgeConfig, OnTooLong, resolve_model};
use sppo_training::data::{PromptRow, RowFile};
use sppo_training::files::{MadeFrom, Mark, fingerprint, write_mark};
use sppo_training::judge;
use sppo_training::stages::{
    Comparison, Evaluation, Generation, PromptLimits, Sampling, StageError, build_judge_of,
    compare_answers, date_of, generate, same_date,
};

use super::args::{ConfigArgs, OverwriteArg, refuse_bf16};
use crate::backend::{WithBackend, dispatch};
use crate::errors::{OrUser, user};
use crate::progress::Console;
use crate::start::{Place, Start, inputs, start};
use crate::terminal::visible;
use crate::{hub, output};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "\
Examples:
  sppo eval --model runs/default/iteration-3/model --against runs/sft/model --prompts heldout.jsonl
  sppo eval --model A --against B --prompts heldout.jsonl --set eval.prompts=100 --json
The judge is that of [judge] in the configuration; [eval] says how the answers are made.
  sppo eval leaderboard --results lm-eval
  sppo eval winrate --annotations annotations.json")]
pub struct Args {
    /// Tables of other programs' files, instead of a comparison.
    #[command(subcommand)]
    pub table: Option<Table>,
    /// Model whose win rate is measured: folder or Hugging Face repository id.
    #[arg(long, value_name = "DIR", required = true)]
    pub model: Option<String>,
    /// Model that it is compared with.
    #[arg(long, value_name = "DIR", required = true)]
    pub against: Option<String>,
    /// Prompts to answer; those of [prompts] heldout unless given.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Folder for both models' judged answers.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Numbers from the files of other programs.
#[derive(clap::Subcommand)]
pub enum Table {
    /// Makes the Open LLM Leaderboard's tables of lm-evaluation-harness' results.
    Leaderboard(leaderboard::Args),
    /// Makes AlpacaEval's win rates of its annotations.
    Winrate(winrate::Args),
}

impl Table {
    /// What the command is called.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Leaderboard(_) => "sppo eval leaderboard",
            Self::Winrate(_) => "sppo eval winrate",
        }
    }

    fn run(self, json: bool) -> anyhow::Result<()> {
        match self {
            Self::Leaderboard(args) => leaderboard::run(args, json),
            Self::Winrate(args) => winrate::run(args, json),
        }
    }
}

/// Answers the prompts with both models and compares, or makes a table.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    if let Some(table) = args.table {
        return table.run(json);
    }
    // clap asks for both where there is no table to make.
    let (Some(model), Some(other)) = (args.model, args.against) else {
        return Err(user("give --model DIR and --against DIR"));
    };
    let (config, device) = args.config.load()?;
    let file = args.prompts.or(config.prompts.heldout.clone());
    let file =
        file.ok_or_else(|| user("give --prompts FILE, or prompts.heldout in the configuration"))?;
    hub::bring(hub::judge(&config.judge).chain(hub::rows([Some(&file)])))?;
    let read = RowFile::<PromptRow>::read(&file, config.on_bad_row.skips()).or_user()?;
    let (mut prompts, numbers) = (read.rows, read.numbers);
    prompts.truncate(config.eval.prompts.unwrap_or(usize::MAX));
    let folder = args.out.unwrap_or_else(|| config.output_dir.join("eval"));
    refuse_bf16("judge", config.judge.precision, device)?;
    refuse_bf16("generate", config.generate.precision, device)?;
    let mut judging = config.judge.clone();
    let policy = hub::model(&model)?;
    let against = hub::model(&other)?;
    let mut read = inputs(&config, [("the prompts", Some(&file))]);
    read.extend([("the model", policy.clone()), ("the other model", against)]);
    let device = start(Start {
        output: Place::Folder(&folder),
        config: Some(&config),
        inputs: read,
        device,
    })?;
    let template = config.model.template();
    let cache = || folder.join("judge-cache.jsonl");
    judging.http.cache.get_or_insert_with(cache);
    let date = same_date(Some(date_of_folder(&folder, config.model.date)))?.map(Date);
    let mut judge = dispatch(
        device,
        config.train.matmul,
        Judging(&judging, (&policy, template), date),
    )??;
    let limits = PromptLimits::from(&config);
    let mut answers = Vec::new();
    for name in [&model, &other] {
        let model = resolve_model(name)?;
        let mut job = Generation {
            model: &model,
            template,
            prompts: &prompts,
            prompts_file: &file,
            row_numbers: Some(&numbers),
            limits,
            out: &folder,
            sampling: Sampling::of_answers(&config),
            stop_token_ids: config.generate.stop_token_ids.as_deref(),
            date: date.map(|date| date.0),
            seed: config.seed,
            logprobs: false,
            label: "answering",
            existing: args.overwrite.existing(),
        };
        // Named by what they depend on, so that a repeated evaluation finds its answers.
        let key = job.made_from(&job.open_folder()?)?.key();
        let out = folder.join(format!("answers-{}.jsonl", &key[..16]));
        job.out = &out;
        lead(cluster::world(), || keep_date(&folder, date))?;
        dispatch(device, config.train.matmul, Answers(job))??;
        answers.push((out, key));
    }
    let judge_text = judge.description().to_string();
    let key = fingerprint([
        ("model", answers[0].1.as_bytes()),
        ("against", answers[1].1.as_bytes()),
        ("judge", judge_text.as_bytes()),
    ]);
    let files = Comparison {
        answers: &answers[0].0,
        against: &answers[1].0,
        both: &folder.join(format!("compared-{}.jsonl", &key[..16])),
        judged: &folder.join(format!("judged-{}.jsonl", &key[..16])),
        on_bad_row: config.on_bad_row,
        // Another model's context or template may refuse others.
        skip_unanswered: config.on_bad_row.skips() || config.prompts.on_too_long == OnTooLong::Skip,
        existing: args.overwrite.existing(),
    };
    let evaluation = compare_answers(files, judge.as_mut(), &Console::default())?;
    output::print(&text(&evaluation))?;
    match json {
        true => output::json(&evaluation),
        false => Ok(()),
    }
}

/// The day that templates see: the given one, else that of the folder's first evaluation, which its
/// mark keeps, so that one that was stopped yesterday finds its answers.
fn date_of_folder(folder: &Path, given: Option<Date>) -> NaiveDate {
    let kept = || date_of(&folder.join(MARK), DATE);
    given.map(|date| date.0).or_else(kept).unwrap_or_else(today)
}

/// Keeps the day of a folder's first evaluation.
fn keep_date(folder: &Path, date: Option<Date>) -> Result<(), StageError> {
    let mark = folder.join(MARK);
    let (None, Some(date)) = (date_of(&mark, DATE), date) else {
        return Ok(());
    };
    let making = MadeFrom::new("eval").setting(DATE, date);
    Ok(write_mark(&mark, &Mark::new(making))?)
}

const MARK: &str = "eval.sppo.json";
const DATE: &str = "date";

fn text(evaluation: &Evaluation) -> String {
    format!(
        "win rate {:.1} % ± {:.1} (95 %), length-controlled {:.1} %, over {} prompts, answers of {:.0} against {:.0} characters\n{}\n",
        100.0 * evaluation.win_rate,
        196.0 * evaluation.win_rate_se,
        100.0 * evaluation.length_controlled_win_rate,
        evaluation.prompts,
        evaluation.mean_length,
        evaluation.mean_length_against,
        visible(&evaluation.judged_by())
    )
}

struct Judging<'a>(
    &'a JudgeConfig,
    (&'a Path, TemplateSource<'a>),
    Option<Date>,
);

impl WithBackend for Judging<'_> {
    type Output = Result<Box<dyn judge::Judge>, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let date = self.2.map(|date| date.0);
        build_judge_of::<B::InnerBackend>(self.0, Some(self.1), date, &device)
    }
}

struct Answers<'a>(Generation<'a>);

impl WithBackend for Answers<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        generate::<B::InnerBackend>(self.0, &device, &Console::default())
    }
}
