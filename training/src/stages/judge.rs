//! Responses → judged rows → pairs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::chat_text::{ChatText, ChatTextError};
use sppo_model::llama::RewardModel;
use sppo_model::ops::ModelOps;
use sppo_model::pairrm::PairRm;

use super::error::StageError;
use super::learning::model_key;
use crate::cluster::{self, lead};
use crate::config::{self, JudgeKind, OnBadRow, resolve_model};
use crate::data::{
    JudgedRow, PairRow, ResponseRow, RowFile, row_output, rows_fingerprint, warn_unfinished,
    write_rows,
};
use crate::files::{Existing, MadeFrom, model_fingerprint};
use crate::judge::{
    DryRun, Estimate, HttpJudge, Judge, JudgeError, JudgedFile, PairRmJudge, PromptText,
    RewardJudge, Rubric, ScoresJudge, judge_file,
};
use crate::monitor::{Monitor, begin_share};
use crate::preference::{Ties, judged_to_pair};
use crate::tokenise::{BadRows, MAY_BE_SKIPPED};

/// The judge that `[judge]` describes, its model loaded on `device`; `date` is what its chat
/// template sees, today unless given.
pub fn build_judge<B: ModelOps>(
    config: &config::JudgeConfig,
    date: Option<NaiveDate>,
    device: &B::Device,
) -> Result<Box<dyn Judge>, StageError> {
    build_judge_of::<B>(config, None, date, device)
}

/// The same; unless `[judge]` names a chat template, prompts are rendered as the policy's are,
/// whose folder and template are given.
pub fn build_judge_of<B: ModelOps>(
    config: &config::JudgeConfig,
    policy: Option<(&Path, TemplateSource<'_>)>,
    date: Option<NaiveDate>,
    device: &B::Device,
) -> Result<Box<dyn Judge>, StageError> {
    let estimate = estimate(config);
    match config.kind {
        JudgeKind::Rubric => Ok(Box::new(
            Rubric::new(config.rubric.clone()).with_samples(config.samples),
        )),
        JudgeKind::Scores => match &config.scores {
            Some(path) => Ok(Box::new(ScoresJudge::open(path, estimate)?)),
            None => Err(StageError::Input(
                "judge.kind = \"scores\" needs judge.scores, a file with prompt_id and rm_scores"
                    .into(),
            )),
        },
        JudgeKind::PairRm => Ok(Box::new(pairrm::<B>(
            config, policy, date, estimate, device,
        )?)),
        JudgeKind::Reward => Ok(Box::new(reward::<B>(config, date, estimate, device)?)),
        JudgeKind::Http => {
            let mut http = config.http.clone();
            if !cluster::world().leads() {
                // Rank 0 alone asks, and keeps the answers.
                http.cache = None;
            }
            Ok(Box::new(HttpJudge::new(http, estimate, true)?))
        }
    }
}

/// What the http judge would ask for a file of responses; nothing is sent or written.
pub fn dry_run(
    config: &config::JudgeConfig,
    responses: &Path,
    on_bad_row: OnBadRow,
) -> Result<DryRun, StageError> {
    let judge = HttpJudge::new(config.http.clone(), estimate(config), false)?;
    let rows = rows_to_judge(responses, on_bad_row, &judge)?.rows;
    Ok(judge.dry_run(&rows)?)
}

fn estimate(config: &config::JudgeConfig) -> Estimate {
    Estimate {
        probability: config.probability,
        temperature: config.temperature,
        samples: config.samples,
    }
}

fn pairrm<B: ModelOps>(
    config: &config::JudgeConfig,
    policy: Option<(&Path, TemplateSource<'_>)>,
    date: Option<NaiveDate>,
    estimate: Estimate,
    device: &B::Device,
) -> Result<PairRmJudge<B>, StageError> {
    let folder = model_folder(config)?;
    let template = config.chat_template.as_deref();
    let template_folder = template.map(folder_of_template).transpose()?;
    let named = template_folder
        .as_deref()
        .map(|folder| (folder, template_file(config)));
    let prompts = PromptText::of(named.or(policy), date)?;
    // A GPU's pool gives back the pages of the stage before.
    B::memory_cleanup(device);
    let loaded = PairRm::load(&folder, config.precision.dtype(), device)?;
    let fingerprint = model_fingerprint(&folder)?;
    let batch_tokens = config.batch_tokens;
    Ok(PairRmJudge::new(
        loaded,
        &fingerprint,
        prompts,
        estimate,
        batch_tokens,
    ))
}

fn reward<B: ModelOps>(
    config: &config::JudgeConfig,
    date: Option<NaiveDate>,
    estimate: Estimate,
    device: &B::Device,
) -> Result<RewardJudge<B>, StageError> {
    let folder = model_folder(config)?;
    B::memory_cleanup(device);
    let model = RewardModel::load(&folder, config.precision.dtype(), device)?;
    let template = template_file(config);
    let text = ChatText::find_with(&folder, template)
        .and_then(|text| text.ok_or_else(|| ChatTextError::missing(&folder)));
    let text = text.map_err(|error| JudgeError::Config {
        key: "judge.model".into(),
        problem: error.to_string(),
    })?;
    let text = match date {
        Some(date) => text.with_date(date),
        None => text,
    };
    let fingerprint = model_key(&folder, template)?;
    let batch_tokens = config.batch_tokens;
    Ok(RewardJudge::new(
        model,
        &fingerprint,
        text,
        estimate,
        batch_tokens,
    ))
}

/// The chat template that `[judge]` names, where it is a file.
fn template_file(config: &config::JudgeConfig) -> TemplateSource<'_> {
    let path = config.chat_template.as_deref();
    TemplateSource::of(path.filter(|path| path.is_file()))
}

/// The folder of a chat template: its special tokens are the variables of the template.
fn folder_of_template(template: &Path) -> Result<PathBuf, StageError> {
    match (template.is_file(), template.parent()) {
        (true, Some(parent)) => Ok(parent.into()),
        _ => Ok(resolve_model(&template.to_string_lossy())?),
    }
}

/// The folder of the judge's model.
fn model_folder(config: &config::JudgeConfig) -> Result<PathBuf, StageError> {
    match &config.model {
        Some(name) => Ok(resolve_model(name)?),
        None => Err(StageError::Input(format!(
            "judge.kind = {:?} needs judge.model, the folder of the judge's model",
            config.kind.word()
        ))),
    }
}

/// Rows I, I + N, I + 2N, … of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// I, counted from 0.
    pub index: usize,
    /// N, the number of parts.
    pub of: usize,
}

