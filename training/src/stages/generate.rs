//! Prompts → responses.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use sppo_model::chat_template::TemplateSource;
use sppo_model::chat_text::ChatText;
use sppo_model::end_of_turn::Stop;
use sppo_model::generate::{
    CachePlan, Engine, Event, GenerateError, Request, RequestId, Sample, SamplingParams,
};
use sppo_model::llama::{Decoder, LlamaConfig, activations_dtype, prefill_tokens};
use sppo_model::model_folder::ModelFolder;
use sppo_model::ops::ModelOps;

use super::error::StageError;
use super::generation::Generation;
use super::prompts::answerable;
use super::responses::{Output, ahead_of};
use crate::cluster::{self, lead};
use crate::data::{Closed, Prompt, ResponseRow, row_output};
use crate::files::Existing;
use crate::monitor::{Monitor, begin_share};
use crate::tokenise::BadRows;

/// Answers the prompts that `out` does not hold yet.
///
/// Rows stand in the order of prompts. One that is finished before its turn is kept
/// beside the output, so that nothing finished is lost when the run stops, and the file is
/// the same however often it did. Prompts that the model cannot answer are refused, or left out,
/// before the output is touched and the model loaded. One whose logits are not finite gets no row;
/// the others do, then the job fails.
pub fn generate<B: ModelOps>(
    job: Generation<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    let world = cluster::world();
    // Before the model is hashed, which takes its time.
    lead(world, || {
        row_output(job.out, &[ahead_of(job.out)]).refuse_foreign()
    })?;
    refuse_messages(&job)?;
    if job.sampling.temperature == 0.0 && job.sampling.samples > 1 && world.leads() {
        tracing::warn!(
            "at temperature 0 the {} responses to a prompt are the same",
            job.sampling.samples
        );
    }
    let folder = job.open_folder()?;
    let text = folder.require_text()?;
    let config = folder.config();
    let raw = job.template == TemplateSource::Raw;
    let answerable = answerable(job.prompts, job.row_numbers, job.limits, raw, &folder)?;
    let stops = Stops::of(&job, &folder)?;
    let job = Generation {
        prompts: &answerable.rows,
        ..job
    };
    if job.existing == Existing::Overwrite {
        // Before the old output goes.
        check_cache::<B>(&job, config, &answerable.ids)?;
    }
    let mut output = Output::open(world, &job, &folder)?;
    if output.left.is_empty() {
        return end(&job, output, false);
    }
    let mut requests = requests(&job, &output, &answerable.ids, &stops);
    let tokenizer = (!stops.texts.is_empty()).then(|| Arc::new(text.tokenizer().clone()));
    let wanted = job
        .sampling
        .batch
        .min(requests.len().saturating_mul(job.sampling.samples));
    let plan = plan::<B>(
        config,
        &requests,
        wanted,
        job.sampling.cache_memory_mib,
        job.sampling.dtype,
    )?;
    // A GPU's pool gives back the pages of the stage before.
    B::memory_cleanup(device);
    let model = folder.load::<B>(job.sampling.dtype, device)?;
    let mut run = Run {
        engine: Engine::new(Arc::new(Decoder::new(model, config)), plan, tokenizer),
        prompts: &answerable.ids,
        text,
        open: HashMap::new(),
        failed: Vec::new(),
        begun: Instant::now(),
        tokens: 0,
        responses: 0,
    };
    // A prompt far behind the first unfinished one would wait for long in memory.
    let window = 16 * plan.slots * world.size();
    let (total, own) = (job.prompts.len(), output.left.len());
    let work = (job.label, "prompts");
    begin_share(monitor, world, work, (total - own, total), own);
    let mut interrupted = false;
    while !interrupted && let Some(&next) = output.left.first() {
        while let Some((number, _)) = requests.front()
            && *number < next + window
            && run.engine.pending() < 2 * plan.slots
        {
            let Some((number, request)) = requests.pop_front() else {
                break;
            };
            let answers = vec![None; request.samples];
            run.open
                .insert(run.engine.submit(request)?, (number, answers));
        }
        let finished = run.step()?;
        cluster::advance();
        let rows = finished
            .into_iter()
            .map(|(number, samples)| Ok((number, run.row(&job, number, &samples)?)))
            .collect::<Result<Vec<_>, StageError>>()?;
        for (number, row) in rows {
            output.add(&job, number, row)?;
            monitor.advance(1, Some(run.note()));
        }
        for number in run.failed.drain(..) {
            output.give_up(number)?;
            monitor.advance(1, None);
        }
        let waiting = requests.len() * job.sampling.samples;
        monitor.time_left(run.seconds_left(waiting, job.sampling.max_new_tokens));
        interrupted = monitor.interrupted();
    }
    monitor.end();
    end(&job, output, interrupted)
}

