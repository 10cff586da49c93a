//! `sppo eval`: win rate of one model's answers against another's under a judge.

use std::path::PathBuf;

use super::args::ConfigArgs;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo eval --model runs/default/model --against runs/sft/model --prompts heldout.jsonl
  sppo eval --model A --against B --prompts heldout.jsonl --set eval.prompts=100 --json
The judge is that of [judge] in the configuration; [eval] says how the answers are made.")]
pub struct Args {
    /// Model whose win rate is measured: folder or Hugging Face repository id.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Model that it is compared with.
    #[arg(long, value_name = "DIR")]
    pub against: String,
    /// Prompts to answer; those of [prompts] heldout unless given.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Folder for both models' judged answers.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub config: ConfigArgs,
}
