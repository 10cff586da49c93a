//! What the template of one run is given: texts, tables and charts.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::super::curves::Step;
use super::super::report::IterationReport;
use super::chart::Chart;
use super::figures::{self, CURVES, Z};
use super::folder::{Answer, Iteration, Judged, RunFolder, chosen_prompts};
use super::text::{Text, summary, visible};
use crate::shown::{digits, duration};

/// The page of one run.
#[derive(Serialize)]
pub(super) struct RunPage {
    title: String,
    lead: String,
    tiles: Vec<Tile>,
    results: Vec<Chart>,
    results_table: Option<Table>,
    judged_by: String,
    notes: Vec<String>,
    samples_shown: Vec<Sample>,
    curves: Vec<Chart>,
    training_table: Option<Table>,
    judge: JudgeSection,
    time: Option<Times>,
    facts: Table,
    config: String,
}

#[derive(Serialize)]
struct Tile {
    name: String,
    value: String,
    more: String,
}

#[derive(Serialize)]
pub(super) struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// Cells are words rather than numbers.
    pub is_text: bool,
}

/// A prompt with its answers.
#[derive(Serialize)]
pub(super) struct Sample {
    summary: String,
    why: String,
    is_open: bool,
    /// Where the summary does not say all of it.
    prompt: Option<Text>,
    reference: Option<Text>,
    answers: Vec<SampleAnswer>,
}

#[derive(Serialize)]
pub(super) struct SampleAnswer {
    pub name: String,
    verdict: String,
    class: &'static str,
    text: Text,
    is_cut: bool,
}

#[derive(Default, Serialize)]
struct JudgeSection {
    charts: Vec<Chart>,
    table: Option<Table>,
    words: String,
}

#[derive(Serialize)]
struct Times {
    caption: String,
    head: Vec<String>,
    rows: Vec<TimeRow>,
}

#[derive(Serialize)]
struct TimeRow {
    name: String,
    cells: Vec<String>,
    total: String,
    percent: String,
}

impl RunPage {
    pub fn of(run: &RunFolder) -> Self {
        let done = &run.report.iterations;
        let mut results = Vec::new();
        if !done.is_empty() {
            results.push(figures::win_rates_of(done));
            results.extend(lengths(run));
            let last = finished(run).last();
            results.extend(last.and_then(|last| figures::beats_first(done.len(), last)));
        }
        Self {
            title: name(&run.dir),
            lead: lead(run),
            tiles: tiles(run),
            results,
            results_table: (!done.is_empty()).then(|| results_table(done)),
            judged_by: match done.last() {
                Some(last) if !last.against_first.length_control.is_empty() => {
                    format!("Length-controlled: {}.", last.against_first.length_control)
                }
                _ => String::new(),
            },
            notes: notes(run),
            samples_shown: samples(run),
            curves: curves(run),
            training_table: training_table(run),
            judge: judge(run),
            time: times(run),
            facts: facts(run),
            config: visible(&run.config_text),
        }
    }
}

/// The name of a run: that of its folder, with the one above where that says more.
pub(super) fn name(dir: &Path) -> String {
    let path = dir.canonicalize().unwrap_or(dir.into());
    let parts: Vec<_> = path
        .iter()
        .rev()
        .take(2)
        .map(|p| p.to_string_lossy())
        .collect();
    match parts.as_slice() {
        [own, above] if above == "runs" => format!("{above}/{own}"),
        [own, ..] => own.to_string(),
        [] => dir.display().to_string(),
    }
}

pub(super) fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

pub(super) fn interval(rate: f64, error: f64) -> String {
    format!("{:.1} % ± {:.1}", 100.0 * rate, 100.0 * Z * error)
}

fn lead(run: &RunFolder) -> String {
    let wanted = run
        .config
        .get("iterations")
        .and_then(toml::Value::as_integer);
    let Some(last) = run.report.iterations.last() else {
        return "No iteration of this run has finished yet.".into();
    };
    let of = match wanted {
        Some(wanted) if wanted != last.iteration as i64 => format!(" of {wanted}"),
        _ => String::new(),
    };
    let rounds = match last.iteration {
        1 => "one iteration".to_string(),
        more => format!("{more} iterations"),
    };
    format!(
        "After {rounds}{of} of self-play the model wins {} of its comparisons with the model it began as, on {} held-out prompts.",
        interval(last.win_rate, last.win_rate_se),
        last.against_first.prompts
    )
}