/// Ends the output, or says why there is more to do.
fn end(job: &Generation<'_>, output: Output<'_>, interrupted: bool) -> Result<(), StageError> {
    let numbers = match output.close(interrupted)? {
        Closed::Whole => return Ok(()),
        Closed::Interrupted => return Err(StageError::Interrupted),
        Closed::Without(numbers) => numbers,
    };
    let mut failed = BadRows::default();
    for number in numbers {
        failed.add(|| format!("prompt {}", job.prompts[number].prompt_id));
    }
    failed.advise("the model's logits for them are not finite (NaN or infinite weights?)");
    let out = job.out.into();
    failed
        .refused()
        .map_err(|rows| StageError::NotAnswered { out, rows })
}

/// Refuses a bound on the cache that the longest sequence does not fit into.
fn check_cache<B: ModelOps>(
    job: &Generation<'_>,
    config: &LlamaConfig,
    prompts: &[Vec<u32>],
) -> Result<(), StageError> {
    let sampling = &job.sampling;
    let context = config.max_position_embeddings;
    let most = |ids: &Vec<u32>| {
        ids.len()
            .saturating_add(sampling.max_new_tokens)
            .min(context)
    };
    let tokens = prompts.iter().map(most).max().unwrap_or(1);
    let budget = sampling.cache_memory_mib.map(|mib| (mib as u64) << 20);
    // One slot: a pass holds no more than its prompt.
    let dtype = activations_dtype(B::ON_HOST, sampling.dtype);
    CachePlan::new(config, dtype, 1, 1, tokens, tokens, budget)?;
    Ok(())
}

/// Slots and workers for `requests`: the most that the budget holds, one worker a core on a CPU.
pub(super) fn plan<B: ModelOps>(
    config: &LlamaConfig,
    requests: &VecDeque<(usize, Request)>,
    wanted: usize,
    budget_mib: Option<usize>,
    dtype: DType,
) -> Result<CachePlan, StageError> {
    let context = config.max_position_embeddings;
    let tokens = requests.iter().map(|(_, r)| r.most_tokens(context)).max();
    let cores = match B::ON_HOST {
        // The ranks of a host share its cores.
        true => rayon::current_num_threads(),
        false => 1,
    };
    let workers = CachePlan::workers_for(cores, wanted);
    let budget = budget_mib.map(|mib| (mib as u64) << 20);
    let tokens = tokens.unwrap_or(1);
    let pass = prefill_tokens(B::ON_HOST);
    let dtype = activations_dtype(B::ON_HOST, dtype);
    let plan = CachePlan::new(config, dtype, wanted, workers, tokens, pass, budget)?;
    tracing::debug!(
        "{} slots in {} workers, up to {} tokens each, at most {} MiB of cache",
        plan.slots,
        plan.workers,
        plan.tokens,
        plan.bytes >> 20
    );
    Ok(plan)
}

/// The engine at work and its numbers.
struct Run<'a, B: Backend> {
    engine: Engine<B>,
    /// Ids of every prompt.
    prompts: &'a [Vec<u32>],
    text: &'a ChatText,
    /// Which prompt a request is, and its samples so far.
    open: HashMap<RequestId, (usize, Vec<Option<Sample>>)>,
    /// Prompts that were given up since they were last looked at.
    failed: Vec<usize>,
    begun: Instant,
    tokens: usize,
    responses: usize,
}

