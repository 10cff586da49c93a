//! Results of other programs, as the tables of a card and as the Hub's model-index.

use std::fmt::Write as _;

use super::front_matter::quoted;
use super::markdown::code;
use crate::evaluation::{Annotations, Cell, Leaderboard, Table, WinRateReport};

/// One number of the model-index.
struct Entry<'a> {
    /// Repository of the data set, its configuration and split, as the Hub knows them.
    data: Data,
    /// What the table calls it.
    name: String,
    shots: Option<u64>,
    metric: &'a str,
    metric_name: &'a str,
    value: f64,
}

/// A data set of the Hub.
#[derive(Clone, Copy)]
struct Data {
    id: &'static str,
    config: Option<&'static str>,
    split: &'static str,
}

impl Data {
    const fn new(id: &'static str, config: Option<&'static str>, split: &'static str) -> Self {
        Self { id, config, split }
    }
}

/// The data sets behind the leaderboards' columns, with the metric's name there.
fn data_of(benchmark: &str) -> (Data, &'static str) {
    match benchmark {
        "ARC-c" => (
            Data::new("allenai/ai2_arc", Some("ARC-Challenge"), "test"),
            "acc_norm",
        ),
        "HellaSwag" => (Data::new("Rowan/hellaswag", None, "validation"), "acc_norm"),
        "MMLU" => (Data::new("cais/mmlu", Some("all"), "test"), "acc"),
        "TruthfulQA" => (
            Data::new(
                "truthfulqa/truthful_qa",
                Some("multiple_choice"),
                "validation",
            ),
            "mc2",
        ),
        "Winogrande" => (
            Data::new("allenai/winogrande", Some("winogrande_xl"), "validation"),
            "acc",
        ),
        "GSM8K" => (
            Data::new("openai/gsm8k", Some("main"), "test"),
            "exact_match",
        ),
        "IFEval" => (
            Data::new("HuggingFaceH4/ifeval", None, "train"),
            "strict_accuracy",
        ),
        "BBH" => (Data::new("SaylorTwift/bbh", None, "test"), "acc_norm"),
        "MATH Lvl 5" => (
            Data::new("DigitalLearningGmbH/MATH-lighteval", None, "test"),
            "exact_match",
        ),
        "GPQA" => (Data::new("Idavidrein/gpqa", None, "train"), "acc_norm"),
        "MuSR" => (Data::new("TAUR-Lab/MuSR", None, "test"), "acc_norm"),
        _ => (Data::new("TIGER-Lab/MMLU-Pro", None, "test"), "acc"),
    }
}

/// Numbers that are given to a card.
#[derive(Default)]
pub(super) struct Results {
    leaderboard: Option<Leaderboard>,
    alpaca_eval: Option<AlpacaEval>,
}

/// AlpacaEval's numbers of the model.
struct AlpacaEval {
    baseline: Option<String>,
    annotator: Option<String>,
    rows: usize,
    win_rate: f64,
    standard_error: Option<f64>,
    /// The leaderboard's length-controlled win rate; no other number is called so.
    length_controlled: Option<(f64, Option<f64>)>,
    mean_length: Option<f64>,
}

impl Results {
    pub fn add_leaderboard(&mut self, found: Leaderboard) {
        self.leaderboard = Some(found);
    }

    pub fn add_win_rate(&mut self, annotations: &Annotations, report: &WinRateReport) {
        use crate::evaluation::LengthControl::LengthControlledV1;
        let controlled = report.length_controlled.as_ref().ok();
        let controlled = controlled.filter(|_| report.control == LengthControlledV1);
        self.alpaca_eval = Some(AlpacaEval {
            baseline: annotations.baseline.clone(),
            annotator: annotations.annotator.clone(),
            rows: report.win_rate.n_total,
            win_rate: report.win_rate.win_rate,
            standard_error: report.win_rate.standard_error,
            length_controlled: controlled.map(|found| (found.win_rate, found.standard_error)),
            mean_length: report.mean_length,
        });
    }

