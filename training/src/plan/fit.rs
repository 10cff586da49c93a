//! What other set-ups could train the same model, on cards of some sizes.

use burn::tensor::DType;
use serde::Serialize;
use sppo_model::llama::LlamaConfig;

use super::rows::{Rows, most_that};
use crate::config::{Config, Recompute};
use crate::cost::memory::Training;
use crate::optimizer;

/// Cards by what they are sold as, and their memory in MiB as drivers report it.
const CARDS: [(&str, u64); 3] = [("24 GB", 24_564), ("80 GB", 81_559), ("141 GB", 143_771)];

/// What the driver and kernels take of a card, in MiB.
pub(super) const DRIVER: u64 = 1024;

/// Pairs of the longest kind that a card trains at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// What is trained and on how many cards, in words.
    pub set_up: String,
    /// Memory that the card is sold with, like `80 GB`.
    pub card: &'static str,
    /// Of one pair at a time.
    pub least_bytes: u64,
    /// At most the configuration's batch; 0 where not even one fits.
    pub pairs_at_a_time: usize,
}

/// Full training and adapters in bf16 with layers recomputed, on one card and spread over eight.
pub(super) fn elsewhere(config: &Config, model: &LlamaConfig, rows: &Rows) -> Vec<Fit> {
    let train = &config.train;
    let full = Training {
        config: model.clone(),
        dtype: DType::BF16,
        recompute: Recompute::Layer,
        optimizer_slots: optimizer::of_train(train).slots(),
        lora: None,
        accumulates: true,
        host: false,
        card: None,
        ranks: 1,
        ordered: false,
    };
    let lora = train.lora.clone().unwrap_or_default();
    let adapters = Training {
        lora: Some((&lora).into()),
        ..full.clone()
    };
    let spread = Training {
        ranks: 8,
        ..full.clone()
    };
    let set_ups = [
        ("all weights, 1 card".to_string(), full),
        (format!("LoRA of rank {}, 1 card", lora.rank), adapters),
        (
            "all weights, masters, optimizer and gradients spread over 8 cards".into(),
            spread,
        ),
    ];
    let mut fits = Vec::new();
    for (set_up, training) in set_ups {
        for (card, mib) in CARDS {
            let training = Training {
                card: Some(mib << 20),
                ..training.clone()
            };
            let peak = |pairs: usize| training.memory(&rows.largest(pairs)).peak;
            let holds = |pairs| peak(pairs) <= (mib - DRIVER) << 20;
            fits.push(Fit {
                set_up: set_up.clone(),
                card,
                least_bytes: peak(1),
                pairs_at_a_time: most_that(train.batch_size, holds),
            });
        }
    }
    fits
}
