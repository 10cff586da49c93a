//! Building a model from named tensors: out of a checkpoint, at random, or names and shapes only.

use std::path::PathBuf;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::RngExt;
use rand::rngs::ChaCha12Rng;
use rand_distr::StandardNormal;

use crate::checkpoint::{Checkpoint, SafetensorsError};
use crate::config_json::ConfigError;
use crate::llama::lora::AdapterError;
use crate::nn::Linear;

/// Why a model folder cannot be loaded or saved.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{dir}: {source}")]
    Config { dir: PathBuf, source: ConfigError },
    #[error(transparent)]
    Weights(#[from] SafetensorsError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("{path} does not fit its config.json:\n  {}", problems.join("\n  "))]
    Mismatch {
        path: PathBuf,
        problems: Vec<String>,
    },
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Where a model under construction gets its tensors from.
pub(crate) trait Source<B: Backend> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError>;

    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Param<Tensor<B, D>>, CheckpointError> {
        Ok(Param::from_tensor(self.tensor(name, shape)?))
    }

    fn linear(
        &mut self,
        name: &str,
        [output, input]: [usize; 2],
        bias: bool,
    ) -> Result<Linear<B>, CheckpointError> {
        Ok(Linear {
            weight: self.param(&format!("{name}.weight"), [output, input])?,
            bias: match bias {
                true => Some(self.param(&format!("{name}.bias"), [output])?),
                false => None,
            },
            adapter: None,
        })
    }
}

/// Reads a checkpoint whose tensors were checked.
pub(crate) struct FromCheckpoint<'a, B: Backend> {
    pub checkpoint: &'a Checkpoint,
    pub dtype: DType,
    pub device: &'a B::Device,
}

impl<B: Backend> Source<B> for FromCheckpoint<'_, B> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        // Presence and shape were checked for the whole checkpoint before.
        match self.checkpoint.load(name, self.dtype)? {
            Some(data) => Ok(Tensor::from_data(data, (self.device, self.dtype))),
            None => Err(CheckpointError::Mismatch {
                path: self.checkpoint.path().into(),
                problems: vec![format!("missing: {name} {shape:?}")],
            }),
        }
    }
}

/// Collects names and shapes only.
#[derive(Default)]
pub(crate) struct Expected(pub Vec<(String, Vec<usize>)>);

impl<B: Backend> Source<B> for Expected {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        self.0.push((name.into(), shape.to_vec()));
        Ok(Tensor::zeros([1; D], &B::Device::default()))
    }
}

/// Makes random weights: normal with standard deviation `std`, norms 1, biases 0.
pub(crate) struct Fresh<'a, B: Backend> {
    pub generator: ChaCha12Rng,
    pub std: f32,
    pub device: &'a B::Device,
}

impl<B: Backend> Source<B> for Fresh<'_, B> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        let count = shape.iter().product();
        let values: Vec<f32> = if name.ends_with("norm.weight") {
            vec![1.0; count]
        } else if name.ends_with(".bias") {
            vec![0.0; count]
        } else {
            let draws = (&mut self.generator).sample_iter(StandardNormal);
            let scaled = draws.map(|x: f32| self.std * x);
            scaled.take(count).collect()
        };
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            (self.device, DType::F32),
        ))
    }
}

/// Lists all tensors that are missing, misshapen or unexpected in one error; those for which
/// `harmless` holds may be there.
pub(crate) fn check_tensors(
    checkpoint: &Checkpoint,
    harmless: impl Fn(&str) -> bool,
    expected: &[(String, Vec<usize>)],
) -> Result<(), CheckpointError> {
    let found: std::collections::BTreeMap<&str, &[usize]> = checkpoint.shapes().collect();
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match found.get(name.as_str()) {
            None => problems.push(format!("missing: {name} {shape:?}")),
            Some(other) if other != shape => {
                problems.push(format!(
                    "wrong shape: {name} is {other:?}, expected {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    for name in found.keys() {
        if !harmless(name) && !expected.iter().any(|(known, _)| known == name) {
            problems.push(format!("unexpected: {name}"));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(CheckpointError::Mismatch {
            path: checkpoint.path().into(),
            problems,
        }),
    }
}
