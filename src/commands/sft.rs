//! `sppo sft`: supervised fine-tuning on the rows of `[sft] data`.

use std::path::PathBuf;

use sppo_model::ops::TrainingOps;
use sppo_training::cluster::{self, lead};
use sppo_training::config::Config;
use sppo_training::stages::{FineTuning, StageError, fine_tune, lock_folder, start_model};
use sppo_training::trainer::training_output;

use super::args::{ConfigArgs, OverwriteArg};
use crate::backend::{WithBackend, dispatch_connected};
use crate::progress::Console;
use crate::start::{Place, Start, inputs, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo sft --config config.toml
  sppo sft --config config.toml --set sft.epochs=3 --set sft.data=rows.jsonl")]
pub struct Args {
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Fine-tunes; the model is at `<output_dir>/model`.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (config, device) = args.config.load()?;
    hub::bring(hub::policy(&config).chain(hub::rows([config.sft.data.as_ref()])))?;
    let device = start(Start {
        output: Place::Folder(&config.output_dir),
        config: Some(&config),
        inputs: inputs(&config, [("sft.data", config.sft.data.as_ref())]),
        device,
    })?;
    let model = dispatch_connected(
        device,
        &config.cluster,
        config.train.matmul,
        FineTune(&config, &args.overwrite),
    )??;
    output::made(&model, json)
}

struct FineTune<'a>(&'a Config, &'a OverwriteArg);

impl WithBackend for FineTune<'_> {
    type Output = Result<PathBuf, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let config = self.0;
        let Some(data) = &config.sft.data else {
            return Err(StageError::Input(
                "sppo sft needs sft.data, a .jsonl or .parquet file of prompt and response rows"
                    .into(),
            ));
        };
        // A first model is made under the same lock, so that no other process changes it.
        lead(cluster::world(), || {
            training_output(&config.output_dir).refuse_foreign()
        })?;
        let _lock = lock_folder(&config.output_dir)?;
        let model = start_model::<B::InnerBackend>(config, self.1.overwrite, &device)?;
        let job = FineTuning {
            config: &config.sft,
            logging: &config.logging,
            model: &model,
            template: config.model.template(),
            data,
            on_bad_row: config.on_bad_row,
            output_dir: &config.output_dir,
            existing: self.1.or_set_aside(&config.output_dir),
            seed: config.seed,
            date: config.model.date.map(|date| date.0),
        };
        Ok(fine_tune::<B>(job, &device, &Console::default())?.model)
    }
}
