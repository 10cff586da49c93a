//! What a training step takes at least on one card: products by their operations, the rest by memory.

use serde::Serialize;

use super::ranks::Job;
use crate::cost::{flops, traffic};

/// Parts of nominal rates that good kernels reach.
const PRODUCTS: f64 = 0.7;
const MEMORY: f64 = 0.8;

/// A step's least time on one card, and what it assumes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// Part of the card's nominal rate that matrix products are taken to reach.
    pub products_reach: f64,
    /// Part of the nominal rate at which other kernels are taken to read and write its memory.
    pub memory_reach: f64,
    /// Operations of a step's products, those of layers that are computed again included.
    pub product_flops: f64,
    /// Bytes that a step's other kernels read and write, each buffer of a launch once.
    pub other_bytes: f64,
    /// The two after each other; launches, copies and waits aside.
    pub step_seconds: f64,
    /// The step's model FLOPs over what the card could compute meanwhile (MFU).
    pub mfu: f64,
}

impl Job<'_> {
    /// Of a step whose parts are of the usual length.
    pub(super) fn roofline(&self) -> Roofline {
        let card = self.card(1);
        let parts = self.pairs_per_step().div_ceil(self.pairs_at_a_time);
        let batch = self.rows.usual(self.pairs_at_a_time);
        let work = traffic::step(self.training, &batch, parts);
        let peak = card.tflops * 1e12;
        let products = work.flops / (PRODUCTS * peak);
        let others = work.bytes / (MEMORY * card.memory_gbs * 1e9);
        let lora = self.training.lora.as_ref();
        let model = flops::training(&self.training.config, lora, &batch) * parts as f64;
        Roofline {
            products_reach: PRODUCTS,
            memory_reach: MEMORY,
            product_flops: work.flops,
            other_bytes: work.bytes,
            step_seconds: products + others,
            mfu: model / peak / (products + others),
        }
    }
}
