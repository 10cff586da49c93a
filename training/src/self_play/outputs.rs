//! Everything that a run writes, so that what is not ours is refused before the first hour of work.

use std::path::Path;

use super::progress::PROGRESS;
use crate::config::Config;
use crate::data::row_output;
use crate::files::{Output, OutputError};
use crate::tensorboard;
use crate::trainer::training_output;

/// The page's name in a run's folder.
pub const PAGE: &str = "report.html";

/// The configuration and the report of the run in `dir`.
pub(super) fn summary(dir: &Path) -> Output {
    let part = |name| dir.join(name);
    Output {
        name: dir.into(),
        mark: part("run.sppo.json"),
        parts: vec![
            part("config.toml"),
            part("report.json"),
            part("report.md"),
            part(PAGE),
            part(PROGRESS),
            part(tensorboard::FOLDER),
        ],
    }
}

/// Refuses an output folder in which something without our mark has the name of an output.
pub(super) fn refuse_foreign(config: &Config) -> Result<(), OutputError> {
    let dir = &config.output_dir;
    let mut outputs = vec![
        summary(dir),
        Output::folder(&dir.join("init")),
        training_output(&dir.join("sft")),
        row_output(&dir.join("eval/first.jsonl"), &[]),
    ];
    for index in 1..=config.iterations {
        let folder = dir.join(format!("iteration-{index}"));
        let rows = [
            "responses",
            "judged",
            "pairs",
            "heldout",
            "heldout-vs-first",
            "heldout-vs-first-judged",
            "heldout-vs-previous",
            "heldout-vs-previous-judged",
        ];
        let rows = rows.map(|name| row_output(&folder.join(format!("{name}.jsonl")), &[]));
        outputs.extend(rows);
        outputs.push(training_output(&folder));
        outputs.push(Output::folder(&folder.join("merged")));
    }
    outputs.iter().try_for_each(Output::refuse_foreign)
}
