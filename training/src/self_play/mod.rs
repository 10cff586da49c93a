//! The self-play loop: optional supervised stage, then rounds of generate → judge → pairs →
//! train → evaluate. Every stage leaves files keyed by what they were made from; a run that was
//! stopped anywhere goes on from there.

mod report;
mod split;
mod stage;

use std::path::{Path, PathBuf};

use sppo_model::ops::TrainingOps;

pub use report::{IterationReport, Report};
pub(crate) use split::split_prompts;

use crate::config::{Config, JudgeKind, ModelSource, Section};
use crate::data::{PromptRow, read_rows};
use crate::files::{FileError, fingerprint, model_fingerprint, replace_file};
use crate::judge::Judge;
use crate::monitor::Monitor;
use crate::preference::Ties;
use crate::stages::{
    Comparison, Evaluation, FineTuning, Generation, Merging, PairTraining, Sampling, StageError,
    build_judge, compare_answers, fine_tune, generate, init_model, judge_responses, make_pairs,
    merge_adapters, train_pairs,
};
use stage::Stage;

/// A model of the run and the key of all that it was made from.
#[derive(Clone, Debug)]
struct Made {
    path: PathBuf,
    key: String,
}

/// Runs the whole loop of `config`, or the rest of it.
pub fn run<B: TrainingOps>(
    config: &Config,
    device: &B::Device,
    monitor: &dyn Monitor,
) -> Result<Report, StageError> {
    let train_file = required(&config.prompts.train, "prompts.train")?;
    let heldout_file = required(&config.prompts.heldout, "prompts.heldout")?;
    // All that can be refused is refused before the first model is loaded.
    if config.judge.kind == JudgeKind::Scores {
        return Err(StageError::Input(
            "judge.kind = \"scores\": a run samples its responses itself, so no file can hold their scores beforehand; use another judge, or go stage by stage (sppo generate, judge, pairs, train)"
                .into(),
        ));
    }
    build_judge::<B::InnerBackend>(&config.judge, device)?;
    let parts = split_prompts(config, read_rows(train_file)?)?;
    let mut heldout: Vec<PromptRow> = read_rows(heldout_file)?;
    heldout.truncate(config.eval.prompts.unwrap_or(usize::MAX));

    let dir = &config.output_dir;
    std::fs::create_dir_all(dir).map_err(FileError::new("make", dir))?;
    let resolved = dir.join("config.toml");
    replace_file(&resolved, config.to_toml().as_bytes())?;

    let run = Run {
        config,
        device,
        monitor,
        heldout: &heldout,
    };
    let first = run.first_model::<B>()?;
    let first_answers = run.answers::<B>(&first, &dir.join("eval/first.jsonl"))?;
    let mut report = Report::default();
    let (mut policy, mut policy_answers) = (first, first_answers.clone());
    for (index, prompts) in parts.iter().enumerate() {
        let folder = dir.join(format!("iteration-{}", index + 1));
        tracing::info!(
            "iteration {} of {}: {} prompts",
            index + 1,
            parts.len(),
            prompts.len()
        );
        let (trained, pairs) = run.iteration::<B>(&policy, prompts, &folder, index)?;
        let answers = run.answers::<B>(&trained, &folder.join("heldout.jsonl"))?;
        let mut judge = run.judge::<B>(&policy)?;
        let judge = judge.as_mut();
        let against_first = run.compare(judge, &answers, &first_answers, &folder, "first")?;
        let against_previous =
            run.compare(judge, &answers, &policy_answers, &folder, "previous")?;
        let entry = IterationReport::new(
            index + 1,
            pairs,
            against_first,
            against_previous,
            trained.path.clone(),
        );
        tracing::info!("{}", entry.line());
        report.iterations.push(entry);
        (policy, policy_answers) = (trained, answers);
    }
    report.write(dir)?;
    Ok(report)
}

/// What all stages of one run share.
struct Run<'a, D> {
    config: &'a Config,
    device: &'a D,
    monitor: &'a dyn Monitor,
    heldout: &'a [PromptRow],
}

