//! `sppo merge`: a whole model of a base and LoRA adapters.

use std::path::PathBuf;

use serde_json::json;
use sppo_model::ops::TrainingOps;
use sppo_training::config::{Matmul, Precision};
use sppo_training::stages::{Merging, StageError, merge_adapters};

use super::args::{DeviceArg, OverwriteArg};
use crate::backend::{WithBackend, dispatch};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo merge --model meta-llama/Meta-Llama-3-8B-Instruct --adapter runs/a/model --out merged
  sppo merge --model DIR --adapter DIR --out DIR --precision f32
Takes adapters that `sppo train` with [train.lora] or PEFT wrote. Weights are added in f32, one at a
time; the last line for programs also says which part of the change rounding left in the weights.")]
pub struct Args {
    /// The base: checkpoint folder or Hugging Face repository id, downloaded if need be.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Its adapters: a PEFT folder, or such a repository id.
    #[arg(long, value_name = "DIR")]
    pub adapter: String,
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Number format to write, f32 or bf16; that of the base unless given (f32 for an f16 one).
    #[arg(long)]
    pub precision: Option<Precision>,
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub device: DeviceArg,
}

/// Merges.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let base = hub::model(&args.model)?;
    let adapter = hub::model(&args.adapter)?;
    let job = Merging {
        base: &base,
        adapter: &adapter,
        out: &args.out,
        dtype: args.precision.map(Precision::dtype),
        existing: args.overwrite.existing(),
    };
    let kept = dispatch(args.device.device, Matmul::Auto, Merge(job))??;
    match json {
        true => output::json(&json!({"path": args.out, "kept": kept})),
        false => output::made(&args.out, false),
    }
}

struct Merge<'a>(Merging<'a>);

impl WithBackend for Merge<'_> {
    type Output = Result<f64, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        merge_adapters::<B::InnerBackend>(self.0, &device)
    }
}
