//! Optimizers from their configuration, and learning-rate schedules.

mod schedule;

pub use schedule::Schedule;
pub use sppo_model::ops::{AdamW, Optimizer, RmsProp, Sgd};

use crate::config;

/// The optimizer of `[train]`.
pub fn of_train(config: &config::Train) -> Optimizer {
    let weight_decay = config.weight_decay;
    match config.optimizer {
        config::OptimizerKind::RmsProp => Optimizer::RmsProp(RmsProp {
            alpha: config.alpha,
            eps: config.eps,
            weight_decay,
        }),
        config::OptimizerKind::AdamW => Optimizer::AdamW(AdamW {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay,
        }),
        config::OptimizerKind::Sgd => Optimizer::Sgd(Sgd { weight_decay }),
    }
}

/// The optimizer of `[sft]`, with the defaults of preference training for all that it does not set.
pub fn of_sft(config: &config::Sft) -> Optimizer {
    of_train(&config::Train {
        optimizer: config.optimizer,
        ..Default::default()
    })
}
