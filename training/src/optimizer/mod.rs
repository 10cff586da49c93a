//! Optimizers in torch's form on flat f32 tensors, and learning-rate schedules.

mod host;
mod schedule;
mod update;

pub(crate) use host::sum_of_squares;
pub use schedule::Schedule;
pub use update::{AdamW, Optimizer, RmsProp, Sgd};

use crate::config;

impl From<&config::Train> for Optimizer {
    fn from(config: &config::Train) -> Self {
        let weight_decay = config.weight_decay;
        match config.optimizer {
            config::OptimizerKind::RmsProp => Self::RmsProp(RmsProp {
                alpha: config.alpha,
                eps: config.eps,
                weight_decay,
            }),
            config::OptimizerKind::AdamW => Self::AdamW(AdamW {
                beta1: config.beta1,
                beta2: config.beta2,
                eps: config.eps,
                weight_decay,
            }),
            config::OptimizerKind::Sgd => Self::Sgd(Sgd { weight_decay }),
        }
    }
}

impl From<&config::Sft> for Optimizer {
    /// With the defaults of preference training for all that `[sft]` does not set.
    fn from(config: &config::Sft) -> Self {
        Self::from(&config::Train {
            optimizer: config.optimizer,
            ..Default::default()
        })
    }
}
