//! The self-play loop: optional supervised stage, then rounds of generate → judge → pairs →
//! train → evaluate. Every stage leaves files that say what they were made from; a run that was
//! stopped anywhere goes on from there.

mod curves;
mod events;
mod outputs;
mod page;
mod progress;
mod report;
mod split;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Instant;

use sppo_model::chat_template::{NaiveDate, today};
use sppo_model::model_folder::ModelFolder;
use sppo_model::ops::TrainingOps;

pub use curves::Step;
pub use outputs::PAGE;
pub use page::write_report;
pub use progress::{PROGRESS, Planned, Progress, StageTime, State, Work};
pub use report::{IterationReport, LeftOut, Report, Round};
pub(crate) use split::TrainPrompts;
pub use watch::{Judged, Watched};

use page::write_page;
use progress::Recorder;
use split::RoundPrompts;

use crate::card::{self, IterationResult};
use crate::cluster::{self, lead};
use crate::config::{Config, Date, JudgeKind, ModelSource, Split, parts_for_ranks};
use crate::data::{PromptRow, RowFile};
use crate::files::{
    Existing, FileError, MadeFrom, Mark, OutputError, RESOLVED_CONFIG, Seal, read_mark,
    replace_file, write_mark,
};
use crate::judge::Judge;
use crate::monitor::Monitor;
use crate::preference::Ties;
use crate::stages::{
    Comparison, Evaluation, FineTuned, FineTuning, Generation, Judging, Merging, PairTraining,
    PromptCounts, PromptLimits, Sampling, StageError, build_judge, build_judge_of, check_prompts,
    compare_answers, date_of, fine_tune, generate, judge_responses, lock_folder, make_pairs,
    merge_adapters, start_model, train_pairs,
};

