//! `sppo report`: the page of a run, or of two.

use std::path::{Path, PathBuf};

use sppo_training::self_play::write_report;

use super::args::OverwriteArg;
use crate::output;

/// Where two runs are compared unless told otherwise.
const COMPARISON: &str = "comparison.html";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo report runs/default                      writes runs/default/report.html anew
  sppo report runs/a runs/b                     compares them in ./comparison.html
  sppo report runs/default --out page.html      also while the run goes on
The page is one file: no script, and nothing is loaded from anywhere. A run writes it by itself after
each iteration.")]
pub struct Args {
    /// Folder of a run, the output_dir of `sppo run`.
    #[arg(value_name = "DIR")]
    pub run: PathBuf,
    /// Another run to compare it with.
    #[arg(value_name = "DIR")]
    pub against: Option<PathBuf>,
    /// File to write: report.html in the run's folder, or comparison.html here, unless given.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
}

/// Makes the page.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let against = args.against.as_deref();
    let out = match against {
        None => args.out.as_deref(),
        Some(_) => Some(args.out.as_deref().unwrap_or(Path::new(COMPARISON))),
    };
    let page = write_report(&args.run, against, out, args.overwrite.existing())?;
    output::made(&page, json)
}
