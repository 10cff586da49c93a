//! `sppo download`: models and data sets of the Hub into its cache.

use std::path::{Path, PathBuf};

use serde_json::json;
use sppo_training::config::Config;
use sppo_training::hub::{Fresh, Hub, Inside, Part, Repository};

use crate::errors::{OrUser, user};
use crate::hub::{Wanted, failed, judge, policy, rows};
use crate::output;
use crate::progress::Console;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo download meta-llama/Meta-Llama-3-8B-Instruct
  sppo download org/name@v1.0 hf://datasets/openbmb/UltraFeedback/train
  sppo download --config configs/llama3-8b-h200.toml      all that a run of it reads
Takes what sppo reads: configuration, tokenizer and safetensors of a model; a file or a split of a data
set, which where it is no Parquet or JSON is the Hub's own conversion. What broke off goes on. The
cache, HF_HOME and HF_HUB_CACHE, is that of huggingface_hub; HF_TOKEN is needed for what is gated or
private, HF_ENDPOINT names a mirror, and HF_HUB_OFFLINE=1 forbids downloads.")]
pub struct Args {
    /// Models (org/name[@revision]) and rows (hf://datasets/org/name[@revision]/, then a file of it or
    /// a split); the newest, also where the cache has an older one.
    #[arg(value_name = "ID", required_unless_present = "config")]
    pub ids: Vec<String>,
    /// Configuration whose models and files are downloaded.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Overrides a key of the configuration.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    pub set: Vec<String>,
}

/// Downloads; prints where it is.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let mut names: Vec<_> = args.ids.into_iter().map(|id| (id, Part::Whole)).collect();
    if let Some(path) = &args.config {
        names.extend(of_config(&Config::load(Some(path), &args.set)?));
    }
    let hub = Hub::from_env().or_user()?;
    let mut found = Vec::new();
    for (name, part) in &names {
        let paths = download(&hub, name, *part)?;
        if !json {
            let lines = paths.iter().map(|path| format!("{}\n", path.display()));
            output::print(&lines.collect::<String>())?;
        }
        found.push(json!({"id": name, "paths": paths}));
    }
    match json {
        true => output::json(&json!({ "downloaded": found })),
        false => Ok(()),
    }
}

fn download(hub: &Hub, name: &str, part: Part) -> anyhow::Result<Vec<PathBuf>> {
    let monitor = Console::default();
    if let Some(inside) = Inside::of(Path::new(name)) {
        let paths = inside.and_then(|inside| hub.rows(&inside, Fresh::Newest, &monitor));
        return paths.map_err(failed);
    }
    let Some(repository) = Repository::model(name) else {
        return Err(user(format!(
            "{name:?} is no repository id: write org/name or org/name@revision for a model, and \
             hf://datasets/org/name/SPLIT for rows"
        )));
    };
    let folder = hub.model(&repository, part, Fresh::Newest, &monitor);
    Ok(vec![folder.map_err(failed)?])
}

/// What a configuration names on the Hub.
fn of_config(config: &Config) -> Vec<(String, Part)> {
    let (prompts, train) = (&config.prompts, &config.train);
    let files = [
        config.sft.data.as_ref(),
        prompts.heldout.as_ref(),
        train.data.as_ref(),
        train.eval_data.as_ref(),
    ];
    let rows = rows(prompts.files().iter().map(Some).chain(files));
    let all = policy(config).chain(judge(&config.judge)).chain(rows);
    let names = all.filter_map(|wanted| match wanted {
        Wanted::Model(name, part) => {
            let of_hub = !Path::new(name).exists() && Repository::model(name).is_some();
            of_hub.then(|| (name.to_string(), part))
        }
        Wanted::Rows(path) => Inside::of(path).map(|_| (path.display().to_string(), Part::Whole)),
    });
    names.collect()
}