/// Runs the whole loop of `config`, or the rest of it. What was made from other things is set aside
/// under a name that says so, or with `overwrite` replaced. `planned` helps to say how long it takes.
pub fn run<B: TrainingOps>(
    config: &Config,
    overwrite: bool,
    planned: Option<Planned>,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<Report, StageError> {
    required(&config.prompts.files().first().cloned(), "prompts.train")?;
    let heldout_file = required(&config.prompts.heldout, "prompts.heldout")?;
    // All that can be refused is refused before the first model is loaded.
    let ranks = cluster::world().size();
    let (train, sft) = (&config.train, &config.sft);
    parts_for_ranks(
        "train",
        train.batch_size,
        train.gradient_accumulation,
        ranks,
    )?;
    if sft.data.is_some() {
        parts_for_ranks("sft", sft.batch_size, sft.gradient_accumulation, ranks)?;
    }
    if config.judge.kind == JudgeKind::Scores {
        return Err(StageError::Input(
            "judge.kind = \"scores\": a run samples its responses itself, so no file can hold their scores beforehand; use another judge, or go stage by stage (sppo generate, judge, pairs, train)"
                .into(),
        ));
    }
    build_judge::<B::InnerBackend>(&config.judge, date(config), device)?;
    let TrainPrompts {
        rounds: parts,
        left_out: train_left_out,
    } = TrainPrompts::read(config)?;
    let RowFile {
        rows: mut heldout,
        numbers: heldout_numbers,
        left_out: heldout_left_out,
        ..
    } = RowFile::<PromptRow>::read(heldout_file, config.on_bad_row.skips())?;
    heldout.truncate(config.eval.prompts.unwrap_or(usize::MAX));

    let dir = &config.output_dir;
    let world = cluster::world();
    lead(world, || outputs::refuse_foreign(config))?;
    let _lock = lock_folder(dir)?;
    let given = config.to_toml();
    let date = lead(world, || {
        let date = keep_date(config, overwrite)?;
        save_config(dir, &given)?;
        Ok::<_, StageError>(date.to_string())
    })?;
    let mut config = config.clone();
    config.model.date = date.parse().ok();
    let config = &config;

    let recorder = Recorder::new(monitor, dir, parts.len(), planned);
    let run = Run {
        config,
        overwrite,
        device,
        monitor: &recorder,
        heldout: &heldout,
        heldout_file,
    };
    let check = |model: &Path| {
        let heldout = (heldout.as_slice(), heldout_numbers.as_slice());
        check_all(config, &parts, heldout, model)
    };
    let given = match config.model.source()? {
        ModelSource::Folder(path) => Some(check(&path)?),
        ModelSource::Init(_) => None,
    };
    let (first, sft_left_out) = run.first_model::<B>()?;
    let (counts, heldout_counts) = match given {
        Some(counts) => counts,
        None => check(&first)?,
    };
    let first_answers = dir.join("eval/first.jsonl");
    run.answers::<B>(&first, &first_answers, &dir.join("eval"))?;
    let mut report = Report {
        left_out: LeftOut {
            train: train_left_out,
            heldout: heldout_left_out,
            sft: sft_left_out,
        },
        heldout: heldout_counts,
        ..Report::default()
    };
    let mut events = match config.logging.tensorboard && world.leads() {
        true => events::begin(dir).inspect_err(without_events).ok(),
        false => None,
    };
    let (mut policy, mut policy_answers) = (first, first_answers.clone());
    // Of iterations that were there before, hardly anything is left to do.
    let mut longest = 0.0f64;
    for (index, prompts) in parts.iter().enumerate() {
        let begun = Instant::now();
        recorder.iteration(index + 1);
        let folder = dir.join(format!("iteration-{}", index + 1));
        tracing::info!(
            "iteration {} of {}: {} prompts",
            index + 1,
            parts.len(),
            prompts.rows.len()
        );
        let done = run.iteration::<B>(&policy, prompts, &folder, index)?;
        let trained = done.model.clone();
        let answers = folder.join("heldout.jsonl");
        run.answers::<B>(&trained, &answers, &folder)?;
        let mut judge = run.judge::<B>(&policy)?;
        let judge = judge.as_mut();
        let against_first = run.compare(judge, &answers, &first_answers, &folder, "first")?;
        let against_previous =
            run.compare(judge, &answers, &policy_answers, &folder, "previous")?;
        let entry = IterationReport::new(
            index + 1,
            counts.get(index).copied().unwrap_or_default(),
            done,
            against_first,
            against_previous,
        );
        tracing::info!("{}", entry.line());
        report.iterations.push(entry);
        longest = longest.max(begun.elapsed().as_secs_f64());
        let left = parts.len() - index - 1;
        if left > 0 {
            let seconds = longest * left as f64;
            tracing::info!("about {seconds:.0} s left for {left} more iterations");
        }
        report.page = lead(world, || {
            if let (Some(file), Some(entry)) = (&mut events, report.iterations.last())
                && let Err(error) = events::add(file, entry, &folder, &first_answers)
            {
                without_events(&error);
                // A torn record would hide all behind it.
                events = None;
            }
            if let Err(error) = write_cards(&report, &folder) {
                tracing::warn!(
                    "the cards in {} are not made anew: {error}",
                    folder.display()
                );
            }
            publish(&report, dir)
        })?;
        (policy, policy_answers) = (trained, answers);
    }
    recorder.finished();
    Ok(report)
}

/// What only shows a run is no reason to end it.
fn without_events(error: &impl std::fmt::Display) {
    tracing::warn!("TensorBoard's file of the run is not whole: {error}; the run goes on");
}

/// Makes the cards of an iteration's model anew, with the results so far; of adapters both cards.
fn write_cards(report: &Report, folder: &Path) -> Result<(), StageError> {
    let results: Vec<_> = report
        .iterations
        .iter()
        .map(IterationResult::from)
        .collect();
    for name in ["model", "merged"] {
        card::write_with_results(&folder.join(name), &results)?;
    }
    Ok(())
}

/// Writes the report of the iterations so far, and its page. A page that cannot be made is no reason
/// to end a run.
fn publish(report: &Report, dir: &Path) -> Result<Option<PathBuf>, StageError> {
    report.write(dir)?;
    let page = write_page(dir);
    let page = page.inspect_err(|error| {
        tracing::warn!("{} is not made: {error}", dir.join(PAGE).display());
    });
    Ok(page.ok())
}

/// Saves the resolved configuration beside the results; one that a user edited stays as it is.
fn save_config(dir: &Path, given: &str) -> Result<(), StageError> {
    let path = dir.join("config.toml");
    let mark_path = outputs::summary(dir).mark;
    let Some(mut mark) = read_mark::<Mark>(&mark_path)? else {
        return Ok(());
    };
    let edited = match &mark.finished {
        Some(seal) => path.is_file() && seal.verify(dir)?.is_some(),
        None => false,
    };
    if edited {
        let resolved = dir.join(RESOLVED_CONFIG);
        tracing::warn!(
            "{} was edited and stays as it is; what this run uses is in {}",
            path.display(),
            resolved.display()
        );
        return Ok(replace_file(&resolved, given.as_bytes())?);
    }
    replace_file(&path, given.as_bytes())?;
    let before = dir.join(RESOLVED_CONFIG);
    if before.is_file() {
        std::fs::remove_file(&before).map_err(FileError::new("remove", &before))?;
    }
    mark.finished = Some(Seal::of_file(&path, None)?);
    Ok(write_mark(&mark_path, &mark)?)
}

/// The date of this run: the given one, else that of its beginning, which its mark keeps.
fn keep_date(config: &Config, overwrite: bool) -> Result<Date, StageError> {
    const DATE: &str = "date";
    let mark = outputs::summary(&config.output_dir).mark;
    let date = date(config).or_else(|| date_of(&mark, DATE));
    let date = date.unwrap_or_else(today);
    let making = MadeFrom::new("run").setting(DATE, date);
    let old = match read_mark::<Mark>(&mark) {
        Err(OutputError::Damaged { .. }) if overwrite => None,
        old => old?,
    };
    if old.is_none_or(|old| old.made_from != making) {
        write_mark(&mark, &Mark::new(making))?;
    }
    Ok(Date(date))
}

/// Refuses prompts of any iteration that `model` cannot answer: the last one would be a bad time to
/// find them. What becomes of those of each iteration, and of the held-out ones.
fn check_all(
    config: &Config,
    parts: &[RoundPrompts],
    (heldout, heldout_numbers): (&[PromptRow], &[usize]),
    model: &Path,
) -> Result<(Vec<PromptCounts>, PromptCounts), StageError> {
    let limits = PromptLimits::from(config);
    let folder = ModelFolder::open_with(model, config.model.template())?;
    let distinct = match (&config.prompts.per_iteration_files, config.prompts.split) {
        (None, Split::Reuse) => 1,
        _ => parts.len(),
    };
    let mut counts = Vec::with_capacity(parts.len());
    for part in parts.iter().take(distinct) {
        counts.push(check_prompts(&part.rows, &part.numbers, limits, &folder)?);
    }
    let last = counts.last().copied().unwrap_or_default();
    counts.resize(parts.len(), last);
    let heldout = check_prompts(heldout, heldout_numbers, limits, &folder)?;
    Ok((counts, heldout))
}

/// What all stages of one run share.
struct Run<'a, D> {
    config: &'a Config,
    overwrite: bool,
    device: &'a D,
    monitor: &'a dyn Monitor,
    heldout: &'a [PromptRow],
    heldout_file: &'a Path,
}

