//! `sppo watch`: a run of another process, or of another machine, from its files.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use sppo_training::self_play::{Progress, State, Watched};

use crate::errors::user;
use crate::{interrupt, output};

/// Between two looks where there is no terminal to draw on.
const LOOK: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo watch runs/default           the dashboard of a run that another process does
  sppo watch runs/default | cat     a line whenever something changed, until it ends
Reads files only, so a run of another machine can be watched where its folder is mounted. q leaves,
p pauses drawing.")]
pub struct Args {
    /// Folder of the run, the output_dir of `sppo run`.
    #[arg(value_name = "DIR")]
    pub run: PathBuf,
    /// Prints lines also on a terminal.
    #[arg(long)]
    pub plain: bool,
}

/// Watches.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    if !args.run.is_dir() {
        return Err(user(format!(
            "{} is no folder; give the output_dir of sppo run",
            args.run.display()
        )));
    }
    match args.plain || json || !std::io::stdout().is_terminal() {
        true => lines(&args.run, json),
        false => on_terminal(&args.run),
    }
}

/// The dashboard, where this build has one and the terminal can show it.
fn on_terminal(dir: &Path) -> anyhow::Result<()> {
    #[cfg(feature = "dashboard")]
    if crate::dashboard::has_terminal() {
        return crate::dashboard::watch(dir);
    }
    lines(dir, false)
}

/// A line whenever something changed; ends with the run.
fn lines(dir: &Path, json: bool) -> anyhow::Result<()> {
    let mut watched = Watched::new(dir);
    let mut said = String::new();
    loop {
        watched.look()?;
        let progress = watched.progress.as_ref();
        let Some(progress) = progress else {
            return Err(user(format!(
                "{} has no progress.json: no run has begun here, or one of an earlier sppo",
                dir.display()
            )));
        };
        let line = line(progress);
        let ended = progress.state != State::Running;
        if json && ended {
            return output::json(progress);
        }
        if !json && line != said {
            output::print(&line)?;
            said = line;
        }
        if ended {
            let table = watched.report.table();
            return match watched.report.iterations.is_empty() {
                true => Ok(()),
                false => output::print(&table),
            };
        }
        std::thread::sleep(LOOK);
        if interrupt::flag().load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// Where a run stands, in a line.
fn line(progress: &Progress) -> String {
    let mut text = match progress.iteration {
        0 => "before the first iteration".to_string(),
        number => format!("iteration {number} of {}", progress.iterations),
    };
    match progress.state {
        State::Running => {}
        State::Finished => text += ": finished",
        State::Interrupted => text += ": stopped; the same command goes on",
        State::Failed => text += ": failed",
    }
    if let Some(work) = &progress.work {
        text += &format!(": {} {}/{} {}", work.name, work.done, work.total, work.unit);
        if let Some(seconds) = work.seconds_left {
            text += &format!(", {seconds:.0} s left");
        }
        if !work.note.is_empty() {
            text += &format!(", {}", work.note);
        }
    }
    if let Some(seconds) = progress.seconds_left {
        text += &format!("; about {seconds:.0} s left of the run");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use sppo_training::self_play::Work;

    #[test]
    fn a_line_says_where_a_run_stands() {
        let progress = Progress {
            iteration: 2,
            iterations: 3,
            work: Some(Work {
                name: "training".into(),
                unit: "steps".into(),
                done: 4,
                total: 9,
                seconds_left: Some(7.4),
                note: "loss 0.5".into(),
                ..Work::default()
            }),
            seconds_left: Some(90.0),
            ..Progress::default()
        };
        assert_eq!(
            line(&progress),
            "iteration 2 of 3: training 4/9 steps, 7 s left, loss 0.5; about 90 s left of the run"
        );
        let ended = Progress {
            state: State::Finished,
            iteration: 3,
            iterations: 3,
            ..Progress::default()
        };
        assert_eq!(line(&ended), "iteration 3 of 3: finished");
    }
}
