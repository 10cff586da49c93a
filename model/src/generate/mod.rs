//! Batched sampling with a key-value cache.

mod batch;
mod defaults;
pub mod sampling;

pub use batch::{FinishReason, GenerateError, Request, Sample, check_requests, generate};
pub use defaults::{GenerationDefaults, GenerationDefaultsError};
pub use sampling::SamplingParams;
