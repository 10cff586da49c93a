//! Optimizers in torch's form on flat f32 tensors, and learning-rate schedules.

mod schedule;
mod update;

pub use schedule::Schedule;
pub use update::{AdamW, Optimizer, RmsProp, Sgd};
