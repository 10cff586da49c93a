//! Numbers of parameters, summed up from the model's table of them.

use sppo_model::llama::{Group, Kind, LlamaConfig, Lora, Parameter, ParameterTable};

/// Numbers of parameters of a Llama by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    layers: u64,
    /// Of one block, adapters aside.
    pub block: u64,
    /// Of one block's linear layers, biases aside.
    pub linear: u64,
    /// Of one block's adapters.
    pub block_adapters: u64,
    /// Widths of the inputs of one block's adapters, together.
    pub adapter_inputs: u64,
    /// Of the embeddings, or of the projection on the vocabulary.
    pub vocabulary: u64,
    /// Of what is outside of blocks.
    outside: u64,
}

impl Sizes {
    /// Of a model, with adapters where `lora` names some.
    pub fn of(config: &LlamaConfig, lora: Option<&Lora>) -> Self {
        // All blocks are alike, so one tells.
        let one = LlamaConfig {
            num_hidden_layers: config.num_hidden_layers.min(1),
            ..config.clone()
        };
        let table = match lora {
            None => ParameterTable::new(&one),
            Some(lora) => lora.parameters(&one),
        };
        let sum = |holds: &dyn Fn(&Parameter) -> bool| -> u64 {
            let found = table.all().iter().filter(|p| holds(p));
            found.map(|p| p.range.len() as u64).sum()
        };
        let in_block = |p: &Parameter| p.group == Group::Block(0);
        let inputs = table.all().iter().filter(|p| p.kind == Kind::AdapterA);
        Self {
            layers: config.num_hidden_layers as u64,
            block: sum(&|p| in_block(p) && !p.is_adapter()),
            linear: sum(&|p| in_block(p) && p.kind == Kind::Weight),
            block_adapters: sum(&|p| p.is_adapter()),
            adapter_inputs: inputs.map(|p| p.shape[1] as u64).sum(),
            vocabulary: sum(&|p| p.kind == Kind::Embedding),
            outside: sum(&|p| !in_block(p)),
        }
    }

    /// Of the model, adapters aside.
    pub fn weights(&self) -> u64 {
        self.layers * self.block + self.outside
    }

    /// The groups whose gradients are complete at the same time, as (how many alike, trained
    /// parameters of one): embeddings, blocks, head.
    pub fn groups(&self) -> [(u64, u64); 3] {
        match self.block_adapters {
            0 => [
                (1, self.vocabulary),
                (self.layers, self.block),
                (1, self.outside - self.vocabulary),
            ],
            adapters => [(0, 0), (self.layers, adapters), (0, 0)],
        }
    }

    /// Of all adapters.
    pub fn adapters(&self) -> u64 {
        self.layers * self.block_adapters
    }
}
