//! Prompts → responses.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use sppo_model::chat_template::TemplateSource;
use sppo_model::chat_text::ChatText;
use sppo_model::generate::{
    CachePlan, Engine, Event, Request, RequestId, Sample, SamplingParams, check_request,
};
use sppo_model::llama::{Decoder, LlamaConfig};
use sppo_model::model_folder::ModelFolder;
use sppo_model::ops::ModelOps;

use super::error::StageError;
use super::learning::with_model;
use crate::config::{Config, Generate};
use crate::data::{
    Prompt, PromptRow, ResponseRow, RowOutput, RowWriter, row_output, rows_fingerprint,
};
use crate::files::{Existing, FileError, MadeFrom};
use crate::monitor::Monitor;

/// Sampling of responses from one model.
#[derive(Clone, Copy, Debug)]
pub struct Generation<'a> {
    /// Folder of the model.
    pub model: &'a Path,
    /// Chat template of its text; raw ones take prompts that are strings.
    pub template: TemplateSource<'a>,
    /// What is answered, in this order.
    pub prompts: &'a [PromptRow],
    /// The file that they come from.
    pub prompts_file: &'a Path,
    /// File that receives one row a prompt.
    pub out: &'a Path,
    /// How they are sampled.
    pub sampling: Sampling,
    /// Of the random numbers.
    pub seed: u64,
    /// Whether rows get summed log-probabilities.
    pub logprobs: bool,
    /// What the progress is called.
    pub label: &'a str,
    /// What becomes of an output that was made from something else.
    pub existing: Existing<'a>,
}

impl Generation<'_> {
    /// What the responses depend on.
    pub fn made_from(&self) -> Result<MadeFrom, StageError> {
        let Sampling {
            samples,
            temperature,
            top_p,
            top_k,
            max_new_tokens,
            dtype,
            ..
        } = self.sampling;
        // A setting that comes later is left out where it is at its default.
        let mut made_from = MadeFrom::new("generate")
            .setting("samples", samples)
            .setting("temperature", temperature)
            .setting("max_new_tokens", max_new_tokens)
            .setting("precision", format!("{dtype:?}").to_lowercase())
            .setting("seed", self.seed)
            .setting("logprobs", self.logprobs);
        if temperature > 0.0 {
            made_from = made_from.setting("top_p", top_p).setting("top_k", top_k);
        }
        let prompts = rows_fingerprint(self.prompts);
        let made_from = made_from.input("prompts", self.prompts_file, prompts);
        with_model(made_from, self.model, self.template)
    }
}

/// How responses are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Responses a prompt.
    pub samples: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Samples from the most likely tokens that together have this probability.
    pub top_p: f64,
    /// 0 is off.
    pub top_k: usize,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
    /// Sequences decoded together, if the cache has room.
    pub batch: usize,
    /// Bound on the memory of keys and values.
    pub cache_memory_mib: Option<usize>,
    /// Of weights, activations and cache.
    pub dtype: DType,
}

impl From<&Generate> for Sampling {
    fn from(config: &Generate) -> Self {
        Self {
            samples: config.samples,
            temperature: config.temperature,
            top_p: config.top_p,
            top_k: config.top_k,
            max_new_tokens: config.max_new_tokens,
            batch: config.batch,
            cache_memory_mib: config.cache_memory_mib,
            dtype: config.precision.dtype(),
        }
    }
}

impl Sampling {
    /// Of held-out answers: as `[eval]` says, at the speed and precision of `[generate]`.
    pub fn of_answers(config: &Config) -> Self {
        Self {
            samples: config.eval.samples,
            temperature: config.eval.temperature,
            top_p: config.eval.top_p,
            top_k: 0,
            max_new_tokens: config.eval.max_new_tokens,
            ..Self::from(&config.generate)
        }
    }
}

/// The file beside `out` that keeps responses whose turn in `out` has not come; it goes when the
/// last row is written.
fn ahead_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_os_string();
    name.push(".ahead.jsonl");
    name.into()
}

