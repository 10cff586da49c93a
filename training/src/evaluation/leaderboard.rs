//! The two tables of the Open LLM Leaderboard from lm-evaluation-harness' results.

use serde::Serialize;

use super::error::EvaluationError;
use super::lm_eval::{LmEvalResults, Replaced};
use super::tasks::{Benchmark, v1, v2};

/// Both tables.
#[derive(Clone, Debug, Serialize)]
pub struct Leaderboard {
    /// What the harness calls the model.
    pub model: Option<String>,
    /// Versions of the harness that made the results.
    pub lm_eval_versions: Vec<String>,
    /// ARC-c, HellaSwag, MMLU, TruthfulQA, Winogrande, GSM8K.
    pub v1: Table,
    /// IFEval, BBH, MATH, GPQA, MuSR, MMLU-Pro, normalised.
    pub v2: Table,
    /// Tasks of the tables that several files have.
    pub replaced: Vec<Replaced>,
}

/// One table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Its columns.
    pub rows: Vec<Cell>,
    /// Mean of the scores in percent; none where one is missing or made otherwise.
    pub average: Option<f64>,
    /// Of the average, in percentage points, where every score has one.
    pub average_standard_error: Option<f64>,
    /// Whether a chat template was applied to the prompts, where all files say the same.
    pub chat_template: Option<bool>,
}

/// One benchmark.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Its name on the leaderboard.
    pub benchmark: &'static str,
    /// Examples before each question that the table asks for.
    pub shots: u64,
    /// What it is measured by.
    pub metric: &'static str,
    /// In percent; none where a task is missing.
    pub score: Option<f64>,
    /// Of the score, in percentage points, where the harness gives one for each task.
    pub standard_error: Option<f64>,
    /// Mean of what the harness measured, in percent, not normalised.
    pub raw: Option<f64>,
    /// What the harness' group value gives, where it weights the sub-tasks by their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_value: Option<GroupValue>,
    /// Tasks that are not there.
    pub missing: Vec<String>,
    /// What was not done as the table asks for.
    pub differences: Vec<String>,
}

/// A benchmark's score from the harness' group, normalised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupValue {
    /// The group.
    pub task: &'static str,
    /// In percent.
    pub score: f64,
}

/// Makes both; an error where not one of their tasks is there.
pub fn leaderboard(results: &LmEvalResults) -> Result<Leaderboard, EvaluationError> {
    let mut replaced = Vec::new();
    let mut make = |benchmarks: Vec<Benchmark>| table(results, &benchmarks, &mut replaced);
    let (v1, v2) = (make(v1())?, make(v2())?);
    let mut cells = v1.rows.iter().chain(&v2.rows);
    // Of a benchmark that is there in part, a difference says so.
    if cells.all(|cell| cell.score.is_none() && cell.differences.is_empty()) {
        let names: Vec<&str> = results.task_names().take(8).collect();
        return Err(EvaluationError::content(
            &results.path,
            format!(
                "no task of either table is among the results ({}); configs/eval has the commands that make them",
                names.join(", ")
            ),
        ));
    }
    Ok(Leaderboard {
        model: results.model.clone(),
        lm_eval_versions: results.versions.iter().cloned().collect(),
        v1,
        v2,
        replaced,
    })
}

fn table(
    results: &LmEvalResults,
    benchmarks: &[Benchmark],
    replaced: &mut Vec<Replaced>,
) -> Result<Table, EvaluationError> {
    let mut templates = Vec::new();
    let cells = benchmarks
        .iter()
        .map(|benchmark| cell(results, benchmark, replaced, &mut templates))
        .collect::<Result<Vec<_>, _>>()?;
    let count = cells.len() as f64;
    let as_asked = |cell: &Cell| cell.score.filter(|_| cell.differences.is_empty());
    let scores: Option<Vec<f64>> = cells.iter().map(as_asked).collect();
    let errors: Option<Vec<f64>> = cells.iter().map(|cell| cell.standard_error).collect();
    let average = scores.map(|scores| scores.iter().sum::<f64>() / count);
    let alike = templates.windows(2).all(|pair| pair[0] == pair[1]);
    Ok(Table {
        average_standard_error: errors.filter(|_| average.is_some()).map(|e| of_mean(&e)),
        average,
        chat_template: templates.first().copied().flatten().filter(|_| alike),
        rows: cells,
    })
}