/// What is judged, and where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Judging<'a> {
    /// File of responses.
    pub responses: &'a Path,
    /// File that receives a judged row for each.
    pub out: &'a Path,
    /// Part of the rows.
    pub part: Option<Part>,
    /// What the progress is called.
    pub label: &'a str,
    /// What becomes of rows that cannot be used.
    pub on_bad_row: OnBadRow,
    /// What becomes of an output that was made from something else.
    pub existing: Existing<'a>,
}

/// The rows of a file that the judge can judge; the others are refused together, or left out.
fn rows_to_judge(
    responses: &Path,
    on_bad_row: OnBadRow,
    judge: &dyn Judge,
) -> Result<RowFile<ResponseRow>, StageError> {
    let mut file = RowFile::<ResponseRow>::read(responses, on_bad_row.skips())?;
    let problem = match judge.check(&file.rows) {
        Ok(()) => return Ok(file),
        Err(error @ JudgeError::Row { .. }) if file.skip_bad => error,
        Err(error) => return Err(error.into()),
    };
    let all = file.rows.len();
    let mut bad = BadRows::default();
    let mut failed = None;
    file.retain(|number, row| match judge.check_row(row) {
        Ok(()) => true,
        Err(error @ JudgeError::Row { .. }) => {
            bad.add(|| format!("row {number}, {error}"));
            false
        }
        Err(error) => {
            failed.get_or_insert(error);
            false
        }
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    if file.rows.is_empty() {
        bad.refused()?;
        return Ok(file);
    }
    bad.warn(responses, all);
    file.left_out += bad.count();
    match file.left_out {
        // No row is to blame: the file does not belong to the judge's.
        0 => Err(problem.into()),
        _ => Ok(file),
    }
}

/// Judges every row of the responses, or of a part of them, that `job.out` does not hold yet; how
/// many rows could not be used and are left out.
pub fn judge_responses(
    job: Judging<'_>,
    judge: &mut dyn Judge,
    monitor: &dyn Monitor,
) -> Result<usize, StageError> {
    let world = cluster::world();
    lead(world, || row_output(job.out, &[]).refuse_foreign())?;
    warn_unfinished(job.responses);
    // Before the part is taken: what does not fit is the same for every part.
    let mut file = rows_to_judge(job.responses, job.on_bad_row, judge)?;
    if let Some(part) = job.part {
        file.retain(|number, _| (number - 1) % part.of == part.index);
    }
    let (rows, left_out) = (file.rows, file.left_out);
    // The driver counts rows that were there before; the monitor wants differences.
    let mut before = None;
    let mut progress = |done, total| {
        match before {
            None => begin_share(monitor, world, (job.label, "prompts"), (done, total), total),
            Some(before) => monitor.advance(done - before, None),
        }
        before = Some(done);
    };
    let made_from = MadeFrom::new("judge")
        .settings(judge_settings(judge))
        .settings(job.on_bad_row.setting())
        .input("responses", job.responses, rows_fingerprint(&rows));
    let file = JudgedFile::open(world, job.out, made_from, job.existing)?;
    let progress = judge_file(&rows, judge, file, &mut progress, monitor.interrupt());
    monitor.end();
    match progress?.interrupted {
        true => Err(StageError::Interrupted),
        false => Ok(left_out),
    }
}

/// The fields of a judge's description, each a setting.
fn judge_settings(judge: &dyn Judge) -> Vec<(String, String)> {
    let description = judge.description();
    let fields = description.as_object().into_iter().flatten();
    fields
        .map(|(name, value)| (format!("judge.{name}"), value.to_string()))
        .collect()
}

/// Pairs that were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadePairs {
    /// How many.
    pub pairs: usize,
    /// Judged rows that could not be used and are left out.
    pub left_out: usize,
}

/// Writes the best and worst response of every judged row. Among several ranks, rank 0 does it.
pub fn make_pairs(
    judged: &Path,
    out: &Path,
    ties: Ties,
    on_bad_row: OnBadRow,
    existing: Existing<'_>,
) -> Result<MadePairs, StageError> {
    lead(cluster::world(), || {
        pairs_of(judged, out, ties, on_bad_row, existing)
    })
}

fn pairs_of(
    judged: &Path,
    out: &Path,
    ties: Ties,
    on_bad_row: OnBadRow,
    existing: Existing<'_>,
) -> Result<MadePairs, StageError> {
    row_output(out, &[]).refuse_foreign()?;
    warn_unfinished(judged);
    let mut file = RowFile::<JudgedRow>::read(judged, on_bad_row.skips())?;
    let mut pairs: Vec<PairRow> = Vec::new();
    let mut bad = BadRows::default();
    for (number, row) in file.numbers.iter().zip(&file.rows) {
        match judged_to_pair(row, ties) {
            Ok(pair) => pairs.extend(pair),
            Err(problem) => bad.add(|| format!("row {number}, {problem}")),
        }
    }
    let left_out = bad.count();
    if file.skip_bad && left_out < file.rows.len() {
        bad.warn(judged, file.rows.len());
    } else {
        if !file.skip_bad {
            bad.advise(MAY_BE_SKIPPED);
        }
        bad.refused()?;
    }
    file.left_out += left_out;
    if pairs.is_empty() {
        return Err(StageError::Input(format!(
            "{}: the judge found no difference between the responses of any prompt; sample more responses, sharpen the judge or keep ties",
            judged.display()
        )));
    }
    let made_from = MadeFrom::new("pairs")
        .setting("drop_ties", ties == Ties::Drop)
        .settings(on_bad_row.setting())
        .input("judged", judged, rows_fingerprint(&file.rows));
    write_rows(out, &pairs, made_from, existing)?;
    Ok(MadePairs {
        pairs: pairs.len(),
        left_out: file.left_out,
    })
}
