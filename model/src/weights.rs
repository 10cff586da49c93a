//! Building a model from a list of named tensors, out of a checkpoint or at random.

use std::collections::{BTreeMap, VecDeque};

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::RngExt;
use rand::rngs::ChaCha12Rng;
use rand_distr::StandardNormal;

use crate::checkpoint::Checkpoint;
use crate::load_error::CheckpointError;
use crate::nn::Linear;

/// Where a model under construction gets its tensors from.
pub(crate) trait TensorSource {
    /// The values of one tensor, in the dtype that it is to have.
    fn load(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, CheckpointError>;
}

/// Reads a checkpoint whose tensors were checked.
pub(crate) struct FromCheckpoint<'a> {
    pub checkpoint: &'a Checkpoint,
    pub dtype: DType,
}

impl TensorSource for FromCheckpoint<'_> {
    fn load(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, CheckpointError> {
        // Presence and shape were checked for the whole checkpoint before.
        let found = self.checkpoint.load(name, self.dtype)?;
        found.ok_or_else(|| CheckpointError::Mismatch {
            path: self.checkpoint.path().into(),
            problems: vec![format!("missing: {name} {shape:?}")],
        })
    }
}

/// Makes random weights: normal with standard deviation `std`, norms 1, biases 0.
pub(crate) struct Fresh {
    pub generator: ChaCha12Rng,
    pub std: f32,
}

impl TensorSource for Fresh {
    fn load(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, CheckpointError> {
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
        Ok(TensorData::new(values, shape.to_vec()))
    }
}

/// Names and shapes of tensors, in the order in which a model takes them.
pub(crate) type NamesAndShapes = Vec<(String, Vec<usize>)>;

/// Hands the tensors of a list to a model under construction, one after the other.
pub(crate) struct TensorReader<'a, B: Backend, S> {
    left: VecDeque<(&'a str, &'a [usize])>,
    source: S,
    device: &'a B::Device,
}

impl<'a, B: Backend, S: TensorSource> TensorReader<'a, B, S> {
    /// Reads `list` from `source`.
    pub fn new(
        list: impl IntoIterator<Item = (&'a str, &'a [usize])>,
        source: S,
        device: &'a B::Device,
    ) -> Self {
        Self {
            left: list.into_iter().collect(),
            source,
            device,
        }
    }

    /// The next tensor.
    pub fn tensor<const D: usize>(&mut self) -> Result<Tensor<B, D>, CheckpointError> {
        let (name, shape) = self.left.pop_front().unwrap_or(("", &[]));
        debug_assert_eq!(shape.len(), D, "{name}");
        let data = self.source.load(name, shape)?;
        let dtype = data.dtype;
        Ok(Tensor::from_data(data, (self.device, dtype)))
    }

    /// The next tensor as a parameter.
    pub fn param<const D: usize>(&mut self) -> Result<Param<Tensor<B, D>>, CheckpointError> {
        Ok(Param::from_tensor(self.tensor()?))
    }

    /// The next tensors as a linear layer, with a bias where one follows.
    pub fn linear(&mut self) -> Result<Linear<B>, CheckpointError> {
        let weight = self.param()?;
        let next = self.left.front().map(|(name, _)| *name);
        let bias = next.is_some_and(|name| name.ends_with(".bias"));
        Ok(Linear {
            weight,
            bias: bias.then(|| self.param()).transpose()?,
            packed: None,
            adapter: None,
        })
    }
}

/// Lists all tensors that are missing, misshapen or unexpected in one error; those for which
/// `harmless` holds may be there.
pub(crate) fn check_tensors<'a>(
    checkpoint: &Checkpoint,
    harmless: impl Fn(&str) -> bool,
    expected: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<(), CheckpointError> {
    let mut found: BTreeMap<&str, &[usize]> = checkpoint.shapes().collect();
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match found.remove(name) {
            None => problems.push(format!("missing: {name} {shape:?}")),
            Some(other) if other != shape => {
                problems.push(format!(
                    "wrong shape: {name} is {other:?}, expected {shape:?}"
                ));
            }
            Some(_) => {}
        }
    }
    let unexpected = found.keys().filter(|name| !harmless(name));
    problems.extend(unexpected.map(|name| format!("unexpected: {name}")));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(CheckpointError::Mismatch {
            path: checkpoint.path().into(),
            problems,
        }),
    }
}
