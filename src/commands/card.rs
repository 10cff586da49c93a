//! `sppo card`: the model card of a saved model, made anew.

use std::path::PathBuf;

use sppo_training::card::{Card, Written};
use sppo_training::evaluation::{
    Annotations, Gamed, LmEvalResults, find_gamed, leaderboard, win_rate_report,
};
use sppo_training::files::CARD;
use sppo_training::hub::Repository;

use crate::errors::{OrUser, user};
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo card --model runs/default/iteration-3/model
  sppo card --model DIR --results lm-eval --winrate annotations.json --name my-org/my-model
Every saved model has a card, README.md, in the form that the Hugging Face Hub reads. This makes it anew
from the model's marks, the run around it and the results given. A card that somebody edited stays,
unless --overwrite is given.")]
pub struct Args {
    /// Folder of a model, of adapters or a checkpoint, made by sppo.
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Results of lm-evaluation-harness, as for `sppo eval leaderboard`.
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// AlpacaEval's annotations, as for `sppo eval winrate`.
    #[arg(long, value_name = "FILE")]
    pub winrate: Option<PathBuf>,
    /// df_gamed.csv for the length-controlled win rate; that of the Hugging Face cache unless given.
    #[arg(long, value_name = "FILE", requires = "winrate")]
    pub gamed: Option<PathBuf>,
    /// What the model is called on the Hub; the card names its folder otherwise.
    #[arg(long, value_name = "ORG/NAME")]
    pub name: Option<String>,
    /// Replaces a card that somebody edited.
    #[arg(long)]
    pub overwrite: bool,
}

/// Writes the card.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let mut card = Card::of(&args.model).or_user()?;
    if let Some(name) = &args.name {
        if Repository::model(name).is_none_or(|found| found.revision.is_some()) {
            return Err(user(format!(
                "--name {name}: expected a name of the Hub such as my-org/my-model"
            )));
        }
        card = card.named(name);
    }
    if let Some(folder) = &args.results {
        let results = LmEvalResults::read(folder).or_user()?;
        card = card.with_leaderboard(leaderboard(&results).or_user()?);
    }
    if let Some(file) = &args.winrate {
        let annotations = Annotations::read(file).or_user()?;
        let gamed = match &args.gamed {
            Some(file) => Some(Gamed::read(file).or_user()?),
            None => match find_gamed() {
                Ok(file) => Some(Gamed::read(&file).or_user()?),
                Err(why) => {
                    tracing::warn!(
                        "no length-controlled win rate: it takes df_gamed.csv of tatsu-lab/alpaca_eval ({why}); give --gamed FILE"
                    );
                    None
                }
            },
        };
        let report = win_rate_report(&annotations, gamed.as_ref());
        card = card.with_win_rate(&annotations, &report);
    }
    let path = args.model.join(CARD);
    match card.write(&args.model, args.overwrite)? {
        Written::New => output::made(&path, json),
        Written::Kept => Err(user(format!(
            "{} was edited, or is not this program's, and stays as it is; give --overwrite to replace it",
            path.display()
        ))),
    }
}