/// Answers the prompts that `out` does not hold yet.
///
/// Rows stand in the order of prompts. One that is finished before its turn is kept
/// beside the output, so that nothing finished is lost when the run stops, and the file is
/// the same however often it did.
pub fn generate<B: ModelOps>(
    job: Generation<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    refuse_messages(&job)?;
    let mut output = Output::open(&job)?;
    if output.is_complete() {
        return output.finish();
    }
    let folder = ModelFolder::open_with(job.model, job.template)?;
    let text = folder.require_text()?;
    let config = folder.config();
    let mut requests = requests(&job, &output, &folder)?;
    // Hours later would be a bad time to find the one prompt that is too long.
    for (_, request) in &requests {
        check_request(config, request)?;
    }
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
    let model = folder.load::<B>(job.sampling.dtype, device)?;
    let mut run = Run {
        engine: Engine::new(Arc::new(Decoder::new(model, config)), plan, None),
        text,
        open: HashMap::new(),
        begun: Instant::now(),
        tokens: 0,
        responses: 0,
    };
    // A prompt far behind the first unfinished one would wait for long in memory.
    let window = 16 * plan.slots;
    let total = job.prompts.len();
    monitor.begin(job.label, "prompts", total - output.left.len(), total);
    while !output.left.is_empty() {
        let next = output.left.front().map_or(0, |&n| n);
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
        let rows = finished
            .into_iter()
            .map(|(number, samples)| Ok((number, run.row(&job, number, &samples)?)))
            .collect::<Result<Vec<_>, StageError>>()?;
        for (number, row) in rows {
            output.add(&job, number, row)?;
            monitor.advance(1, Some(run.note()));
        }
        if monitor.interrupted() {
            monitor.end();
            return Err(StageError::Interrupted);
        }
    }
    monitor.end();
    output.finish()
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
    let workers = match B::ON_HOST {
        true => std::thread::available_parallelism().map_or(1, |n| n.get()),
        false => 1,
    };
    // A worker of fewer rows reads its weights for too little.
    let workers = workers.min(wanted / 4).max(1);
    let budget = budget_mib.map(|mib| (mib as u64) << 20);
    let plan = CachePlan::new(config, dtype, wanted, workers, tokens.unwrap_or(1), budget)?;
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
    text: &'a ChatText,
    /// Which prompt a request is, and its samples so far.
    open: HashMap<RequestId, (usize, Vec<Option<Sample>>)>,
    begun: Instant,
    tokens: usize,
    responses: usize,
}

impl<B: ModelOps> Run<'_, B> {
    /// One token for everyone; the prompts that are complete now.
    fn step(&mut self) -> Result<Vec<(usize, Vec<Sample>)>, StageError> {
        let mut finished = Vec::new();
        for event in self.engine.step()? {
            let Event::Finished { of, sample, .. } = event else {
                self.tokens += 1;
                continue;
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
        let decode = |sample: &Sample| self.text.decode(sample.text_tokens());
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
        })
    }
}

/// The rows of the output in order, and those whose turn has not come.
struct Output {
    rows: RowOutput<ResponseRow>,
    ahead: RowWriter<ResponseRow>,
    ahead_path: PathBuf,
    /// Prompts that the output lacks, by number.
    left: VecDeque<usize>,
    waiting: BTreeMap<usize, ResponseRow>,
}

impl Output {
    fn open(job: &Generation<'_>) -> Result<Self, StageError> {
        let ahead_path = ahead_of(job.out);
        let beside = [ahead_path.clone()];
        // Before the model is hashed, which takes its time.
        row_output(job.out, &beside).refuse_foreign()?;
        let made_from = job.made_from()?;
        let (rows, done) = RowOutput::open_with(job.out, &beside, made_from, job.existing)?;
        check_resumed(job, &done)?;
        let (ahead, early) = RowWriter::<ResponseRow>::open(&ahead_path)?;
        check_resumed(job, &early)?;
        let done: HashSet<String> = done.into_iter().map(|row| row.prompt_id).collect();
        let mut early: HashMap<String, ResponseRow> = early
            .into_iter()
            .map(|r| (r.prompt_id.clone(), r))
            .collect();
        let numbered = job.prompts.iter().enumerate();
        let left: VecDeque<usize> = numbered
            .filter(|(_, p)| !done.contains(&p.prompt_id))
            .map(|(number, _)| number)
            .collect();
        let waiting = left
            .iter()
            .filter_map(|&n| Some((n, early.remove(&job.prompts[n].prompt_id)?)))
            .collect();
        let mut output = Self {
            rows,
            ahead,
            ahead_path,
            left,
            waiting,
        };
        output.flush()?;
        Ok(output)
    }

