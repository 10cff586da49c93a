//! `sppo bench`: tokens per second of training and generation on random rows.

use std::path::PathBuf;

use sppo_model::ops::TrainingOps;
use sppo_training::config::{Matmul, Precision, Recompute};
use sppo_training::stages::{Bench, BenchReport, Half, StageError, bench};

use super::args::{DeviceArg, count, not_negative, probability, rank, refuse_bf16_flag};
use crate::backend::{WithBackend, dispatch};
use crate::progress::Console;
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo bench --model runs/default/sft/model
  sppo bench --model DIR --batch 8 --prompt 150 --response 300 --precision bf16 --json")]
pub struct Args {
    /// Checkpoint folder, or Hugging Face repository id (org/name[@revision]), downloaded if need be.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// Trains on these pre-tokenised pairs (prompt_ids, chosen_ids, rejected_ids), not random ones.
    #[arg(long, value_name = "FILE")]
    pub pairs: Option<PathBuf>,
    /// Measures only this: train or generate.
    #[arg(long, value_name = "WHAT")]
    pub only: Option<Only>,
    /// Pairs of one step.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = count)]
    pub batch: usize,
    /// Tokens of a prompt.
    #[arg(long, value_name = "N", default_value_t = 48, value_parser = count)]
    pub prompt: usize,
    /// Most tokens of a response; they have half of it to all of it.
    #[arg(long, value_name = "N", default_value_t = 80, value_parser = count)]
    pub response: usize,
    /// Timed optimizer steps, behind one that is not timed.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = count)]
    pub steps: usize,
    /// Sequences sampled together.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count)]
    pub generate: usize,
    /// New tokens of each.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = count)]
    pub new: usize,
    /// Lets the new tokens of a sequence vary, from this many on, and four times as many sequences
    /// pass through the same slots.
    #[arg(long, value_name = "N", value_parser = count)]
    pub shortest: Option<usize>,
    /// Temperature of the sampling.
    #[arg(long, value_name = "T", default_value_t = 1.0, value_parser = not_negative)]
    pub temperature: f64,
    /// Samples from the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = probability)]
    pub top_p: f64,
    /// Timed runs of the generation, of which the fastest counts.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    pub repeat: usize,
    /// Number format of weights and activations: f32 or bf16.
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// What the backward pass computes again: none or layer.
    #[arg(long, default_value_t = Recompute::None)]
    pub recompute: Recompute,
    /// Matrix products of linear layers: auto, cubecl or cublaslt (on CUDA cards).
    #[arg(long, default_value_t = Matmul::Auto)]
    pub matmul: Matmul,
    /// Trains LoRA adapters of this rank instead of all weights.
    #[arg(long, value_name = "RANK", value_parser = rank)]
    pub lora: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArg,
}

/// Half of the measurement.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Only {
    Train,
    Generate,
}

/// Measures and prints.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let model = hub::model(&args.model)?;
    refuse_bf16_flag(args.precision, args.device.device)?;
    let job = Bench {
        model: &model,
        pairs: args.pairs.as_deref(),
        only: args.only.map(|only| match only {
            Only::Train => Half::Train,
            Only::Generate => Half::Generate,
        }),
        batch: args.batch,
        prompt: args.prompt,
        response: args.response,
        steps: args.steps,
        generate: args.generate,
        new: args.new,
        shortest: args.shortest,
        temperature: args.temperature,
        top_p: args.top_p,
        repeat: args.repeat,
        dtype: args.precision.dtype(),
        recompute: args.recompute,
        lora: args.lora,
    };
    let report = dispatch(args.device.device, args.matmul, Measure(job))??;
    let rate = |name, value: Option<f64>| value.map(|v| format!("{name} {v:.0} tokens/s, "));
    let step = report.train_step_s.zip(report.train_tflops_per_s);
    output::print(&format!(
        "{}{}{}peak memory {:.0} MiB",
        rate("training", report.train_tokens_per_s).unwrap_or_default(),
        step.map(|(seconds, tflops)| format!("{seconds:.3} s a step, {tflops:.2} TFLOP/s, "))
            .unwrap_or_default(),
        rate("generation", report.generate_tokens_per_s).unwrap_or_default(),
        report.peak_memory_mib
    ))?;
    match json {
        true => output::json(&report),
        false => Ok(()),
    }
}

struct Measure<'a>(Bench<'a>);

impl WithBackend for Measure<'_> {
    type Output = Result<BenchReport, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        bench::<B>(self.0, &device, &Console::default())
    }
}
