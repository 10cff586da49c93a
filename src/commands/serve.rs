//! The arguments of `sppo serve`, an OpenAI-compatible server; `serving` runs it.

use std::path::PathBuf;

use super::args::{DateArg, DeviceArg, TemplateArg, count, count_or_none, not_negative};
use sppo_training::config::{Generate, Precision};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo serve --model runs/default/iteration-3/model
  sppo serve --model meta-llama/Meta-Llama-3-8B-Instruct --device cuda --precision bf16 --batch 64
  sppo serve --model BASE --adapter runs/a/model --served-name mine --port 8001
  sppo serve --model DIR --host 0.0.0.0 --api-key-file key.txt
Routes: /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /metrics,
/version. Ctrl-C or SIGTERM finishes what is under way and ends; a second Ctrl-C ends at once.
docs/server.md says what each key means and what differs from vLLM.")]
pub struct Args {
    /// Checkpoint folder, or Hugging Face repository id (org/name[@revision]), downloaded if need be.
    #[arg(long, value_name = "DIR")]
    pub model: String,
    /// LoRA adapters on it: a PEFT folder, or such a repository id.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<String>,
    /// Address to listen on; any but this machine's own needs a key.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// File with the key that clients have to send as `Authorization: Bearer KEY`.
    #[arg(long, value_name = "FILE", conflicts_with = "no_key")]
    pub api_key_file: Option<PathBuf>,
    /// Lets everybody who reaches the address use the server.
    #[arg(long)]
    pub no_key: bool,
    /// Name of the model in answers; what --model says unless given.
    #[arg(long, value_name = "NAME")]
    pub served_name: Option<String>,
    /// Refuses requests for a model of another name.
    #[arg(long)]
    pub strict_model: bool,
    /// Answers /tokenizer_info with the tokenizer's settings and chat template.
    #[arg(long)]
    pub tokenizer_info: bool,
    /// Number format of weights, activations and cache: f32 or bf16.
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    /// Sequences generated together.
    #[arg(long, value_name = "N", default_value_t = Generate::default().batch, value_parser = count)]
    pub batch: usize,
    /// Most memory for keys and values; fewer sequences are generated together where it is short.
    #[arg(long, value_name = "MIB", value_parser = count)]
    pub cache_memory_mib: Option<usize>,
    /// Memory for what prompts begin with, kept for later ones that begin alike; 0 keeps nothing.
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = count_or_none)]
    pub prefix_memory_mib: usize,
    /// Longest prompt and answer together, in tokens; the model's context unless given.
    #[arg(long, value_name = "N", value_parser = count)]
    pub max_model_len: Option<usize>,
    /// Requests that may wait; more get 429.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count)]
    pub max_queue: usize,
    /// Seconds that a client may take to send a request, or to take the next piece of an answer.
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
    /// Seconds for what is under way at the end.
    #[arg(long, value_name = "S", default_value_t = 30.0, value_parser = not_negative)]
    pub drain_seconds: f64,
    #[command(flatten)]
    pub template: TemplateArg,
    #[command(flatten)]
    pub date: DateArg,
    #[command(flatten)]
    pub device: DeviceArg,
}
