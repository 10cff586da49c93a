//! Prompts → responses.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::chat_text::ChatText;
use sppo_model::end_of_turn::Stop;
use sppo_model::generate::{CachePlan, Engine, Event, Request, RequestId, Sample, SamplingParams};
use sppo_model::llama::{Decoder, LlamaConfig};
use sppo_model::model_folder::ModelFolder;
use sppo_model::ops::ModelOps;

use super::error::StageError;
use super::folder::{open_folder, with_folder};
use super::prompts::{PromptLimits, answerable};
use crate::config::{Config, Generate};
use crate::data::{
    Prompt, PromptRow, ResponseRow, RowOutput, RowWriter, row_output, rows_fingerprint,
};
use crate::files::{Existing, FileError, MadeFrom, mark_beside};
use crate::monitor::Monitor;
use crate::tokenise::BadRows;

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
    /// Numbers of their rows in their file, from 1, for messages; none where they are not known.
    pub row_numbers: Option<&'a [usize]>,
    /// How long prompts may be.
    pub limits: PromptLimits,
    /// File that receives one row a prompt.
    pub out: &'a Path,
    /// How they are sampled.
    pub sampling: Sampling,
    /// Token ids that end a response; the model's own where none.
    pub stop_token_ids: Option<&'a [usize]>,
    /// The day that the chat template sees; today unless given.
    pub date: Option<NaiveDate>,
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
    /// The model's folder, its template with the date of this job.
    pub fn open_folder(&self) -> Result<ModelFolder, StageError> {
        open_folder(self.model, self.template, self.date, &mark_beside(self.out))
    }

    /// What the responses depend on.
    pub fn made_from(&self, folder: &ModelFolder) -> Result<MadeFrom, StageError> {
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
        let made_from = made_from.settings(self.limits.settings()).settings(
            self.stop_token_ids
                .map(|ids| ("stop_token_ids", format!("{ids:?}"))),
        );
        with_folder(made_from, folder, self.template)
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
/// the same however often it did. Prompts that the model cannot answer are refused, or left out,
/// before the output is touched and the model loaded. One whose logits are not finite gets no row;
/// the others do, then the job fails.
pub fn generate<B: ModelOps>(
    job: Generation<'_>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<(), StageError> {
    // Before the model is hashed, which takes its time.
    row_output(job.out, &[ahead_of(job.out)]).refuse_foreign()?;
    refuse_messages(&job)?;
    if job.sampling.temperature == 0.0 && job.sampling.samples > 1 {
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
    let mut output = Output::open(&job, &folder)?;
    if output.is_complete() {
        return output.finish();
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
    let window = 16 * plan.slots;
    let total = job.prompts.len();
    let mut failed = BadRows::default();
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
        for number in run.failed.drain(..) {
            failed.add(|| format!("prompt {}", job.prompts[number].prompt_id));
            output.give_up(number)?;
            monitor.advance(1, None);
        }
        let waiting = requests.len() * job.sampling.samples;
        monitor.time_left(run.seconds_left(waiting, job.sampling.max_new_tokens));
        if monitor.interrupted() {
            monitor.end();
            return Err(StageError::Interrupted);
        }
    }
    monitor.end();
    if failed.count() == 0 {
        return output.finish();
    }
    failed.advise("the model's logits for them are not finite (NaN or infinite weights?)");
    let out = job.out.into();
    failed
        .refused()
        .map_err(|rows| StageError::NotAnswered { out, rows })
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
                Event::Failed { of, .. } => {
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
    fn open(job: &Generation<'_>, folder: &ModelFolder) -> Result<Self, StageError> {
        let ahead_path = ahead_of(job.out);
        let beside = [ahead_path.clone()];
        let made_from = job.made_from(folder)?;
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

    /// Writes no row for a prompt, so that those behind it are.
    fn give_up(&mut self, number: usize) -> Result<(), StageError> {
        self.left.retain(|&left| left != number);
        self.flush()
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

/// The prompts that are neither written nor waiting, by number; `ids` are those of all prompts.
fn requests(
    job: &Generation<'_>,
    output: &Output,
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
