//! What training and generation take: sizes of batches, memory, floating-point operations.

mod batch;
pub mod flops;
pub mod memory;
mod shapes;
mod sizes;

pub use batch::Batch;
pub use shapes::published;
pub use sizes::Sizes;
