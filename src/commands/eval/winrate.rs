//! `sppo eval winrate`: AlpacaEval's numbers from its annotations.

use std::path::PathBuf;

use serde_json::{Value, json};
use sppo_training::evaluation::{
    Annotations, Gamed, LengthControl, References, WinRateReport, find_gamed, win_rate_report,
};

use crate::errors::OrUser;
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo eval winrate --annotations annotations.json
  sppo eval winrate --annotations annotations.json --gamed df_gamed.csv --json
annotations.json is what alpaca_eval leaves beside its leaderboard.csv. Numbers are in percent, as it
prints them. The length-controlled win rate (LC) needs df_gamed.csv of the data set
tatsu-lab/alpaca_eval, which is looked for in the Hugging Face cache:
  sppo download hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv
Without it another number of another name is printed, which is not LC.")]
pub struct Args {
    /// alpaca_eval's annotations, .json or .jsonl: all by one annotator, one model against one other.
    #[arg(long, value_name = "FILE")]
    pub annotations: PathBuf,
    /// Outputs of the baseline (instruction, output), for the lengths of rows without output_1.
    #[arg(long, value_name = "FILE")]
    pub reference: Option<PathBuf>,
    /// df_gamed.csv; that of the Hugging Face cache unless given.
    #[arg(long, value_name = "FILE")]
    pub gamed: Option<PathBuf>,
}

/// Prints the win rates.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let mut annotations = Annotations::read(&args.annotations).or_user()?;
    if let Some(file) = &args.reference {
        let references = References::read(file).or_user()?;
        annotations.complete(&references).or_user()?;
        match annotations.from_reference {
            0 => tracing::warn!(
                "every row has its output_1, so nothing of {} is used",
                file.display()
            ),
            number => tracing::info!(
                "the lengths of {number} outputs of the baseline come from {}",
                file.display()
            ),
        }
    }
    if annotations.repeated > 0 {
        tracing::warn!(
            "{} rows of {} have the instruction of an earlier row; each counts",
            annotations.repeated,
            args.annotations.display()
        );
    }
    let (file, absent) = match args.gamed {
        Some(file) => (Some(file), None),
        None => match find_gamed() {
            Ok(file) => (Some(file), None),
            Err(why) => (None, Some(why)),
        },
    };
    let gamed = file.as_deref().map(Gamed::read).transpose().or_user()?;
    if let Some(gamed) = &gamed
        && gamed.instructions() != annotations.rows.len()
    {
        tracing::warn!(
            "{} has the difficulty of {} instructions and {} has {} rows: a row's difficulty is found by its place, as alpaca_eval does it, so they must be the first of the set in their order",
            gamed.path.display(),
            gamed.instructions(),
            args.annotations.display(),
            annotations.rows.len()
        );
    }
    let report = win_rate_report(&annotations, gamed.as_ref());
    let found = Found {
        annotations: &annotations,
        report: &report,
        gamed: gamed.as_ref(),
        absent: absent.as_deref(),
    };
    output::print(&found.text())?;
    match json {
        true => output::json(&found.json()),
        false => Ok(()),
    }
}

struct Found<'a> {
    annotations: &'a Annotations,
    report: &'a WinRateReport,
    gamed: Option<&'a Gamed>,
    /// Why there is no df_gamed.csv.
    absent: Option<&'a str>,
}