fn tiles(run: &RunFolder) -> Vec<Tile> {
    let Some(last) = run.report.iterations.last() else {
        return Vec::new();
    };
    let tile = |name: &str, value: String, more: String| Tile {
        name: name.into(),
        value,
        more,
    };
    let mut tiles = vec![
        tile(
            "Win rate against the first model",
            percent(last.win_rate),
            format!("± {:.1}", 100.0 * Z * last.win_rate_se),
        ),
        tile(
            "The same at equal length",
            percent(last.against_first.length_controlled_win_rate),
            String::new(),
        ),
        tile(
            "Against the one before",
            percent(last.win_rate_previous),
            format!("± {:.1}", 100.0 * Z * last.against_previous.win_rate_se),
        ),
        tile(
            "Characters an answer",
            format!("{:.0}", last.mean_length),
            format!("{:.0} before", last.against_first.mean_length_against),
        ),
        tile(
            "Pairs trained on",
            run.report
                .iterations
                .iter()
                .map(|e| e.pairs)
                .sum::<usize>()
                .to_string(),
            String::new(),
        ),
    ];
    if let Some(progress) = &run.progress {
        let seconds: f64 = progress.stages.iter().map(|stage| stage.seconds).sum();
        tiles.push(tile("Time", duration(seconds), String::new()));
    }
    tiles
}

/// Names of the models: the first, and each iteration's.
fn model_names(count: usize) -> Vec<String> {
    let numbers = (1..=count).map(|i| i.to_string());
    ["first".to_string()].into_iter().chain(numbers).collect()
}

/// Iterations that have finished.
pub(super) fn finished(run: &RunFolder) -> &[Iteration] {
    let count = run.report.iterations.len().min(run.iterations.len());
    &run.iterations[..count]
}

fn lengths(run: &RunFolder) -> Option<Chart> {
    let done = finished(run);
    let first = done.first()?.first_lengths.as_slice();
    let own = done.iter().map(|iteration| iteration.lengths.as_slice());
    let all: Vec<&[f64]> = [first].into_iter().chain(own).collect();
    figures::lengths(&model_names(done.len()), &all)
}

fn results_table(done: &[IterationReport]) -> Table {
    let rows = done.iter().map(|entry| {
        let (first, before) = (&entry.against_first, &entry.against_previous);
        vec![
            entry.iteration.to_string(),
            entry.pairs.to_string(),
            interval(entry.win_rate, entry.win_rate_se),
            percent(first.length_controlled_win_rate),
            percent(first.mean_preference),
            interval(before.win_rate, before.win_rate_se),
            format!("{:.1}", entry.mean_length),
        ]
    });
    Table {
        caption: "Results by iteration, on held-out prompts".into(),
        head: heads(&[
            "iteration",
            "pairs",
            "win rate against the first model",
            "length-controlled",
            "mean preference",
            "against the one before",
            "characters an answer",
        ]),
        rows: rows.collect(),
        is_text: false,
    }
}

