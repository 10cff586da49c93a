//! What the template of two runs is given.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::chart::Chart;
use super::figures::{self, CURVES, FIRST, SECOND, Z};
use super::folder::{Iteration, RunFolder, chosen_prompts};
use super::text::visible;
use super::view::{
    Sample, Table, finished, first_answer, heads, interval, judge_name, name, open_some,
    own_answer, percent, plain, sample,
};

/// The page that compares two.
#[derive(Serialize)]
pub(super) struct ComparisonPage {
    title: String,
    lead: String,
    notes: Vec<String>,
    results_table: Table,
    results: Vec<Chart>,
    curves: Vec<Chart>,
    samples_shown: Vec<Sample>,
    differences: Table,
}

impl ComparisonPage {
    pub fn of(a: &RunFolder, b: &RunFolder) -> Self {
        let names = [name(&a.dir), name(&b.dir)];
        let names = match names[0] == names[1] {
            false => names,
            true => [a, b].map(|run| run.dir.display().to_string()),
        };
        let title = format!("{} and {}", names[0], names[1]);
        let names = [format!("A: {}", names[0]), format!("B: {}", names[1])];
        let names = [names[0].as_str(), names[1].as_str()];
        let runs = [(FIRST, names[0], a), (SECOND, names[1], b)];
        let curves = CURVES.iter();
        let curves = curves.filter_map(|curve| figures::curve_of_runs(&runs, curve));
        Self {
            lead: format!(
                "Two runs side by side, {}, {}. Each is measured against the model that it began with.",
                names[0], names[1]
            ),
            title,
            notes: notes_of_two(a, b),
            results_table: results_of_two(&runs),
            results: charts_of_two(&runs),
            curves: curves.collect(),
            samples_shown: samples_of_two(&runs),
            differences: differences(a, b, names),
        }
    }
}

type TwoRuns<'a> = [(&'static str, &'a str, &'a RunFolder); 2];

/// What makes their numbers not comparable.
fn notes_of_two(a: &RunFolder, b: &RunFolder) -> Vec<String> {
    let mut notes = Vec::new();
    let (one, other) = (judge_name(a), judge_name(b));
    if one != other {
        notes.push(
            "Their judges differ, so a higher win rate of one says nothing about the other.".into(),
        );
    }
    let (Some(one), Some(other)) = (finished(a).first(), finished(b).first()) else {
        notes.push("One of them has no finished iteration.".into());
        return notes;
    };
    if one.order != other.order {
        notes.push("Their held-out prompts differ; win rates are each over their own.".into());
    }
    let first = |iteration: &Iteration| -> BTreeMap<String, String> {
        let answers = iteration.answers.iter();
        answers
            .map(|(id, answer)| (id.clone(), answer.first_text.clone()))
            .collect()
    };
    if first(one) != first(other) {
        notes.push("They began with different models, or sampled their first answers otherwise: the first models' answers differ.".into());
    }
    notes
}

fn results_of_two(runs: &TwoRuns<'_>) -> Table {
    let mut rows = Vec::new();
    for (_, name, run) in runs {
        for entry in &run.report.iterations {
            rows.push(vec![
                format!("{name}, {}", entry.iteration),
                entry.pairs.to_string(),
                interval(entry.win_rate, entry.win_rate_se),
                percent(entry.against_first.length_controlled_win_rate),
                percent(entry.win_rate_previous),
                format!("{:.1}", entry.mean_length),
                format!("{:.1}", entry.against_first.mean_length_against),
            ]);
        }
    }
    Table {
        caption: "Results by iteration, on held-out prompts".into(),
        head: heads(&[
            "run, iteration",
            "pairs",
            "win rate against its first model",
            "length-controlled",
            "against the one before",
            "characters an answer",
            "of its first model",
        ]),
        rows,
        is_text: false,
    }
}

fn charts_of_two(runs: &TwoRuns<'_>) -> Vec<Chart> {
    let rates = runs.each_ref().map(|(class, name, run)| {
        let rates = run.report.iterations.iter();
        let rates = rates.map(|e| (100.0 * e.win_rate, 100.0 * Z * e.win_rate_se));
        (*class, *name, rates.collect::<Vec<_>>())
    });
    if rates.iter().all(|(_, _, rates)| rates.is_empty()) {
        return Vec::new();
    }
    let mut charts = vec![figures::win_rates(
        "Win rate against its first model",
        &rates,
    )];
    let (mut names, mut lengths) = (Vec::new(), Vec::new());
    for (letter, (_, _, run)) in ["A", "B"].iter().zip(runs) {
        let done = finished(run);
        if let (Some(first), Some(last)) = (done.first(), done.last()) {
            names.extend([format!("{letter} first"), format!("{letter} last")]);
            lengths.extend([first.first_lengths.as_slice(), last.lengths.as_slice()]);
        }
    }
    charts.extend(figures::lengths(&names, &lengths));
    charts
}

fn samples_of_two(runs: &TwoRuns<'_>) -> Vec<Sample> {
    let [(_, a_name, a), (_, b_name, b)] = runs;
    let (Some(a), Some(b)) = (finished(a).last(), finished(b).last()) else {
        return Vec::new();
    };
    let chosen = chosen_prompts(a).into_iter();
    let samples = chosen.filter_map(|(id, why)| {
        let (one, other) = (a.answers.get(&id)?, b.answers.get(&id)?);
        if one.prompt != other.prompt {
            return None;
        }
        let mut answers = vec![first_answer("First model", one)];
        if other.first_text != one.first_text {
            answers[0].name = format!("First model of {a_name}");
            answers.push(first_answer(&format!("First model of {b_name}"), other));
        }
        answers.push(own_answer(a_name, one));
        answers.push(own_answer(b_name, other));
        Some(sample(
            one,
            why.replace("won", "A won").replace("lost", "A lost"),
            answers,
        ))
    });
    open_some(samples.collect())
}

/// Keys whose values differ.
fn differences(a: &RunFolder, b: &RunFolder, names: [&str; 2]) -> Table {
    let (one, other) = (flat(a), flat(b));
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let absent = || "–".to_string();
    let rows = keys
        .into_iter()
        .filter(|key| one.get(*key) != other.get(*key));
    let rows = rows.map(|key| {
        let value = |from: &BTreeMap<String, String>| from.get(key).cloned().unwrap_or_else(absent);
        vec![key.clone(), visible(&value(&one)), visible(&value(&other))]
    });
    Table {
        caption: "Keys of the configuration whose values differ".into(),
        head: heads(&["key", names[0], names[1]]),
        rows: rows.collect(),
        is_text: true,
    }
}

/// Every key with its value as text.
fn flat(run: &RunFolder) -> BTreeMap<String, String> {
    fn add(into: &mut BTreeMap<String, String>, path: &str, value: &toml::Value) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let dot = if path.is_empty() { "" } else { "." };
                    add(into, &format!("{path}{dot}{key}"), value);
                }
            }
            value => {
                into.insert(path.into(), plain(value));
            }
        }
    }
    let mut all = BTreeMap::new();
    add(&mut all, "", &toml::Value::Table(run.config.clone()));
    all
}
