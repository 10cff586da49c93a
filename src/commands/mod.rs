//! The commands, one file each.

mod args;
mod bench;
mod card;
mod chat;
#[cfg(feature = "serve")]
mod chatting;
mod config;
mod download;
mod eval;
mod generate;
mod join;
mod judge;
mod merge;
#[cfg(not(feature = "serve"))]
mod not_serving;
mod pairs;
mod plan;
mod report;
mod run;
mod score;
mod serve;
#[cfg(feature = "serve")]
mod serving;
mod sft;
mod train;
mod warm_up;
mod watch;

use clap::Subcommand;
use sppo_training::cluster::launch::launcher;

use crate::errors::user;

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Runs the whole self-play loop; goes on where an earlier run stopped.
    Run(run::Args),
    /// Fine-tunes on prompt/response rows.
    Sft(sft::Args),
    /// Samples responses to prompts.
    Generate(generate::Args),
    /// Puts the shards of generate or judge together.
    Join(join::Args),
    /// Scores responses.
    Judge(judge::Args),
    /// Makes win probabilities and pairs of judged responses.
    Pairs(pairs::Args),
    /// Trains on pairs: one iteration.
    Train(train::Args),
    /// Makes a whole model of a base and LoRA adapters.
    Merge(merge::Args),
    /// Computes summed response log-probabilities of pairs.
    Score(score::Args),
    /// Answers completions and chats over HTTP, as OpenAI's API does.
    Serve(Box<serve::Args>),
    /// Talks with a model in the terminal, or with two side by side.
    Chat(Box<chat::Args>),
    /// Measures the win rate of one model against another.
    Eval(eval::Args),
    /// Shows a run of another process, or of another machine, as it goes on.
    Watch(watch::Args),
    /// Makes the page of a run, or one that compares two.
    Report(report::Args),
    /// Makes the model card of a saved model.
    Card(card::Args),
    /// Tells what a run takes before it starts: memory by part, tokens, operations, steps.
    Plan(plan::Args),
    /// Compiles and tunes the kernels that a run will need.
    WarmUp(warm_up::Args),
    /// Downloads models and data sets of the Hugging Face Hub into its cache.
    Download(download::Args),
    /// Measures tokens per second of training and generation.
    Bench(bench::Args),
    /// Prints the resolved configuration, or the documentation of every key.
    Config(config::Args),
}

impl Command {
    /// Refuses what one of many processes cannot do, where a launcher started many.
    pub fn refuse_ranks(&self) -> anyhow::Result<()> {
        let Some(launcher) = launcher() else {
            return Ok(());
        };
        let refused = match self {
            Self::Generate(args) => args.shard.map(|_| "--shard"),
            Self::Judge(args) if args.dry_run => Some("--dry-run"),
            Self::Judge(args) => args.shard.map(|_| "--shard"),
            Self::Eval(args) => args.table.as_ref().map(|table| table.name()),
            Self::Run(_) | Self::Sft(_) | Self::Train(_) | Self::Score(_) => None,
            Self::Join(_) => Some("sppo join"),
            Self::Pairs(_) => Some("sppo pairs"),
            Self::Merge(_) => Some("sppo merge"),
            Self::Serve(_) => Some("sppo serve"),
            Self::Chat(_) => Some("sppo chat"),
            Self::Watch(_) => Some("sppo watch"),
            Self::Report(_) => Some("sppo report"),
            Self::Card(_) => Some("sppo card"),
            Self::Plan(_) => Some("sppo plan"),
            Self::WarmUp(_) => Some("sppo warm-up"),
            Self::Download(_) => Some("sppo download"),
            Self::Bench(_) => Some("sppo bench"),
            Self::Config(_) => Some("sppo config"),
        };
        match refused {
            None => Ok(()),
            Some(what) => Err(user(format!(
                "{what} is for one process, and {} started {} ({}={}); many can do sppo run, sft, \
                 train, generate, judge, eval and score, and share the rows without --shard",
                launcher.name, launcher.size, launcher.variable, launcher.size
            ))),
        }
    }

    /// Runs the command; `json` asks for one line of JSON at the end.
    pub fn run(self, json: bool) -> anyhow::Result<()> {
        match self {
            Self::Run(args) => run::run(args, json),
            Self::Sft(args) => sft::run(args, json),
            Self::Generate(args) => generate::run(args, json),
            Self::Join(args) => join::run(args, json),
            Self::Judge(args) => judge::run(args, json),
            Self::Pairs(args) => pairs::run(args, json),
            Self::Train(args) => train::run(args, json),
            Self::Merge(args) => merge::run(args, json),
            Self::Score(args) => score::run(args, json),
            #[cfg(feature = "serve")]
            Self::Serve(args) => serving::run(*args, json),
            #[cfg(not(feature = "serve"))]
            Self::Serve(_) => not_serving::run(),
            #[cfg(feature = "serve")]
            Self::Chat(args) => chatting::run(*args, json),
            #[cfg(not(feature = "serve"))]
            Self::Chat(_) => not_serving::run(),
            Self::Eval(args) => eval::run(args, json),
            Self::Watch(args) => watch::run(args, json),
            Self::Report(args) => report::run(args, json),
            Self::Card(args) => card::run(args, json),
            Self::Plan(args) => plan::run(args, json),
            Self::WarmUp(args) => warm_up::run(args, json),
            Self::Download(args) => download::run(args, json),
            Self::Bench(args) => bench::run(args, json),
            Self::Config(args) => config::run(args, json),
        }
    }
}