pub(super) fn heads(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// What was cut or left out, as the report has it.
fn notes(run: &RunFolder) -> Vec<String> {
    let lines = run.report.what_is_missing();
    let lines = lines.lines().filter(|line| !line.is_empty());
    lines.map(str::to_string).collect()
}

fn samples(run: &RunFolder) -> Vec<Sample> {
    let done = finished(run);
    let Some(last) = done.last() else {
        return Vec::new();
    };
    let chosen = chosen_prompts(last).into_iter();
    let samples = chosen.filter_map(|(id, why)| {
        let shown = last.answers.get(&id)?;
        let mut answers = vec![first_answer("First model", shown)];
        for (i, iteration) in done.iter().enumerate() {
            let name = format!("Iteration {}", i + 1);
            answers.extend(
                iteration
                    .answers
                    .get(&id)
                    .map(|answer| own_answer(&name, answer)),
            );
        }
        Some(sample(shown, why.into(), answers))
    });
    open_some(samples.collect())
}

/// The first few are open; more would be a wall.
pub(super) fn open_some(mut samples: Vec<Sample>) -> Vec<Sample> {
    samples
        .iter_mut()
        .take(4)
        .for_each(|sample| sample.is_open = true);
    samples
}

pub(super) fn sample(shown: &Answer, why: String, answers: Vec<SampleAnswer>) -> Sample {
    let (summary, is_whole) = summary(&shown.prompt);
    Sample {
        summary,
        why,
        is_open: false,
        prompt: (!is_whole).then(|| Text::new(&shown.prompt)),
        reference: shown.reference.as_deref().map(Text::new),
        answers,
    }
}

pub(super) fn first_answer(name: &str, answer: &Answer) -> SampleAnswer {
    SampleAnswer {
        name: name.into(),
        verdict: String::new(),
        class: "",
        text: Text::new(&answer.first_text),
        is_cut: answer.first_is_cut,
    }
}

pub(super) fn own_answer(name: &str, answer: &Answer) -> SampleAnswer {
    let wins = 100.0 * answer.wins;
    let (verdict, class) = match answer.wins - 0.5 {
        _ if answer.text == answer.first_text => ("the same".to_string(), ""),
        d if d.abs() < 1e-9 => ("even".into(), ""),
        d if d > 0.0 => (format!("wins, {wins:.0} %"), "won"),
        _ => (format!("loses, {wins:.0} %"), "lost"),
    };
    SampleAnswer {
        name: name.into(),
        verdict,
        class,
        text: Text::new(&answer.text),
        is_cut: answer.is_cut,
    }
}

fn curves(run: &RunFolder) -> Vec<Chart> {
    let mut charts = Vec::new();
    let mut rest = CURVES.iter().filter_map(|curve| figures::curve(run, curve));
    charts.extend(rest.next());
    charts.extend(figures::deltas(run));
    charts.extend(rest);
    charts.extend(figures::fine_tuning(&run.sft));
    charts
}

/// The last tenth of each iteration's steps, in numbers.
fn training_table(run: &RunFolder) -> Option<Table> {
    let targets = run.targets();
    let beta = run.beta();
    let mut rows = Vec::new();
    for (i, iteration) in run.iterations.iter().enumerate() {
        let steps = &iteration.steps;
        if steps.is_empty() {
            continue;
        }
        let part = steps.len().div_ceil(10);
        let mean = |from: usize, of: fn(&Step) -> f64| {
            let values = steps[from..from + part].iter().map(of);
            let finite: Vec<f64> = values.filter(|value| value.is_finite()).collect();
            finite.iter().sum::<f64>() / finite.len() as f64
        };
        let last = steps.len() - part;
        let delta = |reward: f64| beta.map_or(f64::NAN, |beta| reward / beta);
        let (chosen, rejected) = match &targets {
            Some(targets) => targets[i],
            None => (f64::NAN, f64::NAN),
        };
        rows.push(vec![
            (i + 1).to_string(),
            steps.len().to_string(),
            digits(mean(0, |s| s.loss)),
            digits(mean(last, |s| s.loss)),
            digits(mean(last, |s| s.margin)),
            percent(mean(last, |s| s.accuracy)),
            format!(
                "{} / {}",
                digits(delta(mean(last, |s| s.chosen))),
                digits(chosen)
            ),
            format!(
                "{} / {}",
                digits(delta(mean(last, |s| s.rejected))),
                digits(rejected)
            ),
        ]);
    }
    (!rows.is_empty()).then(|| Table {
        caption: "Training in numbers: means over the first or last tenth of the steps".into(),
        head: heads(&[
            "iteration",
            "steps",
            "loss at first",
            "loss at last",
            "reward margin",
            "accuracy",
            "Δ chosen / target",
            "Δ rejected / target",
        ]),
        rows,
        is_text: false,
    })
}

fn judge(run: &RunFolder) -> JudgeSection {
    let done = finished(run);
    let charts = done.iter().enumerate();
    let charts = charts.filter_map(|(i, it)| figures::probabilities(i + 1, &it.pairs));
    let row = |name: String, judged: &Judged| {
        let part = |count: usize, of: usize| match of {
            0 => "–".to_string(),
            of => percent(count as f64 / of as f64),
        };
        vec![
            name,
            judged.pairs.to_string(),
            part(judged.ties, judged.pairs),
            part(judged.close, judged.pairs),
            part(judged.longer_won, judged.unequal),
            part(judged.order_decides, judged.both_orders),
            part(judged.circles, judged.triples),
        ]
    };
    let mut rows = Vec::new();
    for (i, iteration) in done.iter().enumerate() {
        let number = i + 1;
        rows.push(row(format!("{number}, samples"), &iteration.judged));
        rows.push(row(
            format!("{number}, held-out against first"),
            &iteration.against_first,
        ));
    }
    let mut words = String::from(
        "Of pairs of different texts: equal ones; those whose win probability is within 0.1 of one half; those that the longer text won, ties aside; those that the order of the two decides; threes that go round in a circle. ",
    );
    let compares = done.iter().any(|it| it.judged.both_orders > 0);
    words += match compares {
        true => "This judge compares pairs in both orders, so it can contradict itself.",
        false => {
            "This judge scores each answer by itself, so neither order nor circles are possible."
        }
    };
    if let (against, of @ 1..) = reversals(done) {
        words += &format!(
            " From one iteration to the next, {against} of {of} held-out answers that beat the first model's were followed by one that lost to it."
        );
    }
    JudgeSection {
        charts: charts.collect(),
        table: (!rows.is_empty()).then(|| Table {
            caption: "How sure the judge is, and where it disagrees with itself".into(),
            head: heads(&[
                "iteration",
                "pairs",
                "ties",
                "close",
                "longer won",
                "order decides",
                "circles",
            ]),
            rows,
            is_text: false,
        }),
        words,
    }
}

/// Held-out answers that beat the first model's and whose successor lost to it, of all that did.
fn reversals(done: &[Iteration]) -> (usize, usize) {
    let (mut lost, mut won) = (0, 0);
    for pair in done.windows(2) {
        let winners = pair[0]
            .answers
            .iter()
            .filter(|(_, answer)| answer.wins > 0.5);
        for after in winners.filter_map(|(id, _)| pair[1].answers.get(id)) {
            won += 1;
            lost += usize::from(after.wins < 0.5);
        }
    }
    (lost, won)
}

fn times(run: &RunFolder) -> Option<Times> {
    let progress = run.progress.as_ref()?;
    let all: f64 = progress.stages.iter().map(|stage| stage.seconds).sum();
    if all <= 0.0 {
        return None;
    }
    let last = progress.stages.iter().map(|stage| stage.iteration).max()?;
    let mut names: Vec<&str> = Vec::new();
    for stage in &progress.stages {
        if !names.contains(&stage.name.as_str()) {
            names.push(&stage.name);
        }
    }
    let seconds = |name: &str, iteration: usize| -> f64 {
        let stages = progress.stages.iter();
        let own = stages.filter(|s| s.name == name && s.iteration == iteration);
        own.map(|stage| stage.seconds).sum()
    };
    let rows = names.iter().map(|name| {
        let each: Vec<f64> = (0..=last)
            .map(|iteration| seconds(name, iteration))
            .collect();
        let total: f64 = each.iter().sum();
        let cell = |seconds: &f64| match seconds {
            0.0 => "–".to_string(),
            seconds => duration(*seconds),
        };
        TimeRow {
            name: visible(name),
            cells: each.iter().map(cell).collect(),
            total: duration(total),
            percent: format!("{:.1}", 100.0 * total / all),
        }
    });
    let head = (0..=last).map(|iteration| match iteration {
        0 => "before".to_string(),
        iteration => format!("iteration {iteration}"),
    });
    Some(Times {
        caption: format!(
            "{} in all, over every start of this run; loading counts with the stage that it is for",
            duration(all)
        ),
        head: head.collect(),
        rows: rows.collect(),
    })
}

/// What a reader asks first.
fn facts(run: &RunFolder) -> Table {
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        rows.extend(value.map(|value| vec![name.to_string(), visible(&value)]));
    };
    let text = |path: &str| Some(plain(run.setting(path)?));
    add("model", text("model.path").or_else(|| fresh_model(run)));
    add("fine-tuned on", text("sft.data"));
    add("judge", judge_name(run));
    add("loss", text("train.loss"));
    add("η", run.beta().map(|beta| digits(1.0 / beta)));
    add("learning rate", text("train.learning_rate"));
    add("optimizer", text("train.optimizer"));
    add("epochs an iteration", text("train.epochs"));
    add("pairs a step", pairs_a_step(run));
    add("samples a prompt", text("generate.samples"));
    add("temperature", text("generate.temperature"));
    let files = text("prompts.per_iteration_files");
    add("prompts", text("prompts.train").or(files));
    add("held-out prompts", text("prompts.heldout"));
    add("device", run.config.get("device").map(plain));
    add("seed", run.config.get("seed").map(plain));
    add("folder", Some(run.dir.display().to_string()));
    if let Some(mark) = &run.mark {
        add("begun", Some(format!("{} (UTC)", mark.begun)));
        let commit = mark.commit.as_ref();
        let commit = commit.map_or(String::new(), |commit| format!(", commit {commit}"));
        add("program", Some(mark.program.clone() + &commit));
    }
    Table {
        caption: "The run in short".into(),
        head: heads(&["what", "value"]),
        rows,
        is_text: true,
    }
}

pub(super) fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn fresh_model(run: &RunFolder) -> Option<String> {
    let init = run.setting("model.init")?;
    let number = |key: &str| init.get(key).map(plain);
    Some(format!(
        "random to begin with: {} layers, {} wide",
        number("layers")?,
        number("hidden_size")?
    ))
}

fn pairs_a_step(run: &RunFolder) -> Option<String> {
    let number = |path: &str| run.setting(path)?.as_integer();
    let pairs = number("train.batch_size")? * number("train.gradient_accumulation")?;
    Some(pairs.to_string())
}

/// As the judged rows have it, or else the configuration.
pub(super) fn judge_name(run: &RunFolder) -> Option<String> {
    let described = run.report.iterations.last();
    match described.map(|last| &last.against_first.judge) {
        Some(Value::Object(fields)) => {
            let fields = fields
                .iter()
                .map(|(key, value)| match (key.as_str(), value) {
                    ("kind", Value::String(kind)) => kind.clone(),
                    (key, Value::String(text)) => format!("{key} {text}"),
                    (key, value) => format!("{key} {value}"),
                });
            Some(fields.collect::<Vec<_>>().join(", "))
        }
        _ => Some(plain(run.setting("judge.kind")?)),
    }
}
