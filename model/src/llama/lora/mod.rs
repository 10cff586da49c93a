//! LoRA (arXiv 2106.09685): low-rank adapters of a Llama's linear layers beside frozen weights,
//! kept in PEFT's layout and names, and merged into whole models.

mod folder;
mod merge;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};

use super::config::LlamaConfig;
use super::hf::expected_tensors;
use super::transformer::{Block, Llama};
use crate::nn::{Adapter, Linear};
use crate::weights::{CheckpointError, FromCheckpoint, Source};
pub use folder::{AdapterError, AdapterFolder};
pub use merge::{Merge, Merged};

/// The linear layers of a block that can have an adapter, by their paths in it.
const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// What PEFT puts before the names of a causal language model's parameters.
const PEFT_PREFIX: &str = "base_model.model.";

/// Shape and place of the adapters, named as in PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    pub rank: usize,
    /// Divided by the rank it is the adapters' scale.
    pub alpha: f64,
    /// Last parts of the layers' names, such as `q_proj`.
    pub targets: Vec<String>,
    /// Divided by the rank's root instead (`use_rslora`).
    pub rank_stabilised: bool,
}

/// The names that [`Lora::targets`] may hold.
pub fn targets() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|module| last_part(module))
}

fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

impl Lora {
    /// What the product of both factors is multiplied with.
    pub fn scale(&self) -> f64 {
        match self.rank_stabilised {
            true => self.alpha / (self.rank as f64).sqrt(),
            false => self.alpha / self.rank as f64,
        }
    }

    /// The layers of a block with an adapter, in the order of [`MODULES`].
    fn modules(&self) -> impl Iterator<Item = &'static str> {
        let is_target = |module: &&str| self.targets.iter().any(|t| t == last_part(module));
        MODULES.into_iter().filter(is_target)
    }

    /// Paths of the layers with an adapter, `layers.N.…`, in the order of the model.
    fn layers(&self, config: &LlamaConfig) -> Vec<String> {
        (0..config.num_hidden_layers)
            .flat_map(|i| self.modules().map(move |m| format!("layers.{i}.{m}")))
            .collect()
    }
}

/// PEFT's name of a factor (`A` or `B`) of the layer at `path`, which is `layers.N.…`.
fn peft_name(path: &str, factor: char) -> String {
    format!("{PEFT_PREFIX}model.{path}.lora_{factor}.weight")
}

/// PEFT's name of the parameter at a module path, where it is an adapter's.
pub(super) fn peft_name_of_parameter(path: &str) -> Option<String> {
    let (layer, factor) = path.split_once(".adapter.lora_")?;
    Some(peft_name(layer, if factor == "a" { 'A' } else { 'B' }))
}

impl<B: Backend> Llama<B> {
    /// The model frozen, with new adapters that change nothing yet: A uniform within 1/√in, as
    /// PEFT draws it, B zero.
    pub fn with_new_adapters(self, lora: &Lora, seed: u64) -> Result<Self, CheckpointError> {
        let device = self.device();
        let mut source = NewAdapters::<B> {
            generator: ChaCha12Rng::seed_from_u64(seed),
            device: &device,
        };
        self.with_adapters(lora, &mut source)
    }

    /// The model frozen, with the adapters of a folder that was opened for it.
    pub fn with_saved_adapters(self, folder: &AdapterFolder) -> Result<Self, CheckpointError> {
        let device = self.device();
        let mut source = FromCheckpoint::<B> {
            checkpoint: &folder.weights,
            dtype: DType::F32,
            device: &device,
        };
        self.with_adapters(&folder.lora, &mut source)
    }

    fn with_adapters<S: Source<B>>(
        self,
        lora: &Lora,
        source: &mut S,
    ) -> Result<Self, CheckpointError> {
        let mut model = self.no_grad();
        for (i, block) in model.layers.iter_mut().enumerate() {
            for module in lora.modules() {
                let Some(linear) = block.linear_mut(module) else {
                    continue;
                };
                let [output, input] = linear.weight.dims();
                let name = |factor| peft_name(&format!("layers.{i}.{module}"), factor);
                linear.adapter = Some(Adapter {
                    lora_a: source.param(&name('A'), [lora.rank, input])?,
                    lora_b: source.param(&name('B'), [output, lora.rank])?,
                    scale: lora.scale(),
                });
            }
        }
        Ok(model)
    }

    /// The model with all adapters added to the weights; as it is where it has none.
    pub fn merged(mut self) -> Self {
        self.layers = self.layers.into_iter().map(Block::merged).collect();
        self
    }
}

impl<B: Backend> Block<B> {
    /// The layer at a path of [`MODULES`].
    fn linear_mut(&mut self, module: &str) -> Option<&mut Linear<B>> {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        Some(match last_part(module) {
            "q_proj" => &mut attention.q_proj,
            "k_proj" => &mut attention.k_proj,
            "v_proj" => &mut attention.v_proj,
            "o_proj" => &mut attention.o_proj,
            "gate_proj" => &mut mlp.gate_proj,
            "up_proj" => &mut mlp.up_proj,
            "down_proj" => &mut mlp.down_proj,
            _ => return None,
        })
    }

    fn merged(mut self) -> Self {
        for module in MODULES {
            if let Some(linear) = self.linear_mut(module) {
                *linear = linear.clone().merged();
            }
        }
        self
    }
}

/// Draws new adapters.
struct NewAdapters<'a, B: Backend> {
    generator: ChaCha12Rng,
    device: &'a B::Device,
}

impl<B: Backend> Source<B> for NewAdapters<'_, B> {
    fn tensor<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
    ) -> Result<Tensor<B, D>, CheckpointError> {
        let count = shape.iter().product();
        let values: Vec<f32> = if name.ends_with("lora_B.weight") {
            vec![0.0; count]
        } else {
            // Kaiming's uniform initialisation with a = √5, over `in` inputs.
            let bound = (shape[D - 1] as f64).sqrt().recip();
            let mut draw = || bound * (2.0 * self.generator.random::<f64>() - 1.0);
            (0..count).map(|_| draw() as f32).collect()
        };
        let data = TensorData::new(values, shape);
        Ok(Tensor::from_data(data, (self.device, DType::F32)))
    }
}

/// Names and shapes of all tensors of an adapter for `config`, on the layers at `paths`.
fn expected_adapter<B: Backend>(
    config: &LlamaConfig,
    rank: usize,
    paths: &[String],
) -> Result<Vec<(String, Vec<usize>)>, CheckpointError> {
    let weights = expected_tensors::<B>(config)?;
    let mut expected = Vec::new();
    for path in paths {
        let name = format!("model.{path}.weight");
        if let Some((_, shape)) = weights.iter().find(|(known, _)| *known == name) {
            let (a, b) = (peft_name(path, 'A'), peft_name(path, 'B'));
            expected.push((a, vec![rank, shape[1]]));
            expected.push((b, vec![shape[0], rank]));
        }
    }
    Ok(expected)
}
