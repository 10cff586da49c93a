//! `sppo plan`: what a run takes before it starts.

use std::process::Command;

use sppo_training::cost::published;
use sppo_training::hub::Part;
use sppo_training::plan::{Assumed, Card, Plan};

use super::args::{ConfigArgs, count};
use crate::backend::Device;
use crate::errors::user;
use crate::hub::Wanted;
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo plan --config configs/llama3-8b-h200.toml --memory-gib 140
  sppo plan --config my.toml --set train.recompute=layer --json
  sppo plan --config configs/llama3-8b-8gpu.toml --ranks 8 --card \"H100 80GB\"
  sppo plan --config my.toml --ranks 32 --nodes 4 --link-gbs 360 --network-gbs 40
Loads no weights and needs no download for published Llama 3 models. The device may be one that
this build lacks. Memory is an estimate, within 15 % of counted peaks on a CPU.")]
pub struct Args {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Memory of the device; without it, that of this machine or of the NVIDIA card in it.
    #[arg(long, value_name = "GIB", value_parser = count)]
    pub memory_gib: Option<usize>,
    /// The card to plan for, such as "A100 40GB" or "RTX 4090": its memory and its rates. Without
    /// it the NVIDIA card in this machine, else an H100 for the times.
    #[arg(long, value_name = "NAME", value_parser = Card::find)]
    pub card: Option<Card>,
    /// Processes of the job, each with a device (docs/cluster.md).
    #[arg(long, value_name = "N", value_parser = count)]
    pub ranks: Option<usize>,
    /// Machines that they run on, as many on each.
    #[arg(long, value_name = "N", value_parser = count)]
    pub nodes: Option<usize>,
    /// What a rank sends to the others of its node, in GB/s; without it the card's.
    #[arg(long, value_name = "GB/S", value_parser = rate)]
    pub link_gbs: Option<f64>,
    /// What a node sends to the others, in GB/s [default: 40, and 1 between CPUs].
    #[arg(long, value_name = "GB/S", value_parser = rate)]
    pub network_gbs: Option<f64>,
    /// Part of the card's nominal rate that is used, in percent [default: 30].
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub mfu: Option<f64>,
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
    let (ranks, nodes) = (args.ranks.unwrap_or(1), args.nodes.unwrap_or(1));
    if !ranks.is_multiple_of(nodes) {
        return Err(user(format!(
            "--ranks {ranks} --nodes {nodes}: every node has as many ranks; give a multiple of {nodes} ranks"
        )));
    }
    let host = Device::is_cpu_name(&name)? && args.card.is_none();
    let found = match args.card {
        Some(card) => Found::card(card),
        None => Found::device(&name, host),
    };
    let given = args.memory_gib.map(|gib| (gib as u64) << 30);
    let assumed = Assumed {
        host,
        memory: given.or(found.memory),
        prompts: args.prompts,
        prompt_tokens: args.prompt_tokens,
        response_tokens: args.response_tokens,
        ranks: args.ranks,
        nodes: args.nodes,
        card: found.card,
        link_gbs: args.link_gbs,
        network_gbs: args.network_gbs,
        mfu: args.mfu.map(|percent| percent / 100.0),
    };
    if let Some(name) = &config.model.path
        && published(name).is_none()
    {
        hub::bring([Wanted::Model(name, Part::Config)])?;
    }
    let plan = Plan::new(&config, assumed)?;
    output::print(&plan.to_string())?;
    match json {
        true => output::json(&plan),
        false => Ok(()),
    }
}

/// A rate above 0.
fn rate(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    let in_range = number.filter(|number| (1e-3..=1e6).contains(number));
    in_range.ok_or_else(|| "must be a number of GB/s from 0.001 to 1000000".into())
}

/// A part of the whole.
fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    let in_range = number.filter(|number| (0.1..=100.0).contains(number));
    in_range.ok_or_else(|| "must be a percentage from 0.1 to 100".into())
}

/// What is known of the device.
#[derive(Default)]
struct Found {
    /// In bytes.
    memory: Option<u64>,
    card: Option<Card>,
}

impl Found {
    fn card(card: Card) -> Self {
        Self {
            memory: Some(card.mib << 20),
            card: Some(card),
        }
    }

    /// Where this machine has it.
    fn device(name: &str, host: bool) -> Self {
        match host {
            true => Self {
                memory: host_memory(),
                card: None,
            },
            false => Self::nvidia(name).unwrap_or_default(),
        }
    }

    fn nvidia(name: &str) -> Option<Self> {
        let index = name.strip_prefix("cuda")?.trim_start_matches(':');
        let mut ask = Command::new("nvidia-smi");
        ask.args([
            "--query-gpu=memory.total,name",
            "--format=csv,noheader,nounits",
        ]);
        ask.args(["-i", if index.is_empty() { "0" } else { index }]);
        let output = ask.output().ok().filter(|output| output.status.success())?;
        let text = String::from_utf8(output.stdout).ok()?;
        let (mebibytes, card) = text.split_once(',')?;
        let mebibytes: u64 = mebibytes.trim().parse().ok()?;
        Some(Self {
            memory: Some(mebibytes << 20),
            card: Card::find(card.trim()).ok(),
        })
    }
}

/// Bytes of this machine's memory.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes << 10)
}
