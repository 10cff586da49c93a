//! report.html: what a run did, as one file that needs neither network nor script. Rust computes
//! (`folder.rs` reads, `figures.rs` and `chart.rs` make drawings, `view.rs` the tables and texts of
//! one run, `comparison.rs` those of two), minijinja writes (`templates/`); a template whose name ends
//! in `.html` escapes what it is given, so a response is text whatever it holds.

mod chart;
mod comparison;
mod figures;
mod folder;
mod text;
mod view;

use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde::Serialize;

use super::outputs::{self, PAGE};
use crate::files::{Existing, Lock, MadeFrom, Mark, Output, mark_beside, replace_file, write_mark};
use crate::stages::StageError;
use comparison::ComparisonPage;
use folder::RunFolder;
use view::RunPage;

const TEMPLATES: [(&str, &str); 5] = [
    ("base.html", include_str!("templates/base.html")),
    ("parts.html", include_str!("templates/parts.html")),
    ("run.html", include_str!("templates/run.html")),
    ("comparison.html", include_str!("templates/comparison.html")),
    ("style.css", include_str!("templates/style.css")),
];

/// Writes the page of a run beside its results, or the page that compares two; `out` is another
/// place for it, which two need. Gives the file.
pub fn write_report(
    run: &Path,
    against: Option<&Path>,
    out: Option<&Path>,
    existing: Existing<'_>,
) -> Result<PathBuf, StageError> {
    let page = match against {
        None => run_page(run)?,
        Some(against) => comparison_page(run, against)?,
    };
    let Some(out) = out else {
        if against.is_some() {
            return Err(StageError::Input(
                "two runs need a file for their page".into(),
            ));
        }
        outputs::summary(run).refuse_foreign()?;
        let _lock = Lock::inside(run)?;
        let path = run.join(PAGE);
        replace_file(&path, page.as_bytes())?;
        return Ok(path);
    };
    let output = Output {
        name: out.into(),
        mark: mark_beside(out),
        parts: vec![out.into()],
    };
    let against = against.map(|path| ("against", path.display()));
    let making =
        MadeFrom::new("report").settings([("run", run.display())].into_iter().chain(against));
    let _lock = Lock::beside(out)?;
    // The same runs may have gone on: their page is always made anew.
    if output.claim(&making, existing)?.is_none() {
        write_mark(&output.mark, &Mark::new(making))?;
    }
    replace_file(out, page.as_bytes())?;
    Ok(out.into())
}

/// The page of the run in `dir`, of what is there of it.
fn run_page(dir: &Path) -> Result<String, StageError> {
    render("run.html", &RunPage::of(&RunFolder::read(dir)?))
}

/// The page that compares two runs.
fn comparison_page(a: &Path, b: &Path) -> Result<String, StageError> {
    let (a, b) = (RunFolder::read(a)?, RunFolder::read(b)?);
    render("comparison.html", &ComparisonPage::of(&a, &b))
}

/// Writes the page of the run in `dir` beside its results.
pub(super) fn write_page(dir: &Path) -> Result<PathBuf, StageError> {
    let path = dir.join(PAGE);
    replace_file(&path, run_page(dir)?.as_bytes())?;
    Ok(path)
}

fn render(template: &str, page: &impl Serialize) -> Result<String, StageError> {
    // The templates are part of the program: what they cannot say is a fault of its own.
    let fault = |error: minijinja::Error| StageError::Page(error.to_string());
    let mut environment = Environment::new();
    for (name, text) in TEMPLATES {
        environment.add_template(name, text).map_err(fault)?;
    }
    let program = concat!("sppo ", env!("CARGO_PKG_VERSION"));
    let page = minijinja::Value::from(Serde(page));
    let template = environment.get_template(template).map_err(fault)?;
    template.render(context! { program, ..page }).map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HOSTILE: &str = "</script><img src=x onerror=alert(1)>{{ 7*7 }}\u{202e}\"'&";

    /// A run of one iteration whose texts are all of somebody who wishes no good.
    fn run(dir: &Path) {
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let row = json!({
            "prompt_id": "a",
            "prompt": [{"role": "user", "content": HOSTILE}],
            "reference": HOSTILE,
            "responses": [HOSTILE, "ordinary"],
            "rm_scores": [1.0, 0.0],
            "probability": [[0.5, 0.75], [0.25, 0.5]],
        });
        let against = json!({
            "prompts": 1, "win_rate": 1.0, "win_rate_se": 0.1, "length_controlled_win_rate": 0.6,
            "mean_preference": 0.75, "mean_length": 9.0, "mean_length_against": 8.0,
            "judge": {"kind": HOSTILE},
        });
        let report = json!({
            "left_out": {"train": 3, "heldout": 0, "sft": 0},
            "heldout": {"answered": 1, "unusable": 0, "too_long": 0, "cut": 0},
            "iterations": [{
                "iteration": 1, "win_rate": 1.0, "win_rate_se": 0.1, "win_rate_previous": 1.0,
                "mean_length": 9.0, "checkpoint": "m", "pairs": 1,
                "truncation": {"rows": 0, "tokens": 0, "responses_without_end": 0},
                "prompts": {"answered": 1, "unusable": 0, "too_long": 0, "cut": 0},
                "left_out": 0, "against_first": against, "against_previous": against,
            }],
        });
        let step = json!({"loss": 1.0, "rewards/margins": 0.5}).to_string();
        write("report.json", report.to_string());
        let path = HOSTILE.replace('"', "\\\"");
        let config =
            format!("iterations = 1\n[model]\npath = \"{path}\"\n[train]\nloss = \"dpo\"\n");
        write("config.toml", config);
        write("iteration-1/metrics.jsonl", format!("{step}\n{step}\n"));
        write(
            "iteration-1/heldout-vs-first-judged.jsonl",
            format!("{row}\n"),
        );
        write("iteration-1/judged.jsonl", format!("{row}\n"));
    }

    fn assert_harmless(page: &str) {
        for bad in [
            "<script",
            "<img",
            "onerror=alert(1)>",
            "\u{202e}",
            "http://",
            "https://",
        ] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(
            page.contains(
                "&lt;&#x2f;script&gt;&lt;img src=x onerror=alert(1)&gt;{{ 7*7 }}\\u{202e}"
            )
        );
    }

    #[test]
    fn what_a_response_holds_is_text() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path());
        let page = run_page(dir.path()).unwrap();
        assert_harmless(&page);
        for part in [
            "100.0 % ± 19.6",
            "wins, 75 %",
            "3 rows of prompts.train could not be used",
            "Reward margin",
            "<th scope=\"row\">1</th>",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert_harmless(&comparison_page(dir.path(), dir.path()).unwrap());
    }

    #[test]
    fn a_run_that_has_only_begun_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let error = run_page(dir.path()).unwrap_err();
        assert!(
            error.to_string().contains("is no folder of a run"),
            "{error}"
        );
        std::fs::write(dir.path().join("config.toml"), "iterations = 3\n").unwrap();
        let page = run_page(dir.path()).unwrap();
        assert!(page.contains("No iteration of this run has finished yet."));
        comparison_page(dir.path(), dir.path()).unwrap();
    }
}
