//! `sppo warm-up`: kernels compiled and tuned before a run.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sppo_model::llama::LlamaConfig;
use sppo_model::ops::TrainingOps;
use sppo_training::config::{Config, JudgeKind};
use sppo_training::files::Existing;
use sppo_training::stages::{Bench, Half, Judging, bench, build_judge_of, judge_responses};

use super::args::{ConfigArgs, refuse_bf16};
use crate::backend::{Device, WithBackend, dispatch};
use crate::errors::user;
use crate::progress::Console;
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo warm-up --config configs/llama3-8b-h200.toml
  sppo warm-up --config my.toml --set model.path=DIR --device cuda:1
Computes on random rows of the configuration's sizes and keeps nothing but kernels, where the guide
says (SPPO_KERNEL_CACHE). Needs the model of model.path, and that of a judge that has one.")]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Lengths are tried from the longest on, halved so often: kernels are chosen for powers of two.
const LENGTHS: usize = 3;

/// Trains, samples and judges, each shortly.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (config, device) = args.config.load()?;
    if Device::is_cpu_name(device.kind())? {
        return Err(user(
            "sppo warm-up is for GPUs: a CPU compiles no kernels; give --device cuda or --device wgpu",
        ));
    }
    let Some(name) = &config.model.path else {
        return Err(user(
            "sppo warm-up needs model.path: a model that is made from scratch is small, and its kernels \
             are compiled within the run",
        ));
    };
    refuse_bf16("train", config.train.precision, device)?;
    refuse_bf16("generate", config.generate.precision, device)?;
    refuse_bf16("judge", config.judge.precision, device)?;
    hub::bring(hub::judge(&config.judge))?;
    let model = hub::model(name)?;
    let folder = Folder::new()?;
    dispatch(
        device,
        WarmUp {
            config: &config,
            model: &model,
            folder: &folder.0,
        },
    )??;
    output::print("kernels are compiled and tuned\n")?;
    match json {
        true => output::json(&json!({ "model": model })),
        false => Ok(()),
    }
}

/// A folder for rows that nobody keeps.
struct Folder(PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("sppo-warm-up-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct WarmUp<'a> {
    config: &'a Config,
    model: &'a Path,
    folder: &'a Path,
}

impl WithBackend for WarmUp<'_> {
    type Output = anyhow::Result<()>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let context = LlamaConfig::from_dir(self.model)?.max_position_embeddings;
        tracing::info!("training");
        let pairs = self.pairs(context)?;
        bench::<B>(self.training(&pairs), &device, &Console::default())?;
        tracing::info!("generation");
        bench::<B>(self.generation(context), &device, &Console::default())?;
        if matches!(
            self.config.judge.kind,
            JudgeKind::PairRm | JudgeKind::Reward
        ) {
            tracing::info!("judging");
            self.judge::<B>(&device)?;
        }
        Ok(())
    }
}

impl WarmUp<'_> {
    fn rows(&self, name: &str, rows: impl Iterator<Item = Value>) -> std::io::Result<PathBuf> {
        let path = self.folder.join(name);
        let lines: String = rows.map(|row| format!("{row}\n")).collect();
        fs::write(&path, lines)?;
        Ok(path)
    }

    /// A step of the longest pairs that may come, then of shorter ones.
    fn pairs(&self, context: usize) -> std::io::Result<PathBuf> {
        let train = &self.config.train;
        let longest = train.max_length.min(context);
        let ids = |count: usize, from: usize| -> Vec<usize> {
            (from..from + count).map(|i| i % 64).collect()
        };
        let row = |number: usize| {
            let longest = (longest >> (number / train.batch_size)).max(2);
            let prompt = train.max_prompt_length.min(longest / 2);
            json!({
                "prompt_id": number.to_string(),
                "prompt_ids": ids(prompt, number),
                "chosen_ids": ids(longest - prompt, 1),
                "rejected_ids": ids(longest - prompt, 2),
                "chosen_probs": 0.8, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.3,
            })
        };
        self.rows("pairs.jsonl", (0..LENGTHS * train.batch_size).map(row))
    }

    fn training<'a>(&'a self, pairs: &'a Path) -> Bench<'a> {
        let train = &self.config.train;
        Bench {
            pairs: Some(pairs),
            only: Some(Half::Train),
            batch: train.batch_size,
            steps: LENGTHS - 1,
            dtype: train.precision.dtype(),
            recompute: train.recompute,
            lora: train.lora.as_ref().map(|lora| lora.rank),
            ..self.bench()
        }
    }

    fn generation(&self, context: usize) -> Bench<'_> {
        let generate = &self.config.generate;
        let new = generate.max_new_tokens.min(context - 1);
        Bench {
            only: Some(Half::Generate),
            prompt: self.config.train.max_prompt_length.min(context - new),
            new,
            generate: generate.batch,
            temperature: generate.temperature,
            top_p: generate.top_p,
            dtype: generate.precision.dtype(),
            ..self.bench()
        }
    }

    /// What neither half reads.
    fn bench(&self) -> Bench<'_> {
        Bench {
            model: self.model,
            pairs: None,
            only: None,
            batch: 1,
            prompt: 1,
            response: 1,
            steps: 1,
            generate: 1,
            new: 1,
            shortest: None,
            temperature: 1.0,
            top_p: 1.0,
            repeat: 1,
            dtype: self.config.train.precision.dtype(),
            recompute: self.config.train.recompute,
            lora: None,
        }
    }

    fn judge<B: TrainingOps>(&self, device: &B::Device) -> anyhow::Result<()> {
        let Config {
            judge,
            generate,
            model,
            ..
        } = self.config;
        let row = |number: usize| {
            let words = (generate.max_new_tokens >> number).max(1);
            let response = |i: usize| format!("{i} {}", "word ".repeat(words));
            let responses: Vec<String> = (0..generate.samples).map(response).collect();
            let prompt = [json!({ "role": "user", "content": "word ".repeat(64) })];
            json!({ "prompt_id": number.to_string(), "prompt": prompt, "responses": responses })
        };
        let responses = self.rows("responses.jsonl", (0..LENGTHS).map(row))?;
        let policy = Some((self.model, model.template()));
        let date = model.date.map(|date| date.0);
        let mut judge = build_judge_of::<B::InnerBackend>(judge, policy, date, device)?;
        let job = Judging {
            responses: &responses,
            out: &self.folder.join("judged.jsonl"),
            part: None,
            on_bad_row: self.config.on_bad_row,
            existing: Existing::Keep,
        };
        judge_responses(job, judge.as_mut(), &Console::default())?;
        Ok(())
    }
}