impl<D> Run<'_, D> {
    /// What becomes of outputs in `folder` that were made from other things.
    fn existing<'a>(&self, folder: &'a Path) -> Existing<'a> {
        match self.overwrite {
            true => Existing::Overwrite,
            false => Existing::SetAside(folder),
        }
    }

    /// The model that self-play starts from: given or fresh, then fine-tuned if `[sft]` says so; and
    /// how many rows of `[sft]` could not be used.
    fn first_model<B: TrainingOps<Device = D>>(&self) -> Result<(PathBuf, usize), StageError> {
        let config = self.config;
        let base = start_model::<B::InnerBackend>(config, self.overwrite, self.device)?;
        let Some(data) = &config.sft.data else {
            return Ok((base, 0));
        };
        let folder = config.output_dir.join("sft");
        let job = FineTuning {
            config: &config.sft,
            logging: &config.logging,
            model: &base,
            template: config.model.template(),
            data,
            on_bad_row: config.on_bad_row,
            output_dir: &folder,
            seed: config.seed,
            date: date(config),
            existing: self.existing(&folder),
        };
        let _lock = lock_folder(&folder)?;
        let FineTuned { model, left_out } = fine_tune::<B>(job, self.device, self.monitor)?;
        Ok((model, left_out))
    }

    /// One round of self-play.
    fn iteration<B: TrainingOps<Device = D>>(
        &self,
        policy: &Path,
        prompts: &RoundPrompts,
        folder: &Path,
        index: usize,
    ) -> Result<Round, StageError> {
        let config = self.config;
        let existing = self.existing(folder);
        let responses = folder.join("responses.jsonl");
        let job = Generation {
            model: policy,
            template: config.model.template(),
            prompts: &prompts.rows,
            prompts_file: &prompts.file,
            row_numbers: None,
            limits: PromptLimits::from(config),
            out: &responses,
            sampling: Sampling::from(&config.generate),
            stop_token_ids: config.generate.stop_token_ids.as_deref(),
            date: date(config),
            // Each round draws anew, also where it reuses prompts.
            seed: config.seed.wrapping_add(index as u64 + 1),
            logprobs: false,
            label: "generating",
            existing,
        };
        generate::<B::InnerBackend>(job, self.device, self.monitor)?;
        let judged = folder.join("judged.jsonl");
        // Its model's memory is for training then.
        let mut judge = self.judge::<B>(policy)?;
        let job = Judging {
            responses: &responses,
            out: &judged,
            part: None,
            label: "judging",
            on_bad_row: config.on_bad_row,
            existing,
        };
        let unjudged = judge_responses(job, judge.as_mut(), self.monitor)?;
        drop(judge);
        let ties = match config.pairs.keep_ties {
            true => Ties::Keep,
            false => Ties::Drop,
        };
        let pairs = folder.join("pairs.jsonl");
        let made = make_pairs(&judged, &pairs, ties, config.on_bad_row, existing)?;
        let job = PairTraining {
            config: &config.train,
            logging: &config.logging,
            model: policy,
            template: config.model.template(),
            data: &pairs,
            on_bad_row: config.on_bad_row,
            output_dir: folder,
            date: date(config),
            existing,
        };
        let lock = lock_folder(folder)?;
        let trained = train_pairs::<B>(job, self.device, self.monitor)?;
        drop(lock);
        let round = |model| Round {
            model,
            pairs: made.pairs - trained.left_out,
            truncation: trained.truncation,
            left_out: unjudged + made.left_out + trained.left_out,
        };
        if config.train.lora.is_none() {
            return Ok(round(trained.model));
        }
        let merged = folder.join("merged");
        let job = Merging {
            base: policy,
            adapter: &trained.model,
            out: &merged,
            dtype: Some(config.train.precision.dtype()),
            existing,
        };
        merge_adapters::<B::InnerBackend>(job, self.device)?;
        Ok(round(merged))
    }

    /// A model's answers to the held-out prompts.
    fn answers<B: TrainingOps<Device = D>>(
        &self,
        model: &Path,
        out: &Path,
        folder: &Path,
    ) -> Result<(), StageError> {
        let job = Generation {
            model,
            template: self.config.model.template(),
            prompts: self.heldout,
            prompts_file: self.heldout_file,
            row_numbers: None,
            limits: PromptLimits::from(self.config),
            out,
            sampling: Sampling::of_answers(self.config),
            stop_token_ids: self.config.generate.stop_token_ids.as_deref(),
            date: date(self.config),
            seed: self.config.seed,
            logprobs: false,
            label: "answering held-out prompts",
            existing: self.existing(folder),
        };
        generate::<B::InnerBackend>(job, self.device, self.monitor)
    }

    /// The judge; it reads prompts as the policy does unless the configuration says otherwise.
    fn judge<B: TrainingOps<Device = D>>(
        &self,
        policy: &Path,
    ) -> Result<Box<dyn Judge>, StageError> {
        let config = self.config;
        let policy = Some((policy, config.model.template()));
        build_judge_of::<B::InnerBackend>(&config.judge, policy, date(config), self.device)
    }

    fn compare(
        &self,
        judge: &mut dyn Judge,
        answers: &Path,
        against: &Path,
        folder: &Path,
        name: &str,
    ) -> Result<Evaluation, StageError> {
        let files = Comparison {
            answers,
            against,
            both: &folder.join(format!("heldout-vs-{name}.jsonl")),
            judged: &folder.join(format!("heldout-vs-{name}-judged.jsonl")),
            on_bad_row: self.config.on_bad_row,
            skip_unanswered: false,
            existing: self.existing(folder),
        };
        compare_answers(files, judge, self.monitor)
    }
}

/// The day that chat templates see, where one is given.
fn date(config: &Config) -> Option<NaiveDate> {
    config.model.date.map(|date| date.0)
}

fn required<'a>(path: &'a Option<PathBuf>, key: &str) -> Result<&'a Path, StageError> {
    path.as_deref()
        .ok_or_else(|| StageError::Input(format!("the run needs {key}, a .jsonl or .parquet file")))
}
