//! `sppo eval leaderboard`: the Open LLM Leaderboard's tables from lm-evaluation-harness' results.

use std::path::PathBuf;

use sppo_training::evaluation::{Cell, Leaderboard, LmEvalResults, Table, leaderboard};

use crate::errors::OrUser;
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo eval leaderboard --results lm-eval
  sppo eval leaderboard --results lm-eval/my-model --json
configs/eval/leaderboard-v1.sh and leaderboard-v2.sh make the results. Scores are in percent, with the
standard error where lm_eval gives one of each task. A task that is missing is named, and a table that
lacks one, or was made with other shots, has no average. Of several files the newest counts, task by task.")]
pub struct Args {
    /// What lm_eval's --output_path was: a folder, looked through with those in it, or one file.
    #[arg(long, value_name = "DIR")]
    pub results: PathBuf,
}

/// Prints both tables.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let results = LmEvalResults::read(&args.results).or_user()?;
    let found = leaderboard(&results).or_user()?;
    output::print(&text(&found, results.files.len()))?;
    match json {
        true => output::json(&found),
        false => Ok(()),
    }
}

fn text(found: &Leaderboard, files: usize) -> String {
    let mut text = format!(
        "{}, by lm_eval {}, {files} {} of results\n",
        found
            .model
            .as_deref()
            .unwrap_or("a model that the files do not name"),
        match found.lm_eval_versions.is_empty() {
            true => "of a version that the files do not name".into(),
            false => found.lm_eval_versions.join(" and "),
        },
        if files == 1 { "file" } else { "files" }
    );
    text += &table("Open LLM Leaderboard v1", &found.v1);
    text += &table("Open LLM Leaderboard v2 (normalised)", &found.v2);
    let some = found.replaced.iter().take(10);
    for replaced in some {
        text += &format!(
            "{}: {} is the newest of {} files and counts\n",
            replaced.task,
            replaced.newest.display(),
            replaced.older.len() + 1
        );
    }
    if found.replaced.len() > 10 {
        text += &format!(
            "and so for {} tasks more (--json names them)\n",
            found.replaced.len() - 10
        );
    }
    text
}

fn table(name: &str, table: &Table) -> String {
    let template = match table.chat_template {
        Some(true) => ", chat template applied",
        Some(false) => ", no chat template",
        None => "",
    };
    let mut text = format!("\n{name}{template}\n");
    for cell in &table.rows {
        let label = format!("{} ({}-shot)", cell.benchmark, cell.shots);
        text += &format!(
            "  {label:24}{}{}\n",
            score(cell.score, cell.standard_error),
            remarks(cell)
        );
    }
    let why = match table.average {
        Some(_) => "",
        None => "   not all scores are there as the table asks for them",
    };
    let average = score(table.average, table.average_standard_error);
    text += &format!("  {:24}{average}{why}\n", "Average");
    for cell in &table.rows {
        if let Some(group) = &cell.group_value {
            text += &format!(
                "  {} with sub-tasks weighted by size (lm_eval's {}): {:.2}\n",
                cell.benchmark, group.task, group.score
            );
        }
    }
    text
}

fn score(score: Option<f64>, error: Option<f64>) -> String {
    match (score, error) {
        (Some(score), Some(error)) => format!("{score:6.2} ± {error:.2}"),
        (Some(score), None) => format!("{score:6.2}"),
        (None, _) => "     –".into(),
    }
}

/// What is missing or was made otherwise.
fn remarks(cell: &Cell) -> String {
    let mut said = cell.differences.clone();
    if !cell.missing.is_empty() {
        let some = cell.missing[..cell.missing.len().min(4)].join(", ");
        said.push(match cell.missing.len() {
            0..=4 => format!("missing: {some}"),
            number => format!("missing: {some} and {} more", number - 4),
        });
    }
    match said.is_empty() {
        true => String::new(),
        false => format!("   {}", said.join("; ")),
    }
}