impl Found<'_> {
    fn text(&self) -> String {
        let (rate, annotations) = (&self.report.win_rate, self.annotations);
        let name = |name: &Option<String>, else_: &str| name.clone().unwrap_or(else_.into());
        let mut text = format!(
            "{} against {}, judged by {}\n",
            name(&annotations.model, "a model that the file does not name"),
            name(&annotations.baseline, "a baseline that it does not name"),
            match &annotations.annotator {
                Some(annotator) => format!(
                    "{annotator} (its template is that of alpaca_eval's configuration of this name)"
                ),
                None => "an annotator that it does not name".into(),
            }
        );
        let mut line = |label: &str, value: String| text += &format!("  {label:28}{value}\n");
        line("win rate", number(rate.win_rate, rate.standard_error));
        line("discrete win rate", number(rate.discrete_win_rate, None));
        match (&self.report.length_controlled, self.report.control) {
            (Ok(found), LengthControl::LengthControlledV1) => {
                let value = number(found.win_rate, found.standard_error);
                let from = self
                    .gamed
                    .map_or(String::new(), |gamed| gamed.path.display().to_string());
                line(
                    "length-controlled (LC)",
                    format!("{value}   length_controlled_v1 with {from}"),
                );
            }
            // The same for every instruction, so that an error of its mean would say nothing.
            (Ok(found), LengthControl::LengthControlledMinimal) => {
                let value = number(found.win_rate, None);
                line(
                    "length_controlled_minimal",
                    format!("{value}   from these lengths alone; not the leaderboard's number"),
                );
            }
            (Err(why), control) => line(label(control), format!("     –   {why}")),
        }
        let draws = match rate.n_draws {
            1 => "1 tie".to_string(),
            number => format!("{number} ties"),
        };
        line(
            "judged",
            format!(
                "{:6}   {} won, {} lost, {}{}",
                rate.n_total,
                rate.n_wins,
                rate.n_wins_base,
                draws,
                match self.report.missing {
                    0 => String::new(),
                    missing => format!("; {missing} rows have no preference and are left out"),
                }
            ),
        );
        if let Some(length) = self.report.mean_length {
            let baseline = self.report.mean_length_baseline;
            let baseline = baseline.map_or(String::new(), |n| format!("   baseline {n:.0}"));
            line(
                "average length",
                format!("{length:6.0} characters{baseline}"),
            );
        }
        if let Some(why) = self.absent {
            text += &format!(
                "No length-controlled win rate of AlpacaEval: it takes df_gamed.csv of tatsu-lab/alpaca_eval ({why}); give --gamed FILE, or: sppo download hf://datasets/tatsu-lab/alpaca_eval/df_gamed.csv\n"
            );
        }
        text
    }

    /// alpaca_eval's names of its own numbers; only the leaderboard's fit is called length-controlled.
    fn json(&self) -> Value {
        let (report, annotations) = (self.report, self.annotations);
        let mut value = json!({
            "annotations": annotations.path,
            "annotator": annotations.annotator,
            "model": annotations.model,
            "baseline": annotations.baseline,
            "missing_preferences": report.missing,
            "repeated_instructions": annotations.repeated,
            "lengths_from_reference": annotations.from_reference,
            "avg_length": report.mean_length,
            "avg_length_baseline": report.mean_length_baseline,
            "length_control": report.control,
            "df_gamed": self.gamed.map(|gamed| json!({"path": gamed.path, "sha256": gamed.sha256})),
        });
        let rate = serde_json::to_value(&report.win_rate).unwrap_or_default();
        if let (Value::Object(all), Value::Object(rate)) = (&mut value, rate) {
            all.extend(rate);
        }
        let (number, error) = match report.control {
            LengthControl::LengthControlledV1 => ("length_controlled_winrate", "lc_standard_error"),
            LengthControl::LengthControlledMinimal => (
                "length_controlled_minimal",
                "length_controlled_minimal_standard_error",
            ),
        };
        match &report.length_controlled {
            Ok(found) => {
                value[number] = json!(found.win_rate);
                value[error] = json!(found.standard_error);
                value["fit"] = json!({"weights": found.weights, "c": found.c});
            }
            Err(why) => {
                value[number] = Value::Null;
                value["no_length_control"] = json!(why);
            }
        }
        value
    }
}

fn label(control: LengthControl) -> &'static str {
    match control {
        LengthControl::LengthControlledV1 => "length-controlled (LC)",
        LengthControl::LengthControlledMinimal => "length_controlled_minimal",
    }
}

fn number(value: f64, error: Option<f64>) -> String {
    match error {
        Some(error) => format!("{value:6.2}   standard error {error:.2}"),
        None => format!("{value:6.2}"),
    }
}