    /// The model-index; nothing where no number was given.
    pub fn model_index(&self, model: &str) -> String {
        let mut entries: Vec<Entry<'_>> = Vec::new();
        if let Some(found) = &self.alpaca_eval {
            let mut add = |metric, metric_name, value| {
                entries.push(Entry {
                    data: Data::new("tatsu-lab/alpaca_eval", Some("alpaca_eval"), "eval"),
                    name: "AlpacaEval 2".into(),
                    shots: None,
                    metric,
                    metric_name,
                    value,
                });
            };
            if let Some((value, _)) = found.length_controlled {
                add("lc_win_rate", "length-controlled win rate (%)", value);
            }
            add("win_rate", "win rate (%)", found.win_rate);
        }
        let tables = self.leaderboard.iter().flat_map(|l| [&l.v1, &l.v2]);
        for cell in tables.flat_map(|table| &table.rows) {
            // What was not done as the table asks for is no number of it.
            let Some(value) = cell.score.filter(|_| cell.differences.is_empty()) else {
                continue;
            };
            let (data, metric) = data_of(cell.benchmark);
            entries.push(Entry {
                data,
                name: format!("{} ({}-shot)", cell.benchmark, cell.shots),
                shots: Some(cell.shots),
                metric,
                metric_name: cell.metric,
                value,
            });
        }
        if entries.is_empty() {
            return String::new();
        }
        let mut out = format!("model-index:\n- name: {}\n  results:\n", quoted(model));
        entries.iter().for_each(|entry| entry.write(&mut out));
        out
    }

    /// The tables of the card, with their headings.
    pub fn tables(&self) -> String {
        let mut out = String::new();
        if let Some(found) = &self.alpaca_eval {
            found.write(&mut out);
        }
        if let Some(found) = &self.leaderboard {
            write_table(&mut out, "Open LLM Leaderboard", &found.v1);
            write_table(&mut out, "Open LLM Leaderboard 2, normalised", &found.v2);
            if !out.is_empty() && !found.lm_eval_versions.is_empty() {
                let versions = found.lm_eval_versions.join(", ");
                let _ = writeln!(
                    out,
                    "The leaderboards' numbers are lm-evaluation-harness' ({versions}).\n"
                );
            }
        }
        out
    }
}

impl Entry<'_> {
    fn write(&self, out: &mut String) {
        let Data { id, config, split } = self.data;
        let _ = write!(
            out,
            "  - task:\n      type: text-generation\n      name: Text Generation\n    dataset:\n      name: {}\n      type: {id}\n",
            quoted(&self.name)
        );
        if let Some(config) = config {
            let _ = writeln!(out, "      config: {config}");
        }
        let _ = writeln!(out, "      split: {split}");
        if let Some(shots) = self.shots {
            let _ = writeln!(out, "      args:\n        num_few_shot: {shots}");
        }
        let _ = writeln!(
            out,
            "    metrics:\n    - type: {}\n      value: {}\n      name: {}",
            self.metric,
            rounded(self.value),
            quoted(self.metric_name)
        );
    }
}

/// To four places, as YAML reads a float.
fn rounded(value: f64) -> String {
    format!("{:?}", (value * 1e4).round() / 1e4)
}

fn number(value: f64, error: Option<f64>) -> String {
    match error {
        Some(error) => format!("{value:.2} ± {error:.2}"),
        None => format!("{value:.2}"),
    }
}

impl AlpacaEval {
    fn write(&self, out: &mut String) {
        let name = |name: &Option<String>| name.clone().unwrap_or("one that is not named".into());
        let controlled = match self.length_controlled {
            Some((value, error)) => number(value, error),
            None => "–".into(),
        };
        let length = self.mean_length.map_or("–".into(), |n| format!("{n:.0}"));
        let _ = write!(
            out,
            "### AlpacaEval 2\n\n| LC. win rate (%) | win rate (%) | average length |\n| ---: | ---: | ---: |\n| {controlled} | {} | {length} |\n\nOver {} instructions against {}, judged by {}; ± is the standard error.\n\n",
            number(self.win_rate, self.standard_error),
            self.rows,
            code(&name(&self.baseline)),
            code(&name(&self.annotator)),
        );
    }
}

/// A table of one leaderboard, where one of its scores is there.
fn write_table(out: &mut String, heading: &str, table: &Table) {
    if table.rows.iter().all(|cell| cell.score.is_none()) {
        return;
    }
    let score = |cell: &Cell| match cell.score {
        Some(score) => number(score, cell.standard_error),
        None => "–".into(),
    };
    let average = match table.average {
        Some(value) => number(value, table.average_standard_error),
        None => "–".into(),
    };
    let names: Vec<String> = table
        .rows
        .iter()
        .map(|cell| format!("{} ({}-shot)", cell.benchmark, cell.shots))
        .collect();
    let scores: Vec<String> = table.rows.iter().map(score).collect();
    let _ = write!(
        out,
        "### {heading}\n\n| {} | average |\n|{} ---: |\n| {} | {average} |\n\n",
        names.join(" | "),
        " ---: |".repeat(names.len()),
        scores.join(" | "),
    );
    for cell in &table.rows {
        for difference in &cell.differences {
            let _ = writeln!(out, "{}: {difference}.\n", cell.benchmark);
        }
    }
}
