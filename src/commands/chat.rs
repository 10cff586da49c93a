//! The arguments of `sppo chat`, conversations in the terminal; `chatting` holds them.

use std::path::PathBuf;

use sppo_training::config::Precision;

use super::args::{DateArg, DeviceArg, TemplateArg};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo chat --model runs/default/iteration-3/model
  sppo chat --model runs/default/sft/model --model runs/default/iteration-3/model
  sppo chat --model BASE --model BASE --adapter runs/a/model --device cuda
  sppo chat --url http://localhost:8000 --set temperature=0.7
  sppo chat --model DIR --message 'What is a mutex?' --set temperature=0 --set max_tokens=200
Two models get the same questions and answer side by side, each hearing its own answers. /help lists the
commands: /reset /undo /retry /system /set /save /load. Ctrl-C stops an answer, twice it leaves. Lines
that come through a pipe are answered one by one.")]
pub struct Args {
    /// Checkpoint folder, or Hugging Face repository id (org/name[@revision]), downloaded if need be;
    /// twice for two models.
    #[arg(long, value_name = "DIR", required_unless_present = "url")]
    pub model: Vec<String>,
    /// LoRA adapters on the last model: a PEFT folder, or such a repository id.
    #[arg(long, value_name = "DIR", requires = "model")]
    pub adapter: Option<String>,
    /// A server that speaks OpenAI's API, such as that of `sppo serve`; beside a model or twice, too.
    #[arg(long, value_name = "URL")]
    pub url: Vec<String>,
    /// File with the key that the servers of --url want.
    #[arg(long, value_name = "FILE", requires = "url")]
    pub api_key_file: Option<PathBuf>,
    /// The model's name on the servers of --url; the first that they list unless given.
    #[arg(long, value_name = "NAME", requires = "url")]
    pub name: Option<String>,
    /// Asks this, prints the answer and ends.
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,
    /// What stands in front of the conversation.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// A parameter of the requests, as /set takes: temperature, top_p, top_k, min_p, max_tokens, seed,
    /// presence_penalty, frequency_penalty, repetition_penalty or stop.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Number format of weights, activations and cache: f32 or bf16.
    #[arg(long, default_value_t = Precision::F32)]
    pub precision: Precision,
    #[command(flatten)]
    pub template: TemplateArg,
    #[command(flatten)]
    pub date: DateArg,
    #[command(flatten)]
    pub device: DeviceArg,
}
