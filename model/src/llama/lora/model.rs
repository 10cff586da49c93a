//! A Llama with adapters, and without them again.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{DType, TensorData, backend::Backend};
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};

use super::folder::AdapterFolder;
use super::settings::Lora;
use crate::llama::block::Block;
use crate::llama::config::LlamaConfig;
use crate::llama::model::Llama;
use crate::llama::parameters::{Group, LINEAR_LAYERS, ParameterTable};
use crate::load_error::CheckpointError;
use crate::nn::{Adapter, Linear};
use crate::weights::{FromCheckpoint, TensorReader, TensorSource};

impl<B: Backend> Llama<B> {
    /// The model frozen, with new adapters that change nothing yet: A uniform within 1/√in, as
    /// PEFT draws it, B zero.
    pub fn with_new_adapters(
        self,
        config: &LlamaConfig,
        lora: &Lora,
        seed: u64,
    ) -> Result<Self, CheckpointError> {
        let source = NewAdapters(ChaCha12Rng::seed_from_u64(seed));
        self.with_adapters(lora.parameters(config), lora.scale(), source)
    }

    /// The model frozen, with the adapters of a folder that was opened for it.
    pub fn with_saved_adapters(self, folder: &AdapterFolder) -> Result<Self, CheckpointError> {
        let source = FromCheckpoint {
            checkpoint: &folder.weights,
            dtype: DType::F32,
        };
        self.with_adapters(folder.parameters.clone(), folder.lora.scale(), source)
    }

    fn with_adapters(
        self,
        parameters: ParameterTable,
        scale: f64,
        source: impl TensorSource,
    ) -> Result<Self, CheckpointError> {
        let device = self.device();
        let mut model = self.no_grad();
        let adapters: Vec<_> = parameters.all().iter().filter(|p| p.is_adapter()).collect();
        let list = adapters.iter().map(|p| p.name_and_shape());
        let mut reader = TensorReader::<B, _>::new(list, source, &device);
        for pair in adapters.chunks_exact(2) {
            let adapter = Adapter {
                lora_a: reader.param()?,
                lora_b: reader.param()?,
                scale,
            };
            if let (Group::Block(block), Some(layer)) = (pair[0].group, pair[0].layer)
                && let Some(linear) = model.layers[block].linear_mut(layer)
            {
                linear.adapter = Some(adapter);
            }
        }
        model.parameters = Arc::new(parameters);
        Ok(model)
    }

    /// The model with all adapters added to the weights; as it is where it has none.
    pub fn merged(mut self) -> Self {
        self.layers = self.layers.into_iter().map(Block::merged).collect();
        self.parameters = Arc::new(self.parameters.merged());
        self
    }
}

impl<B: Backend> Block<B> {
    /// The layer at a path of [`LINEAR_LAYERS`].
    fn linear_mut(&mut self, path: &str) -> Option<&mut Linear<B>> {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        Some(match path {
            "self_attn.q_proj" => &mut attention.q_proj,
            "self_attn.k_proj" => &mut attention.k_proj,
            "self_attn.v_proj" => &mut attention.v_proj,
            "self_attn.o_proj" => &mut attention.o_proj,
            "mlp.gate_proj" => &mut mlp.gate_proj,
            "mlp.up_proj" => &mut mlp.up_proj,
            "mlp.down_proj" => &mut mlp.down_proj,
            _ => return None,
        })
    }

    fn merged(mut self) -> Self {
        for path in LINEAR_LAYERS {
            if let Some(linear) = self.linear_mut(path) {
                *linear = linear.clone().merged();
            }
        }
        self
    }
}

/// Draws new adapters.
struct NewAdapters(ChaCha12Rng);

impl TensorSource for NewAdapters {
    fn load(&mut self, name: &str, shape: &[usize]) -> Result<TensorData, CheckpointError> {
        let count = shape.iter().product();
        let values: Vec<f32> = if name.ends_with("lora_B.weight") {
            vec![0.0; count]
        } else {
            // Kaiming's uniform initialisation with a = √5, over `in` inputs.
            let inputs = shape.last().map_or(1.0, |&inputs| inputs as f64);
            let bound = inputs.sqrt().recip();
            let mut draw = || bound * (2.0 * self.0.random::<f64>() - 1.0);
            (0..count).map(|_| draw() as f32).collect()
        };
        Ok(TensorData::new(values, shape.to_vec()))
    }
}
