//! Prompts → responses.

use std::collections::HashSet;
use std::path::Path;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use sppo_model::generate::{GenerationDefaults, Request, Sample, SamplingParams, check_requests};

use super::{Policy, StageError};
use crate::data::{Prompt, PromptRow, ResponseRow, RowWriter};
use crate::monitor::Monitor;

/// Sampling of responses from one model.
#[derive(Clone, Copy, Debug)]
pub struct Generation<'a> {
    pub model: &'a Path,
    pub prompts: &'a [PromptRow],
    pub out: &'a Path,
    pub samples: usize,
    pub temperature: f64,
    pub top_p: f64,
    pub top_k: usize,
    pub max_new_tokens: usize,
    pub seed: u64,
    /// Sequences decoded together.
    pub batch: usize,
    /// What the progress is called.
    pub label: &'a str,
}

/// Answers the prompts that `out` does not hold yet.
///
/// Batches are cut from the whole list, so that a run that goes on computes what an
/// uninterrupted one computes, to the bit.
pub fn generate<B: Backend>(
    job: Generation<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    let (mut writer, done) = RowWriter::<ResponseRow>::open(job.out)?;
    check_resumed(&job, &done)?;
    let done: HashSet<String> = done.into_iter().map(|row| row.prompt_id).collect();
    let all_done = job.prompts.iter().all(|p| done.contains(&p.prompt_id));
    if all_done {
        return Ok(writer.finish()?);
    }
    let policy = Policy::<B>::load(job.model, DType::F32, device)?;
    let requests = requests(&job, &policy)?;
    let params = SamplingParams {
        temperature: job.temperature,
        top_p: job.top_p,
        top_k: job.top_k,
        max_new_tokens: job.max_new_tokens,
        stop_ids: GenerationDefaults::from_dir(job.model, &policy.config)?.stop_ids,
        seed: job.seed,
    };
    // Hours later would be a bad time to find the one prompt that is too long.
    check_requests(&policy.config, &requests)?;
    let together = (job.batch / job.samples).max(1);
    monitor.begin(job.label, "prompts", done.len(), job.prompts.len());
    let batches = requests.chunks(together).zip(job.prompts.chunks(together));
    for (requests, prompts) in batches {
        if prompts.iter().all(|p| done.contains(&p.prompt_id)) {
            continue;
        }
        let answers = sppo_model::generate::generate(
            &policy.model,
            &policy.config,
            requests,
            &params,
            |_| !monitor.interrupted(),
        )?;
        let Some(answers) = answers else {
            monitor.end();
            return Err(StageError::Interrupted);
        };
        for (prompt, samples) in prompts.iter().zip(&answers) {
            if !done.contains(&prompt.prompt_id) {
                writer.append(&response_row(prompt, samples, &policy)?)?;
                monitor.advance(1, None);
            }
        }
    }
    monitor.end();
    Ok(writer.finish()?)
}

/// Refuses to go on with a file that an other job wrote.
fn check_resumed(job: &Generation<'_>, done: &[ResponseRow]) -> Result<(), StageError> {
    let known: HashSet<&str> = job.prompts.iter().map(|p| p.prompt_id.as_str()).collect();
    let foreign = done
        .iter()
        .find(|row| !known.contains(row.prompt_id.as_str()) || row.responses.len() != job.samples);
    match foreign {
        None => Ok(()),
        Some(row) => Err(StageError::Input(format!(
            "{} already holds other work (prompt_id {} with {} responses); remove it or choose another --out",
            job.out.display(),
            row.prompt_id,
            row.responses.len()
        ))),
    }
}

fn requests<B: Backend>(
    job: &Generation<'_>,
    policy: &Policy<B>,
) -> Result<Vec<Request>, StageError> {
    let text = policy.require_text()?;
    let request = |row: &PromptRow| {
        let in_prompt = |source| StageError::Prompt {
            prompt_id: row.prompt_id.clone(),
            source,
        };
        let rendered = text.template.render(&row.prompt.messages(), true);
        let rendered = rendered.map_err(|e| in_prompt(e.into()))?;
        let prompt = text.tokenizer.encode(&rendered, false);
        Ok(Request {
            id: row.prompt_id.clone(),
            prompt: prompt.map_err(|e| in_prompt(e.into()))?,
            samples: job.samples,
        })
    };
    job.prompts.iter().map(request).collect()
}

fn response_row<B: Backend>(
    prompt: &PromptRow,
    samples: &[Sample],
    policy: &Policy<B>,
) -> Result<ResponseRow, StageError> {
    let tokenizer = &policy.require_text()?.tokenizer;
    let responses = samples
        .iter()
        .map(|s| tokenizer.decode(s.text_tokens(), true))
        .collect::<Result<_, _>>()?;
    let reasons = samples.iter().map(|s| s.finish.as_str().to_string());
    Ok(ResponseRow {
        prompt_id: prompt.prompt_id.clone(),
        prompt: Prompt::Messages(prompt.prompt.messages().into_owned()),
        reference: prompt.reference.clone(),
        responses,
        finish_reasons: Some(reasons.collect()),
        tokens: Some(samples.iter().map(|s| s.tokens.len() as u32).collect()),
        logprobs: None,
    })
}
