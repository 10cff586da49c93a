//! An adapter folder and its base → a whole model folder, one tensor in memory at a time.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::folder::AdapterFolder;
use crate::checkpoint::{Checkpoint, LazyTensor, Share};
use crate::llama::config::LlamaConfig;
use crate::llama::hf::{open, write_folder};
use crate::llama::parameters::{Group, Kind, Parameter, ParameterTable, peft_name};
use crate::load_error::CheckpointError;
use crate::nn::Adapter;
use crate::ops::to_host;
use crate::weights::{FromCheckpoint, TensorReader};

/// What a merge came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merged {
    /// The dtype that was written.
    pub dtype: DType,
    /// Part of the adapter's change that rounding to that dtype left in the weights: its
    /// projection on the change. 1 where nothing was lost.
    pub kept: f64,
}

/// A base model and adapters that fit it.
pub struct Merge {
    base: PathBuf,
    config: LlamaConfig,
    weights: Checkpoint,
    adapter: AdapterFolder,
}

impl Merge {
    /// Opens both folders; refuses what does not fit, and reads no weights.
    pub fn open(base: &Path, adapter: &Path) -> Result<Self, CheckpointError> {
        let (config, weights) = open(base)?;
        let adapter = AdapterFolder::open(adapter, base, &config)?;
        Ok(Self {
            base: base.into(),
            config,
            weights,
            adapter,
        })
    }

    /// Writes the base with `scale · B · A` added in f32 to `dir`, which must exist; in `dtype`,
    /// or in that of the base. On an error the folder is not whole.
    pub fn write<B: Backend>(
        &self,
        dir: &Path,
        dtype: Option<DType>,
        device: &B::Device,
    ) -> Result<Merged, CheckpointError> {
        let dtype = dtype.unwrap_or_else(|| self.weights.common_dtype());
        let merging = Merging::<B> {
            weights: &self.weights,
            adapter: &self.adapter,
            dtype,
            device,
            failed: RefCell::default(),
            asked: Cell::new(0.0),
            kept: Cell::new(0.0),
        };
        let table = ParameterTable::new(&self.config);
        let mut tensors = Vec::with_capacity(table.all().len());
        for parameter in table.all() {
            let merging = &merging;
            tensors.push(LazyTensor {
                name: parameter.name.clone(),
                shape: parameter.shape.clone(),
                dtype,
                fetch: Box::new(move || merging.fetch(parameter)),
            });
        }
        let written = write_folder(dir, &tensors, &self.config, dtype, &self.base, Share::WHOLE);
        drop(tensors);
        if let Some(error) = merging.failed.into_inner() {
            return Err(error);
        }
        written?;
        Ok(Merged {
            dtype,
            kept: match merging.asked.get() {
                0.0 => 1.0,
                asked => merging.kept.get() / asked,
            },
        })
    }
}

/// A merge under way.
struct Merging<'a, B: Backend> {
    weights: &'a Checkpoint,
    adapter: &'a AdapterFolder,
    dtype: DType,
    device: &'a B::Device,
    /// Why a tensor could not be read: the writer knows no errors.
    failed: RefCell<Option<CheckpointError>>,
    /// Squared norm of the change, and its product with what the weights keep of it.
    asked: Cell<f64>,
    kept: Cell<f64>,
}

impl<B: Backend> Merging<'_, B> {
    fn fetch(&self, parameter: &Parameter) -> TensorData {
        let found = match self.failed.borrow().is_some() {
            true => Ok(None),
            false => self.merged(parameter),
        };
        found
            .unwrap_or_else(|error| {
                self.failed.replace(Some(error));
                None
            })
            .unwrap_or_else(|| {
                TensorData::zeros::<f32, _>(parameter.shape.clone()).convert_dtype(self.dtype)
            })
    }

    /// A tensor of the merged model.
    fn merged(&self, parameter: &Parameter) -> Result<Option<TensorData>, CheckpointError> {
        let name = parameter.name.as_str();
        let Some(factors) = self.factors(parameter) else {
            return Ok(self.weights.load(name, self.dtype)?);
        };
        let Some(weight) = self.weights.load(name, DType::F32)? else {
            return Ok(None);
        };
        let source = FromCheckpoint {
            checkpoint: &self.adapter.weights,
            dtype: DType::F32,
        };
        let list = factors.iter().map(|p| p.name_and_shape());
        let mut reader = TensorReader::<B, _>::new(list, source, self.device);
        let change = Adapter {
            lora_a: reader.param()?,
            lora_b: reader.param()?,
            scale: self.adapter.lora.scale(),
        }
        .change();
        let base = Tensor::<B, 2>::from_data(weight.clone(), (self.device, DType::F32));
        let merged = (base + change.clone()).into_data();
        let merged = merged.convert_dtype(self.dtype);
        let change = to_host(change)?;
        self.count(&change, weight, merged.clone());
        Ok(Some(merged))
    }

    /// The factors of the adapter of the layer whose weight it is, where it has one.
    fn factors(&self, weight: &Parameter) -> Option<&[Parameter]> {
        let (Group::Block(block), Some(layer)) = (weight.group, weight.layer) else {
            return None;
        };
        let name = peft_name(block, layer, 'A');
        let all = self.adapter.parameters.all();
        let first = all.iter().position(|p| p.name == name)?;
        (weight.kind == Kind::Weight).then(|| &all[first..first + 2])
    }

    /// Adds up what rounding left of a change.
    fn count(&self, change: &[f32], before: TensorData, after: TensorData) {
        let rounded = |data: TensorData| {
            let data = data.convert_dtype(self.dtype).convert_dtype(DType::F32);
            data.into_vec::<f32>().unwrap_or_default()
        };
        let (before, after) = (rounded(before), rounded(after));
        let (mut asked, mut kept) = (0.0, 0.0);
        for ((&change, before), after) in change.iter().zip(before).zip(after) {
            asked += change as f64 * change as f64;
            kept += change as f64 * (after as f64 - before as f64);
        }
        self.asked.set(self.asked.get() + asked);
        self.kept.set(self.kept.get() + kept);
    }
}