impl<D> Run<'_, D> {
    /// The model that self-play starts from: given or fresh, then fine-tuned if `[sft]` says so.
    fn first_model<B: TrainingOps<Device = D>>(&self) -> Result<Made, StageError> {
        let config = self.config;
        let dir = &config.output_dir;
        let base = match config.model.source()? {
            ModelSource::Folder(path) => Made {
                key: model_fingerprint(&path)?,
                path,
            },
            ModelSource::Init(init) => {
                let tokenizer = model_fingerprint(&init.tokenizer)?;
                let settings = format!("{}{}", init.effective(), config.seed);
                let key = fingerprint([
                    ("init", settings.as_bytes()),
                    ("tokenizer", tokenizer.as_bytes()),
                ]);
                let path = dir.join("init");
                let stage = Stage::open(&path.with_extension("key"), &key, &[&path])?;
                if !stage.is_done() {
                    init_model::<B::InnerBackend>(init, config.seed, &path, self.device)?;
                    stage.finish()?;
                }
                Made { path, key }
            }
        };
        let Some(data) = &config.sft.data else {
            return Ok(base);
        };
        let rows = file_key(data)?;
        let settings = format!("{}{}", config.sft.effective(), config.seed);
        let key = fingerprint([
            ("base", base.key.as_bytes()),
            ("rows", rows.as_bytes()),
            ("sft", settings.as_bytes()),
        ]);
        let folder = dir.join("sft");
        let stage = Stage::open(&dir.join("sft.key"), &key, &[&folder])?;
        if !stage.is_done() {
            let job = FineTuning {
                config: &config.sft,
                model: &base.path,
                data,
                output_dir: &folder,
                seed: config.seed,
            };
            fine_tune::<B>(job, self.device, self.monitor)?;
            stage.finish()?;
        }
        Ok(Made {
            path: folder.join("model"),
            key,
        })
    }

    /// One round of self-play; gives the trained model and the number of pairs.
    fn iteration<B: TrainingOps<Device = D>>(
        &self,
        policy: &Made,
        prompts: &[PromptRow],
        folder: &Path,
        index: usize,
    ) -> Result<(Made, usize), StageError> {
        let config = self.config;
        // Each round draws anew, also where it reuses prompts.
        let seed = config.seed.wrapping_add(index as u64 + 1);
        let settings = format!("{}{seed} {prompts:?}", config.generate.effective());
        let key = fingerprint([
            ("policy", policy.key.as_bytes()),
            ("generate", settings.as_bytes()),
        ]);
        let responses = folder.join("responses.jsonl");
        let stage = Stage::open(&folder.join("responses.key"), &key, &[&responses])?;
        if !stage.is_done() {
            let job = Generation {
                model: &policy.path,
                prompts,
                out: &responses,
                sampling: Sampling::from(&config.generate),
                seed,
                logprobs: false,
                label: "generating",
            };
            generate::<B::InnerBackend>(job, self.device, self.monitor)?;
            stage.finish()?;
        }
        let mut judge = self.judge::<B>(policy)?;
        let judge_text = judge.description().to_string();
        let key = fingerprint([
            ("responses", key.as_bytes()),
            ("judge", judge_text.as_bytes()),
        ]);
        let judged = folder.join("judged.jsonl");
        let stage = Stage::open(&folder.join("judged.key"), &key, &[&judged])?;
        if !stage.is_done() {
            judge_responses(&responses, judge.as_mut(), &judged, None, self.monitor)?;
            stage.finish()?;
        }
        // Its model's memory is for training now.
        drop(judge);
        let ties = match config.pairs.keep_ties {
            true => Ties::Keep,
            false => Ties::Drop,
        };
        let pairs = folder.join("pairs.jsonl");
        let count = make_pairs(&judged, &pairs, ties)?;
        if count == 0 {
            return Err(StageError::Input(format!(
                "{}: the judge found no difference between the responses of any prompt; sample more responses or sharpen the judge",
                judged.display()
            )));
        }
        let settings = format!("{}{}", config.train.effective(), config.pairs.effective());
        let key = fingerprint([("judged", key.as_bytes()), ("train", settings.as_bytes())]);
        let model = folder.join("model");
        let made = [
            model.clone(),
            folder.join("metrics.jsonl"),
            folder.join("checkpoints"),
        ];
        let made: Vec<&Path> = made.iter().map(PathBuf::as_path).collect();
        let stage = Stage::open(&folder.join("train.key"), &key, &made)?;
        if !stage.is_done() {
            let job = PairTraining {
                config: &config.train,
                model: &policy.path,
                data: &pairs,
                output_dir: folder,
            };
            train_pairs::<B>(job, self.device, self.monitor)?;
            stage.finish()?;
        }
        if config.train.lora.is_some() {
            return Ok((self.merged::<B>(policy, &model, key, folder)?, count));
        }
        Ok((Made { path: model, key }, count))
    }

    /// The policy with its trained adapters added, which `key` says all of.
    fn merged<B: TrainingOps<Device = D>>(
        &self,
        policy: &Made,
        adapter: &Path,
        key: String,
        folder: &Path,
    ) -> Result<Made, StageError> {
        let path = folder.join("merged");
        let stage = Stage::open(&folder.join("merged.key"), &key, &[&path])?;
        if !stage.is_done() {
            let job = Merging {
                base: &policy.path,
                adapter,
                out: &path,
                dtype: Some(self.config.train.precision.dtype()),
            };
            merge_adapters::<B::InnerBackend>(job, self.device)?;
            stage.finish()?;
        }
        Ok(Made { path, key })
    }

    /// A model's answers to the held-out prompts.
    fn answers<B: TrainingOps<Device = D>>(
        &self,
        model: &Made,
        out: &Path,
    ) -> Result<Made, StageError> {
        let config = self.config;
        let text = format!(
            "{}{} {} {:?}",
            config.eval.effective(),
            config.generate.precision,
            config.seed,
            self.heldout
        );
        let key = fingerprint([("model", model.key.as_bytes()), ("eval", text.as_bytes())]);
        let stage = Stage::open(&out.with_extension("key"), &key, &[out])?;
        if !stage.is_done() {
            let job = Generation {
                model: &model.path,
                prompts: self.heldout,
                out,
                sampling: Sampling::of_answers(config),
                seed: config.seed,
                logprobs: false,
                label: "answering held-out prompts",
            };
            generate::<B::InnerBackend>(job, self.device, self.monitor)?;
            stage.finish()?;
        }
        Ok(Made {
            path: out.into(),
            key,
        })
    }

    /// The judge; it reads prompts as the policy does unless the configuration says otherwise.
    fn judge<B: TrainingOps<Device = D>>(
        &self,
        policy: &Made,
    ) -> Result<Box<dyn Judge>, StageError> {
        let mut config = self.config.judge.clone();
        config
            .chat_template
            .get_or_insert_with(|| policy.path.clone());
        build_judge::<B::InnerBackend>(&config, self.device)
    }

    fn compare(
        &self,
        judge: &mut dyn Judge,
        answers: &Made,
        against: &Made,
        folder: &Path,
        name: &str,
    ) -> Result<Evaluation, StageError> {
        let judge_text = judge.description().to_string();
        let key = fingerprint([
            ("answers", answers.key.as_bytes()),
            ("against", against.key.as_bytes()),
            ("judge", judge_text.as_bytes()),
        ]);
        let both = folder.join(format!("heldout-vs-{name}.jsonl"));
        let judged = folder.join(format!("heldout-vs-{name}-judged.jsonl"));
        let stage = Stage::open(&both.with_extension("key"), &key, &[&both, &judged])?;
        let files = Comparison {
            answers: &answers.path,
            against: &against.path,
            both: &both,
            judged: &judged,
        };
        let evaluation = compare_answers(files, judge, self.monitor)?;
        stage.finish()?;
        Ok(evaluation)
    }
}

fn required<'a>(path: &'a Option<PathBuf>, key: &str) -> Result<&'a Path, StageError> {
    path.as_deref()
        .ok_or_else(|| StageError::Input(format!("the run needs {key}, a .jsonl or .parquet file")))
}

fn file_key(path: &Path) -> Result<String, StageError> {
    let bytes = std::fs::read(path).map_err(FileError::new("read", path))?;
    Ok(fingerprint([("file", bytes.as_slice())]))
}
