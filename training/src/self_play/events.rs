//! The event file of a run for TensorBoard: what each iteration came to, by its number.

use std::path::Path;

use super::report::IterationReport;
use crate::data::{PairRow, ResponseRow, read_rows};
use crate::stages::StageError;
use crate::tensorboard::{EventFile, FOLDER, verbatim};

/// Held-out prompts whose answers are shown.
const SHOWN: usize = 8;

/// The file of the run in `dir`, begun anew: iterations that are finished are gone through again.
pub(super) fn begin(dir: &Path) -> Result<EventFile, StageError> {
    Ok(EventFile::open(&dir.join(FOLDER), 0)?)
}

/// Adds an iteration, whose files lie in `folder`.
pub(super) fn add(
    events: &mut EventFile,
    entry: &IterationReport,
    folder: &Path,
    first_answers: &Path,
) -> Result<(), StageError> {
    let step = entry.iteration;
    let (first, previous) = (&entry.against_first, &entry.against_previous);
    let scalars = [
        ("heldout/win_rate", first.win_rate),
        ("heldout/win_rate_se", first.win_rate_se),
        (
            "heldout/length_controlled_win_rate",
            first.length_controlled_win_rate,
        ),
        ("heldout/win_rate_previous", previous.win_rate),
        ("heldout/mean_preference", first.mean_preference),
        ("heldout/mean_length", first.mean_length),
        ("pairs", entry.pairs as f64),
    ];
    events.scalars(step, &scalars.map(|(tag, value)| (tag.to_string(), value)))?;
    let answers: Vec<ResponseRow> = read_rows(&folder.join("heldout.jsonl"))?;
    let lengths = |rows: &[ResponseRow]| -> Vec<f64> {
        let texts = rows.iter().flat_map(|row| &row.responses);
        texts.map(|text| text.chars().count() as f64).collect()
    };
    events.histogram(step, "heldout/characters", &lengths(&answers))?;
    let responses: Vec<ResponseRow> = read_rows(&folder.join("responses.jsonl"))?;
    events.histogram(step, "responses/characters", &lengths(&responses))?;
    let pairs: Vec<PairRow> = read_rows(&folder.join("pairs.jsonl"))?;
    let probabilities = pairs.iter().map(|row| row.probabilities);
    let won: Vec<f64> = probabilities.clone().filter_map(|p| p.win).collect();
    let lost: Vec<f64> = probabilities.filter_map(|p| p.lose).collect();
    events.histogram(step, "pairs/chosen_probs_win", &won)?;
    events.histogram(step, "pairs/chosen_probs_lose", &lost)?;
    let before: Vec<ResponseRow> = read_rows(first_answers)?;
    for (i, row) in answers.iter().take(SHOWN).enumerate() {
        let first = before.iter().find(|b| b.prompt_id == row.prompt_id);
        let tag = format!("heldout/answer-{}", i + 1);
        events.text(step, &tag, &shown(row, first))?;
    }
    Ok(events.sync()?)
}

/// A prompt, and its answers before and after, as Markdown.
fn shown(row: &ResponseRow, first: Option<&ResponseRow>) -> String {
    let mut text = String::new();
    for message in row.prompt.messages().iter() {
        let turn = format!("{}: {}", message.role, message.text());
        text += &format!("{}\n", verbatim(&turn));
    }
    let answers = [("the first model", first), ("this iteration", Some(row))];
    for (who, row) in answers {
        let answer = row.and_then(|row| row.responses.first());
        if let Some(answer) = answer {
            text += &format!("**{who}**\n\n{}\n", verbatim(answer));
        }
    }
    text
}
