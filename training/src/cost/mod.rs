//! What training and generation take: sizes of batches, memory, floating-point operations.

mod batch;
pub mod flops;
mod gpu;
pub mod memory;
mod pool;
mod shapes;
mod sizes;
pub mod traffic;

pub use batch::Batch;
pub use shapes::published;
pub use sizes::Sizes;
