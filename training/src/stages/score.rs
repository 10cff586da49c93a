//! Pairs → summed response log-probabilities.

use std::ops::Range;
use std::path::Path;

use burn::tensor::DType;
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::ops::ModelOps;

use super::error::StageError;
use super::folder::{open_folder, with_folder};
use crate::cluster::{self, lead};
use crate::config::{OnBadRow, Rows};
use crate::data::{
    Closed, LogpRow, PairRow, RowsFingerprint, SharedOutput, deal, read_each_numbered, row_output,
    warn_unfinished,
};
use crate::files::{Existing, MadeFrom, mark_beside};
use crate::learner::sequence_logps;
use crate::monitor::{Monitor, begin_share};
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
    let world = cluster::world();
    warn_unfinished(job.data);
    lead(world, || row_output(job.out, &[]).refuse_foreign())?;
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
    let data = rows.finish();
    let made_from = || {
        let made_from = MadeFrom::new("score")
            .setting("rows", job.rows)
            .setting("max_length", job.max_length)
            .setting("max_prompt_length", job.max_prompt_length)
            .settings(job.on_bad_row.setting())
            .input("data", job.data, data);
        with_folder(made_from, &folder, job.template)
    };
    let (mut output, done) =
        SharedOutput::<LogpRow>::open(world, job.out, &[], made_from, job.existing)?;
    let todo = output.begin(done.len()..pairs.len())?;
    // Batches are cut from the whole list: cut elsewhere, the last digit could differ.
    let batches = (0..pairs.len())
        .step_by(job.batch)
        .map(|start| start..(start + job.batch).min(pairs.len()))
        .filter(|batch| todo.range(batch.clone()).next().is_some());
    let own: Vec<Range<usize>> = deal(world, batches).collect();
    let mut interrupted = false;
    if !own.is_empty() {
        let model = folder.load::<B>(DType::F32, device)?;
        let places = own.iter().flat_map(|batch| todo.range(batch.clone()));
        let known = (pairs.len() - todo.len(), pairs.len());
        begin_share(monitor, world, ("scoring", "pairs"), known, places.count());
        for batch in own {
            interrupted = monitor.interrupted();
            if interrupted {
                break;
            }
            let sequences: Vec<_> = pairs[batch.clone()]
                .iter()
                .flat_map(|p| p.pair.sides())
                .collect();
            let logps = sequence_logps(&model, &sequences)?;
            for (place, sides) in batch.zip(logps.chunks_exact(2)) {
                if !todo.contains(&place) {
                    continue;
                }
                if !(sides[0] + sides[1]).is_finite() {
                    return Err(StageError::NotFinite {
                        model: job.model.into(),
                        row: pairs[place].name.clone(),
                    });
                }
                let row = LogpRow {
                    chosen_logps: sides[0],
                    rejected_logps: sides[1],
                };
                output.add(place, row)?;
                monitor.advance(1, None);
            }
        }
        monitor.end();
    }
    match output.close(interrupted)? {
        Closed::Interrupted => Err(StageError::Interrupted),
        _ => Ok(()),
    }
}
