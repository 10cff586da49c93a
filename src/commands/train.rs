//! `sppo train`: one iteration's training on the pairs of `[train] data`.

use std::path::PathBuf;

use sppo_model::ops::TrainingOps;
use sppo_training::cluster::{self, lead};
use sppo_training::config::Config;
use sppo_training::stages::{PairTraining, StageError, lock_folder, start_model, train_pairs};
use sppo_training::trainer::training_output;

use super::args::{ConfigArgs, OverwriteArg, refuse_bf16};
use crate::backend::{WithBackend, dispatch_connected};
use crate::progress::Console;
use crate::start::{Place, Start, inputs, start};
use crate::{hub, output};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  sppo train --config train.toml
  sppo train --config train.toml --set train.data=pairs.jsonl --set train.loss=dpo --device wgpu
A training that was stopped goes on when the same command is given again. One of other rows, settings
or weights is set aside, in OUTPUT_DIR.before-DATE; --overwrite replaces it.")]
pub struct Args {
    #[command(flatten)]
    pub overwrite: OverwriteArg,
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Trains; the model is at `<output_dir>/model`.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    let (config, device) = args.config.load()?;
    refuse_bf16("train", config.train.precision, device)?;
    let files = [
        ("train.data", config.train.data.as_ref()),
        ("train.eval_data", config.train.eval_data.as_ref()),
    ];
    hub::bring(hub::policy(&config).chain(hub::rows(files.map(|(_, file)| file))))?;
    let device = start(Start {
        output: Place::Folder(&config.output_dir),
        config: Some(&config),
        inputs: inputs(&config, files),
        device,
    })?;
    let model = dispatch_connected(
        device,
        &config.cluster,
        config.train.matmul,
        Training(&config, &args.overwrite),
    )??;
    output::made(&model, json)
}

struct Training<'a>(&'a Config, &'a OverwriteArg);

impl WithBackend for Training<'_> {
    type Output = Result<PathBuf, StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let config = self.0;
        let Some(data) = &config.train.data else {
            return Err(StageError::Input(
                "sppo train needs train.data, a .jsonl or .parquet file of pairs (sppo pairs makes one)"
                    .into(),
            ));
        };
        // A first model is made under the same lock, so that no other process changes it.
        lead(cluster::world(), || {
            training_output(&config.output_dir).refuse_foreign()
        })?;
        let _lock = lock_folder(&config.output_dir)?;
        let model = start_model::<B::InnerBackend>(config, self.1.overwrite, &device)?;
        let job = PairTraining {
            config: &config.train,
            logging: &config.logging,
            model: &model,
            template: config.model.template(),
            data,
            on_bad_row: config.on_bad_row,
            output_dir: &config.output_dir,
            existing: self.1.or_set_aside(&config.output_dir),
            date: config.model.date.map(|date| date.0),
        };
        Ok(train_pairs::<B>(job, &device, &Console::default())?.model)
    }
}
