//! Pairs → summed response log-probabilities.

use std::path::Path;

use burn::tensor::DType;
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::ops::ModelOps;

use super::error::StageError;
use super::folder::{open_folder, with_folder};
use crate::config::{OnBadRow, Rows};
use crate::data::{
    LogpRow, PairRow, RowOutput, RowsFingerprint, read_each_numbered, row_output, warn_unfinished,
};
use crate::files::{Existing, MadeFrom, mark_beside};
use crate::learner::sequence_logps;
use crate::monitor::Monitor;
use crate::tokenise::{PairTokeniser, RowTokeniser};

/// Log-probabilities of pairs under one model.
#[derive(Clone, Copy, Debug)]
pub struct Scoring<'a> {
    /// Folder of the model.
    pub model: &'a Path,
    /// Chat template of its text.
    pub template: TemplateSource<'a>,
    /// File of pairs.
    pub data: &'a Path,
    /// File that receives a [`LogpRow`] for each pair.
    pub out: &'a Path,
    /// How text becomes token ids.
    pub rows: Rows,
    /// Longest prompt with response, in tokens.
    pub max_length: usize,
    /// Longest prompt, in tokens, where prompt and response are too long together.
    pub max_prompt_length: usize,
    /// What becomes of rows that cannot be used.
    pub on_bad_row: OnBadRow,
    /// Pairs computed together.
    pub batch: usize,
    /// What becomes of an output that was made from something else.
    pub existing: Existing<'a>,
    /// The day that the chat template sees; today unless given.
    pub date: Option<NaiveDate>,
}

/// Scores the rows behind those that `out` holds already; the values are those that training sees,
/// to the last digit.
pub fn score<B: ModelOps>(
    job: Scoring<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    warn_unfinished(job.data);
    row_output(job.out, &[]).refuse_foreign()?;
    let folder = open_folder(job.model, job.template, job.date, &mark_beside(job.out))?;
    let tokeniser =
        RowTokeniser::of_folder(&folder, job.rows, job.max_length, job.max_prompt_length)?;
    let mut pairs = PairTokeniser::new(
        tokeniser.as_ref().ok_or(job.model),
        job.max_length,
        folder.config().vocab_size,
        folder.config().max_position_embeddings,
    );
    // Of the text no row is kept, which would take several times as much as the ids.
    let mut rows = RowsFingerprint::default();
    let skip_bad = job.on_bad_row.skips();
    read_each_numbered(job.data, skip_bad, |number, row: PairRow| {
        rows.add(&row);
        pairs.add(number, &row);
    })?;
    let pairs = pairs.finish(job.data, skip_bad)?.rows;
    let made_from = MadeFrom::new("score")
        .setting("rows", job.rows)
        .setting("max_length", job.max_length)
        .setting("max_prompt_length", job.max_prompt_length)
        .settings(job.on_bad_row.setting())
        .input("data", job.data, rows.finish());
    let made_from = with_folder(made_from, &folder, job.template)?;
    let (mut writer, done) = RowOutput::<LogpRow>::open(job.out, made_from, job.existing)?;
    if done.len() >= pairs.len() {
        return Ok(writer.finish()?);
    }
    let model = folder.load::<B>(DType::F32, device)?;
    monitor.begin("scoring", "pairs", done.len(), pairs.len());
    for (index, batch) in pairs.chunks(job.batch).enumerate() {
        // Batches are cut from the whole list: cut elsewhere, the last digit could differ.
        let kept = done.len().saturating_sub(index * job.batch);
        if kept >= batch.len() {
            continue;
        }
        if monitor.interrupted() {
            monitor.end();
            return Err(StageError::Interrupted);
        }
        let sequences: Vec<_> = batch.iter().flat_map(|p| p.pair.sides()).collect();
        let logps = sequence_logps(&model, &sequences)?;
        for (pair, sides) in batch.iter().zip(logps.chunks_exact(2)).skip(kept) {
            if !(sides[0] + sides[1]).is_finite() {
                return Err(StageError::NotFinite {
                    model: job.model.into(),
                    row: pair.name.clone(),
                });
            }
            writer.append(&LogpRow {
                chosen_logps: sides[0],
                rejected_logps: sides[1],
            })?;
        }
        monitor.advance(batch.len() - kept, None);
    }
    monitor.end();
    Ok(writer.finish()?)
}
