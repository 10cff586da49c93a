//! Sampling with continuous batching and a key-value cache in slots.

mod candidates;
mod check;
mod defaults;
mod engine;
mod entering;
mod plan;
mod prefixes;
mod prompt_scores;
mod request;
pub mod sampling;
mod scores;
mod service;
mod stop;
#[cfg(test)]
mod tests;
mod worker;

pub use check::check_prompt;
pub use defaults::{GenerationDefaults, GenerationDefaultsError};
pub use engine::{Engine, EngineCounts, answer_all};
pub use plan::CachePlan;
pub use request::{
    Event, FinishReason, GenerateError, MOST_LIKELIEST, Request, RequestId, Sample, SampleId,
    TokenScore,
};
pub use sampling::SamplingParams;
pub use service::{Counts, EngineHandle, EngineQueue, EventSink, Job, NotAccepted, engine_queue};
pub use stop::TextStream;
