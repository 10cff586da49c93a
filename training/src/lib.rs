//! Self-Play Preference Optimization (arXiv 2405.00675) on Burn: data, judges, preference,
//! losses, optimizers, the learner, the trainer and the self-play loop.

#![warn(missing_docs)]

pub mod card;
pub mod cluster;
pub mod config;
pub mod cost;
pub mod data;
pub mod evaluation;
pub mod files;
pub mod hub;
pub mod judge;
pub mod learner;
pub mod loss;
pub mod monitor;
pub mod optimizer;
pub mod plan;
pub mod preference;
pub mod self_play;
pub mod shown;
pub mod stages;
pub mod tensorboard;
pub mod tokenise;
pub mod trainer;
