//! A base model and its adapters → a whole model.

use std::path::Path;

use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use sppo_model::llama::lora::Merge;
use sppo_model::ops::ModelOps;

use super::error::StageError;
use crate::card::write_new;
use crate::cluster::{self, lead};
use crate::files::{
    Existing, FileError, IN_FOLDER, Lock, MadeFrom, Mark, Output, adapter_fingerprint,
    model_fingerprint, read_mark, replace_folder, weights_fingerprint, write_mark,
};
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
    /// What becomes of a folder that was made from something else.
    pub existing: Existing<'a>,
}

/// The mark of a merged model.
#[derive(Serialize, Deserialize)]
struct MergedMark {
    #[serde(flatten)]
    mark: Mark,
    /// Part of the change that is in the weights.
    kept: f64,
}

/// Writes the whole model, beside its name and renamed; refuses adapters of another base. Gives the
/// part of the change that rounding left in the weights, in 0..1. Among several ranks, rank 0 does
/// it.
pub fn merge_adapters<B: ModelOps>(
    job: Merging<'_>,
    device: &B::Device,
) -> Result<f64, StageError> {
    let world = cluster::world();
    cluster::doing("merging adapters");
    lead(world, || merge::<B>(job, device))
}

fn merge<B: ModelOps>(job: Merging<'_>, device: &B::Device) -> Result<f64, StageError> {
    let output = Output::folder(job.out);
    output.refuse_foreign()?;
    // Before anything of an earlier output goes.
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
    let _lock = Lock::beside(job.out)?;
    let made_from = MadeFrom::new("merge")
        .settings(
            job.dtype
                .map(|d| ("precision", format!("{d:?}").to_lowercase())),
        )
        .input("model", job.base, model_fingerprint(job.base)?)
        .input("adapter", job.adapter, adapter_fingerprint(job.adapter)?);
    if output.claim_finished(&made_from, job.existing)? {
        tracing::info!("nothing to do: {} is finished", job.out.display());
        let mark = read_mark::<MergedMark>(&job.out.join(IN_FOLDER))?;
        return Ok(mark.map_or(1.0, |mark| mark.kept));
    }
    let merged = replace_folder(job.out, |dir| -> Result<_, StageError> {
        let merged = merge.write::<B>(dir, job.dtype, device)?;
        // The template that the adapters were trained with.
        let template = job.adapter.join("chat_template.jinja");
        if template.is_file() {
            let copy = dir.join("chat_template.jinja");
            std::fs::copy(&template, &copy).map_err(FileError::new("write", &copy))?;
        }
        let mark = MergedMark {
            mark: Mark::of_folder(made_from, dir)?,
            kept: merged.kept,
        };
        write_mark(&dir.join(IN_FOLDER), &mark)?;
        write_new(dir, job.out)?;
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
    Ok(merged.kept)
}
