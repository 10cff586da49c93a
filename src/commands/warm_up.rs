//! `sppo warm-up`: kernels compiled and tuned before a run.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sppo_model::ops::TrainingOps;
use sppo_training::config::{Config, JudgeKind};
use sppo_training::files::Existing;
use sppo_training::stages::{
    Judging, Sampling, build_judge_of, judge_responses, lengths, warm_up_generation,
    warm_up_training,
};

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

/// Samples, judges and trains, each shortly.
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
        config.train.matmul,
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
        let Config {
            train,
            logging,
            judge,
            prompts,
            sft,
            ..
        } = self.config;
        let monitor = Console::default();
        if sft.data.is_some() {
            tracing::warn!("[sft] is left out: its kernels are compiled when it runs");
        }
        let mut samplings = vec![Sampling::from(&self.config.generate)];
        if prompts.heldout.is_some() {
            samplings.push(Sampling::of_answers(self.config));
        }
        let prompt = prompts.max_length.unwrap_or(train.max_prompt_length);
        warm_up_generation::<B::InnerBackend>(&samplings, prompt, self.model, &device, &monitor)?;
        if matches!(judge.kind, JudgeKind::PairRm | JudgeKind::Reward) {
            self.judge::<B>(&device)?;
        }
        warm_up_training::<B>(train, logging, self.model, &device, &monitor)?;
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

    fn judge<B: TrainingOps>(&self, device: &B::Device) -> anyhow::Result<()> {
        let Config {
            judge,
            generate,
            model,
            ..
        } = self.config;
        let row = |(number, words): (usize, usize)| {
            let response = |i: usize| format!("{i} {}", "word ".repeat(words));
            let responses: Vec<String> = (0..generate.samples).map(response).collect();
            let prompt = [json!({ "role": "user", "content": "word ".repeat(64) })];
            json!({ "prompt_id": number.to_string(), "prompt": prompt, "responses": responses })
        };
        let responses = self.rows(
            "responses.jsonl",
            lengths(generate.max_new_tokens, 1)
                .into_iter()
                .enumerate()
                .map(row),
        )?;
        let policy = Some((self.model, model.template()));
        let date = model.date.map(|date| date.0);
        let mut judge = build_judge_of::<B::InnerBackend>(judge, policy, date, device)?;
        let job = Judging {
            responses: &responses,
            out: &self.folder.join("judged.jsonl"),
            part: None,
            label: "judging",
            on_bad_row: self.config.on_bad_row,
            existing: Existing::Keep,
        };
        judge_responses(job, judge.as_mut(), &Console::default())?;
        Ok(())
    }
}
