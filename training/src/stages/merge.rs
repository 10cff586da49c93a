//! A base model and its adapters → a whole model.

use std::path::Path;

use burn::tensor::DType;
use sppo_model::llama::lora::{Merge, Merged};
use sppo_model::ops::ModelOps;

use super::error::StageError;
use crate::config::model_name;
use crate::files::{FileError, replace_folder, weights_fingerprint};
use crate::trainer::base_of_adapters;

/// Adapters to add to the model they were trained on.
#[derive(Clone, Copy, Debug)]
pub struct Merging<'a> {
    /// Folder of the model that the adapters were trained on.
    pub base: &'a Path,
    /// Folder of the adapters.
    pub adapter: &'a Path,
    /// Folder that receives the whole model.
    pub out: &'a Path,
    /// Of the weights that are written; the base's where not given.
    pub dtype: Option<DType>,
}

/// Writes the whole model, beside its name and renamed; refuses adapters of another base.
pub fn merge_adapters<B: ModelOps>(
    job: Merging<'_>,
    device: &B::Device,
) -> Result<Merged, StageError> {
    let merge = Merge::open(job.base, job.adapter)?;
    if let Some(trained_on) = base_of_adapters(job.adapter)
        && trained_on != weights_fingerprint(job.base)?
    {
        return Err(StageError::Input(format!(
            "{} was trained on other weights than those in {}; give the model that its adapter_config.json names",
            job.adapter.display(),
            job.base.display()
        )));
    }
    let merged = replace_folder(job.out, |dir| -> Result<_, StageError> {
        let merged = merge.write::<B>(dir, job.dtype, device)?;
        let card = dir.join("README.md");
        std::fs::write(&card, card_text(job)).map_err(FileError::new("write", &card))?;
        Ok(merged)
    })?;
    tracing::info!(
        "{}: {:.1} % of the change is in the weights",
        job.out.display(),
        100.0 * merged.kept
    );
    if merged.kept < 0.9 {
        tracing::warn!(
            "rounding to {} lost much of what the adapters change; train them at a higher rate, or merge in f32",
            format!("{:?}", merged.dtype).to_lowercase()
        );
    }
    Ok(merged)
}

fn card_text(job: Merging<'_>) -> String {
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- sppo\n---\n\n# A Llama with merged LoRA adapters\n\n{} with the adapters {} added to its weights by `sppo merge`.\n",
        model_name(job.base),
        model_name(job.adapter)
    )
}
