//! What a run takes before it starts: parameters, memory by part, tokens, operations and steps.

mod batch;
pub mod flops;
pub mod memory;
mod shapes;

pub use batch::Batch;
pub use shapes::published;
