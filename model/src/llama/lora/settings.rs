//! Which adapters a model has.

use super::targets::last_part;
use crate::llama::config::LlamaConfig;
use crate::llama::parameters::ParameterTable;

/// Shape and place of the adapters, named as in PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    /// Inner size of the two factors (`r`).
    pub rank: usize,
    /// Divided by the rank it is the adapters' scale.
    pub alpha: f64,
    /// Last parts of the layers' names, such as `q_proj`.
    pub targets: Vec<String>,
    /// Divided by the rank's root instead (`use_rslora`).
    pub rank_stabilised: bool,
}

impl Lora {
    /// What the product of both factors is multiplied with.
    pub fn scale(&self) -> f64 {
        match self.rank_stabilised {
            true => self.alpha / (self.rank as f64).sqrt(),
            false => self.alpha / self.rank as f64,
        }
    }

    /// The parameters of a model with these adapters.
    pub fn parameters(&self, config: &LlamaConfig) -> ParameterTable {
        ParameterTable::with_adapters(config, self.rank, |_, layer| {
            self.targets.iter().any(|target| target == last_part(layer))
        })
    }
}
