//! Responses → judged rows → pairs.

use std::path::{Path, PathBuf};

use sppo_model::chat_text::ChatText;
use sppo_model::llama::RewardModel;
use sppo_model::ops::ModelOps;
use sppo_model::pairrm::PairRm;

use super::error::StageError;
use crate::config::{self, JudgeKind, resolve_model};
use crate::data::{DataError, JudgedRow, PairRow, ResponseRow, read_rows, write_rows};
use crate::files::model_fingerprint;
use crate::judge::{
    DryRun, Estimate, HttpJudge, Judge, JudgeError, PairRmJudge, PromptText, RewardJudge, Rubric,
    ScoresJudge, judge_file,
};
use crate::monitor::Monitor;
use crate::preference::{Ties, judged_to_pair};

/// The judge that `[judge]` describes, its model loaded on `device`.
pub fn build_judge<B: ModelOps>(
    config: &config::JudgeConfig,
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
        JudgeKind::PairRm => Ok(Box::new(pairrm::<B>(config, estimate, device)?)),
        JudgeKind::Reward => Ok(Box::new(reward::<B>(config, estimate, device)?)),
        JudgeKind::Http => Ok(Box::new(HttpJudge::new(
            config.http.clone(),
            estimate,
            true,
        )?)),
    }
}

/// What the http judge would ask for a file of responses; nothing is sent or written.
pub fn dry_run(config: &config::JudgeConfig, responses: &Path) -> Result<DryRun, StageError> {
    let judge = HttpJudge::new(config.http.clone(), estimate(config), false)?;
    Ok(judge.dry_run(&read_rows(responses)?)?)
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
    estimate: Estimate,
    device: &B::Device,
) -> Result<PairRmJudge<B>, StageError> {
    let folder = model_folder(config)?;
    let template = config.chat_template.as_ref();
    let template = template
        .map(|folder| resolve_model(&folder.to_string_lossy()))
        .transpose()?;
    let prompts = PromptText::from_dir(template.as_deref())?;
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
    estimate: Estimate,
    device: &B::Device,
) -> Result<RewardJudge<B>, StageError> {
    let folder = model_folder(config)?;
    let model = RewardModel::load(&folder, config.precision.dtype(), device)?;
    let text = ChatText::open(&folder).map_err(|error| JudgeError::Config {
        key: "judge.model".into(),
        problem: error.to_string(),
    })?;
    let fingerprint = model_fingerprint(&folder)?;
    let batch_tokens = config.batch_tokens;
    Ok(RewardJudge::new(
        model,
        &fingerprint,
        text,
        estimate,
        batch_tokens,
    ))
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

/// Judges every row of `responses`, or of a part of them, that `out` does not hold yet.
pub fn judge_responses(
    responses: &Path,
    judge: &mut dyn Judge,
    out: &Path,
    part: Option<Part>,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    let mut rows = read_rows::<ResponseRow>(responses)?;
    // Before the part is taken: what does not fit is the same for every part.
    judge.check(&rows)?;
    if let Some(part) = part {
        let mut number = 0..;
        rows.retain(|_| {
            number
                .next()
                .is_some_and(|n: usize| n % part.of == part.index)
        });
    }
    // The driver counts rows that were there before; the monitor wants differences.
    let mut before = None;
    let mut progress = |done, total| {
        match before {
            None => monitor.begin("judging", "prompts", done, total),
            Some(before) => monitor.advance(done - before, None),
        }
        before = Some(done);
    };
    let progress = judge_file(&rows, judge, out, &mut progress, monitor.interrupt());
    monitor.end();
    match progress?.interrupted {
        true => Err(StageError::Interrupted),
        false => Ok(()),
    }
}

/// Writes the best and worst response of every judged row; gives the number of pairs. An `out`
/// that holds pairs is replaced, one that holds anything else refused.
pub fn make_pairs(judged: &Path, out: &Path, ties: Ties) -> Result<usize, StageError> {
    let rows = read_rows::<JudgedRow>(judged)?;
    let pairs = rows
        .iter()
        .filter_map(|row| judged_to_pair(row, ties).transpose())
        .collect::<Result<Vec<PairRow>, _>>()?;
    match read_rows::<PairRow>(out) {
        Err(DataError::Row { .. } | DataError::Syntax { .. } | DataError::Parquet { .. }) => {
            return Err(StageError::Input(format!(
                "{} already holds something other than pairs; remove it or choose another --out",
                out.display()
            )));
        }
        _ => write_rows(out, &pairs)?,
    }
    Ok(pairs.len())
}