impl<B: ModelOps> Run<'_, B> {
    /// One token for everyone; the prompts that are complete now.
    fn step(&mut self) -> Result<Vec<(usize, Vec<Sample>)>, StageError> {
        let mut finished = Vec::new();
        for event in self.engine.step()? {
            let (of, sample) = match event {
                Event::Finished { of, sample, .. } => (of, sample),
                Event::Token { .. } => {
                    self.tokens += 1;
                    continue;
                }
                Event::Prompt { .. } => continue,
                Event::Failed { of, error } => {
                    if !matches!(error, GenerateError::NonFinite { .. }) {
                        return Err(error.into());
                    }
                    // A row without one of its responses is none.
                    self.engine.cancel(of.request);
                    let open = self.open.remove(&of.request);
                    self.failed.extend(open.map(|(number, _)| number));
                    continue;
                }
            };
            self.responses += 1;
            let Some((_, answers)) = self.open.get_mut(&of.request) else {
                continue;
            };
            answers[of.sample] = Some(sample);
            if answers.iter().all(Option::is_some)
                && let Some((number, answers)) = self.open.remove(&of.request)
            {
                finished.push((number, answers.into_iter().flatten().collect()));
            }
        }
        Ok(finished)
    }

    /// From the tokens made so far, those of unfinished responses too, and the responses that are
    /// open or `waiting`.
    fn seconds_left(&self, waiting: usize, most: usize) -> f64 {
        let seconds = self.begun.elapsed().as_secs_f64();
        let open = self.open.values().flat_map(|(_, answers)| answers);
        let open = open.filter(|answer| answer.is_none()).count();
        // Lengths fall off about exponentially, so an open response has as much before it as one
        // that has not begun; none is longer than `most`.
        let length = match self.responses {
            0 => most as f64,
            finished => (self.tokens as f64 / finished as f64).min(most as f64),
        };
        let ended_by_length = length > 0.9 * most as f64;
        let before = match (ended_by_length, open) {
            (true, 1..) => {
                let made = self.tokens as f64 - self.responses as f64 * length;
                (length - made / open as f64).clamp(0.0, length)
            }
            _ => length,
        };
        let left = waiting as f64 * length + open as f64 * before;
        left * seconds / (self.tokens as f64).max(1.0)
    }

    fn note(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64().max(1e-3);
        format!(
            "{:.0} tokens/s, {:.0} tokens a response",
            self.tokens as f64 / seconds,
            self.tokens as f64 / self.responses.max(1) as f64
        )
    }

    fn row(
        &self,
        job: &Generation<'_>,
        number: usize,
        samples: &[Sample],
    ) -> Result<ResponseRow, StageError> {
        let prompt = &job.prompts[number];
        let decode = |sample: &Sample| match &sample.text {
            Some(text) => Ok(text.clone()),
            None => self.text.decode(sample.text_tokens()),
        };
        let reasons = samples.iter().map(|s| s.finish.as_str().to_string());
        let sum = |sample: &Sample| sample.logprobs.iter().sum();
        Ok(ResponseRow {
            prompt_id: prompt.prompt_id.clone(),
            prompt: match job.template {
                TemplateSource::Raw => prompt.prompt.clone(),
                _ => Prompt::Messages(prompt.prompt.messages().into_owned()),
            },
            reference: prompt.reference.clone(),
            responses: samples.iter().map(decode).collect::<Result<_, _>>()?,
            finish_reasons: Some(reasons.collect()),
            tokens: Some(samples.iter().map(|s| s.tokens.len() as u32).collect()),
            logprobs: job.logprobs.then(|| samples.iter().map(sum).collect()),
            prompt_ids: Some(self.prompts[number].clone()),
            response_ids: Some(samples.iter().map(|s| s.tokens.clone()).collect()),
        })
    }
}

/// Without a template there is no text of a list of messages.
fn refuse_messages(job: &Generation<'_>) -> Result<(), StageError> {
    let mut bad = BadRows::default();
    for (index, row) in job.prompts.iter().enumerate() {
        if job.template == TemplateSource::Raw && matches!(row.prompt, Prompt::Messages(_)) {
            let numbers = job.row_numbers.and_then(|numbers| numbers.get(index));
            let number = numbers.map_or(index + 1, |number| *number);
            bad.add(|| {
                format!(
                    "row {number}, prompt {} is a list of messages",
                    row.prompt_id
                )
            });
        }
    }
    bad.advise("--raw takes prompts that are strings; give strings, or leave --raw out and give a template with --chat-template FILE");
    Ok(bad.refused()?)
}

/// What ends a response.
struct Stops {
    ids: Vec<u32>,
    texts: Vec<String>,
}

impl Stops {
    /// Those that were given, else those of the model's configs and its chat template.
    fn of(job: &Generation<'_>, folder: &ModelFolder) -> Result<Self, StageError> {
        let Some(given) = job.stop_token_ids else {
            let end = folder.end_of_turn()?;
            let ids = folder.stop_ids(&end)?;
            let texts = match end.stop {
                Stop::Token(_) => Vec::new(),
                Stop::Text(text) => vec![text],
            };
            return Ok(Self { ids, texts });
        };
        let vocab = folder.config().vocab_size;
        if let Some(id) = given.iter().find(|&&id| id >= vocab) {
            return Err(StageError::Input(format!(
                "generate.stop_token_ids (--stop-token-ids) names {id}, but {} knows tokens 0 to {} (vocab_size)",
                folder.path().display(),
                vocab - 1
            )));
        }
        Ok(Self {
            ids: given.iter().map(|&id| id as u32).collect(),
            texts: Vec::new(),
        })
    }
}

/// The prompts that are this rank's to answer, by number; `ids` are those of all prompts.
fn requests(
    job: &Generation<'_>,
    output: &Output<'_>,
    ids: &[Vec<u32>],
    stops: &Stops,
) -> VecDeque<(usize, Request)> {
    let params = SamplingParams {
        temperature: job.sampling.temperature,
        top_p: job.sampling.top_p,
        top_k: job.sampling.top_k,
        max_new_tokens: job.sampling.max_new_tokens,
        stop_ids: stops.ids.clone(),
        seed: job.seed,
        ..SamplingParams::default()
    };
    let request = |number: usize| {
        let id = job.prompts[number].prompt_id.clone();
        let prompt = ids[number].clone();
        let request = Request {
            stop: stops.texts.clone(),
            logprobs: job.logprobs,
            ..Request::new(id, prompt, job.sampling.samples, params.clone())
        };
        (number, request)
    };
    output.left.iter().copied().map(request).collect()
}
