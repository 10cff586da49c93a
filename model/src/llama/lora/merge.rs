//! An adapter folder and its base → a whole model folder, one tensor in memory at a time.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::{AdapterFolder, peft_name};
use crate::checkpoint::{Checkpoint, LazyTensor};
use crate::host;
use crate::llama::LlamaConfig;
use crate::llama::hf::{expected_tensors, open, write_folder};
use crate::nn::Adapter;
use crate::weights::{CheckpointError, FromCheckpoint, Source};

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
    pub fn open<B: Backend>(base: &Path, adapter: &Path) -> Result<Self, CheckpointError> {
        let (config, weights) = open::<B>(base)?;
        let adapter = AdapterFolder::open::<B>(adapter, base, &config)?;
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
        let tensors = expected_tensors::<B>(&self.config)?.into_iter();
        let tensors: Vec<LazyTensor<'_>> = tensors
            .map(|(name, shape)| LazyTensor {
                name: name.clone(),
                shape: shape.clone(),
                dtype,
                fetch: Box::new({
                    let merging = &merging;
                    move || merging.fetch(&name, &shape)
                }),
            })
            .collect();
        let written = write_folder(dir, &tensors, &self.config, dtype, &self.base);
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
    fn fetch(&self, name: &str, shape: &[usize]) -> TensorData {
        let found = match self.failed.borrow().is_some() {
            true => Ok(None),
            false => self.merged(name),
        };
        found
            .unwrap_or_else(|error| {
                self.failed.replace(Some(error));
                None
            })
            .unwrap_or_else(|| {
                TensorData::zeros::<f32, _>(shape.to_vec()).convert_dtype(self.dtype)
            })
    }

    /// The tensor `name` of the merged model.
    fn merged(&self, name: &str) -> Result<Option<TensorData>, CheckpointError> {
        let layers = &self.adapter.layers;
        let path = name.strip_prefix("model.");
        let path = path.and_then(|path| path.strip_suffix(".weight"));
        let Some(path) = path.filter(|path| layers.iter().any(|layer| layer == path)) else {
            return Ok(self.weights.load(name, self.dtype)?);
        };
        let Some(weight) = self.weights.load(name, DType::F32)? else {
            return Ok(None);
        };
        let (rank, output, input) = (self.adapter.lora.rank, weight.shape[0], weight.shape[1]);
        let mut source = FromCheckpoint::<B> {
            checkpoint: &self.adapter.weights,
            dtype: DType::F32,
            device: self.device,
        };
        let change = Adapter {
            lora_a: source.param(&peft_name(path, 'A'), [rank, input])?,
            lora_b: source.param(&peft_name(path, 'B'), [output, rank])?,
            scale: self.adapter.lora.scale(),
        }
        .change();
        let base = Tensor::<B, 2>::from_data(weight.clone(), (self.device, DType::F32));
        let merged = (base + change.clone()).into_data();
        let merged = merged.convert_dtype(self.dtype);
        self.count(&host::take(change), weight, merged.clone());
        Ok(Some(merged))
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
