//! `sppo plan`: what a run takes before it starts.

use std::process::Command;

use sppo_training::plan::{Assumed, Plan};

use super::args::{ConfigArgs, count};
use crate::backend::Device;
use crate::output;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo plan --config configs/llama3-8b-h200.toml --memory-gib 140
  sppo plan --config my.toml --set train.recompute=layer --json
Loads no weights and needs no download for published Llama 3 models. The device may be one that
this build lacks. Memory is an estimate, within 15 % of counted peaks on a CPU.")]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Memory of the device; without it, that of this machine or of the NVIDIA card in it.
    #[arg(long, value_name = "GIB", value_parser = count)]
    pub memory_gib: Option<usize>,
    /// Prompts (or pairs) of an iteration, instead of those of the file.
    #[arg(long, value_name = "N", value_parser = count)]
    pub prompts: Option<usize>,
    /// Mean length of a prompt, instead of that in the file.
    #[arg(long, value_name = "N", value_parser = count)]
    pub prompt_tokens: Option<usize>,
    /// Mean length of a response.
    #[arg(long, value_name = "N", value_parser = count)]
    pub response_tokens: Option<usize>,
}

/// Plans and prints.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (config, name) = args.config.load_without_device()?;
    let host = Device::is_cpu_name(&name)?;
    let given = args.memory_gib.map(|gib| (gib as u64) << 30);
    let assumed = Assumed {
        host,
        memory: given.or_else(|| device_memory(&name, host)),
        prompts: args.prompts,
        prompt_tokens: args.prompt_tokens,
        response_tokens: args.response_tokens,
    };
    let plan = Plan::new(&config, assumed)?;
    output::print(&plan.to_string())?;
    match json {
        true => output::json(&plan),
        false => Ok(()),
    }
}

/// Bytes of the device's memory, where this machine has it.
fn device_memory(name: &str, host: bool) -> Option<u64> {
    if host {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        return Some(kilobytes << 10);
    }
    let index = name.strip_prefix("cuda")?.trim_start_matches(':');
    let mut ask = Command::new("nvidia-smi");
    ask.args(["--query-gpu=memory.total", "--format=csv,noheader,nounits"]);
    ask.args(["-i", if index.is_empty() { "0" } else { index }]);
    let output = ask.output().ok().filter(|output| output.status.success())?;
    let mebibytes: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(mebibytes << 20)
}