    fn is_complete(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes a finished row.
    fn add(
        &mut self,
        job: &Generation<'_>,
        number: usize,
        row: ResponseRow,
    ) -> Result<(), StageError> {
        debug_assert_eq!(job.prompts[number].prompt_id, row.prompt_id);
        if self.left.front() != Some(&number) {
            self.rows.write_mark()?;
            self.ahead.append(&row)?;
        }
        self.waiting.insert(number, row);
        self.flush()
    }

    /// Writes the rows whose turn it is.
    fn flush(&mut self) -> Result<(), StageError> {
        while let Some(row) = self.left.front().and_then(|n| self.waiting.remove(n)) {
            self.rows.append(&row)?;
            self.left.pop_front();
        }
        Ok(())
    }

    fn finish(self) -> Result<(), StageError> {
        if self.ahead_path.exists() {
            std::fs::remove_file(&self.ahead_path)
                .map_err(FileError::new("remove", &self.ahead_path))?;
        }
        Ok(self.rows.finish()?)
    }
}

/// Without a template there is no text of a list of messages.
fn refuse_messages(job: &Generation<'_>) -> Result<(), StageError> {
    const SHOWN: usize = 10;
    if job.template != TemplateSource::Raw {
        return Ok(());
    }
    let numbered = job.prompts.iter().zip(1..);
    let lists = numbered.filter(|(row, _)| matches!(row.prompt, Prompt::Messages(_)));
    let lists: Vec<String> = lists
        .map(|(row, number)| format!("{} (row {number})", row.prompt_id))
        .collect();
    if lists.is_empty() {
        return Ok(());
    }
    let more = match lists.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Err(StageError::Input(format!(
        "--raw takes prompts that are strings, and these are lists of messages: {}{more}; give strings, or leave --raw out and give a template with --chat-template FILE",
        lists[..lists.len().min(SHOWN)].join(", ")
    )))
}

/// Refuses to go on with a file that an other job wrote.
fn check_resumed(job: &Generation<'_>, done: &[ResponseRow]) -> Result<(), StageError> {
    let known: HashSet<&str> = job.prompts.iter().map(|p| p.prompt_id.as_str()).collect();
    let foreign = done.iter().find(|row| {
        !known.contains(row.prompt_id.as_str())
            || row.responses.len() != job.sampling.samples
            || row.logprobs.is_some() != job.logprobs
    });
    match foreign {
        None => Ok(()),
        Some(row) => Err(StageError::Input(format!(
            "{} already holds other work (prompt_id {} with {} responses {} log-probabilities); remove it or choose another --out",
            job.out.display(),
            row.prompt_id,
            row.responses.len(),
            if row.logprobs.is_some() {
                "and"
            } else {
                "without"
            }
        ))),
    }
}

/// The prompts that are neither written nor waiting, by number.
fn requests(
    job: &Generation<'_>,
    output: &Output,
    folder: &ModelFolder,
) -> Result<VecDeque<(usize, Request)>, StageError> {
    let params = SamplingParams {
        temperature: job.sampling.temperature,
        top_p: job.sampling.top_p,
        top_k: job.sampling.top_k,
        max_new_tokens: job.sampling.max_new_tokens,
        stop_ids: folder.generation_defaults()?.stop_ids,
        seed: job.seed,
    };
    let text = folder.require_text()?;
    let request = |number: usize| {
        let row = &job.prompts[number];
        let turns = row.prompt.messages();
        let prompt = match job.template {
            // As the tokenizer encodes a text by itself: with its BOS, if it adds one.
            TemplateSource::Raw => text.turn_ids(&turns),
            _ => text.prompt_ids(&turns),
        };
        let prompt = prompt.map_err(|source| StageError::Prompt {
            prompt_id: row.prompt_id.clone(),
            source: source.into(),
        })?;
        let id = row.prompt_id.clone();
        Ok((
            number,
            Request {
                logprobs: job.logprobs,
                ..Request::new(id, prompt, job.sampling.samples, params.clone())
            },
        ))
    };
    let numbers = output.left.iter().copied();
    numbers
        .filter(|number| !output.waiting.contains_key(number))
        .map(request)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;

    #[test]
    fn answers_are_drawn_as_eval_says_and_computed_as_generate_says() {
        let mut config = Config::default();
        config.generate.top_k = 7;
        config.generate.batch = 3;
        config.generate.cache_memory_mib = Some(9);
        config.generate.precision = Precision::Bf16;
        config.eval.samples = 2;
        config.eval.temperature = 0.5;
        config.eval.top_p = 0.25;
        config.eval.max_new_tokens = 11;
        let responses = Sampling {
            samples: 5,
            temperature: 0.7,
            top_p: 0.9,
            top_k: 7,
            max_new_tokens: 2048,
            batch: 3,
            cache_memory_mib: Some(9),
            dtype: DType::BF16,
        };
        assert_eq!(Sampling::from(&config.generate), responses);
        let answers = Sampling {
            samples: 2,
            temperature: 0.5,
            top_p: 0.25,
            top_k: 0,
            max_new_tokens: 11,
            ..responses
        };
        assert_eq!(Sampling::of_answers(&config), answers);
    }
}