/// Standard error of a mean of independent parts.
fn of_mean(errors: &[f64]) -> f64 {
    let squares: f64 = errors.iter().map(|error| error * error).sum();
    squares.sqrt() / errors.len() as f64
}

fn cell(
    results: &LmEvalResults,
    benchmark: &Benchmark,
    replaced: &mut Vec<Replaced>,
    templates: &mut Vec<Option<bool>>,
) -> Result<Cell, EvaluationError> {
    let (mut scores, mut raws, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = Found::default();
    for task in &benchmark.tasks {
        let Some((name, result)) = results.task(&task.names) else {
            found.missing.push(task.names[0].clone());
            continue;
        };
        let mut values = Vec::new();
        for keys in benchmark.measures {
            match result.measure(name, keys)? {
                Some(value) => values.push(value),
                None => found.missing.push(format!("{name} ({})", keys[0])),
            }
        }
        if values.len() < benchmark.measures.len() {
            continue;
        }
        replaced.extend(results.replaced(name));
        templates.push(result.chat_template);
        found.shots(name, result.shots, benchmark.shots);
        found.asked(name, result.asked);
        let count = values.len() as f64;
        let raw = values.iter().map(|(value, _)| value).sum::<f64>() / count;
        let room = 1.0 - task.guess;
        raws.push(raw);
        scores.push(((raw - task.guess) / room).max(0.0));
        // Measures of the same answers are not independent: of their mean nothing is known.
        let error = values[0].1.filter(|_| values.len() == 1);
        errors.push(error.map(|error| error / room));
    }
    let whole = found.missing.is_empty() && !scores.is_empty();
    let percent = |values: &[f64]| 100.0 * values.iter().sum::<f64>() / values.len() as f64;
    let errors: Option<Vec<f64>> = errors.into_iter().collect();
    Ok(Cell {
        benchmark: benchmark.name,
        shots: benchmark.shots,
        metric: benchmark.metric,
        score: whole.then(|| percent(&scores)),
        standard_error: errors
            .filter(|_| whole)
            .map(|errors| 100.0 * of_mean(&errors)),
        raw: whole.then(|| percent(&raws)),
        group_value: group_value(results, benchmark)?.filter(|_| whole),
        differences: found.differences(scores.len(), benchmark.tasks.len()),
        missing: found.missing,
    })
}

/// The leaderboard's public notebook takes these two benchmarks from the harness' group, which
/// weights the sub-tasks by their size; the mean of the sub-tasks is a little different.
fn group_value(
    results: &LmEvalResults,
    benchmark: &Benchmark,
) -> Result<Option<GroupValue>, EvaluationError> {
    let Some((task, key)) = benchmark.group else {
        return Ok(None);
    };
    let Some((name, result)) = results.task(&[task.to_string()]) else {
        return Ok(None);
    };
    let guess = benchmark.tasks[0].guess;
    let value = result.measure(name, &[key])?;
    Ok(value.map(|(raw, _)| GroupValue {
        task,
        score: 100.0 * ((raw - guess) / (1.0 - guess)).max(0.0),
    }))
}

/// What was found of a benchmark's tasks beside their scores.
#[derive(Default)]
struct Found {
    missing: Vec<String>,
    shots: Vec<String>,
    asked: Vec<String>,
}

impl Found {
    fn shots(&mut self, task: &str, shots: Option<u64>, expected: u64) {
        match shots {
            Some(shots) if shots == expected => {}
            Some(shots) => self
                .shots
                .push(format!("{task} has {shots} shots, not {expected}")),
            None => self.shots.push(format!(
                "{task} does not say its shots ({expected} expected)"
            )),
        }
    }

    fn asked(&mut self, task: &str, asked: Option<(u64, u64)>) {
        if let Some((effective, original)) = asked
            && effective < original
        {
            self.asked.push(format!(
                "{task} was asked {effective} of {original} questions"
            ));
        }
    }

    /// The first of each kind, with the number of the others.
    fn differences(&self, there: usize, all: usize) -> Vec<String> {
        let mut said = Vec::new();
        if there > 0 && there < all {
            said.push(format!("{there} of {all} tasks are there"));
        }
        for kind in [&self.shots, &self.asked] {
            said.extend(kind.first().map(|first| match kind.len() {
                1 => first.clone(),
                number => format!("{first} (and {} tasks more)", number - 1),
            }));
        }
        said
    }
}
