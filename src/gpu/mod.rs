//! GPUs before Burn has them: whether one can be used, and where its compiled kernels are kept.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod kernel_cache;
pub mod probe;
#[cfg(feature = "wgpu")]
pub mod vulkan;
