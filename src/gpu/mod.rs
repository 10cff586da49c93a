//! GPUs before Burn has them: whether one can be used, where its compiled
//! kernels are kept, and what they take.

#[cfg(feature = "cuda")]
pub mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
pub mod driver;
pub mod kernel_cache;
pub mod kernel_times;
pub mod probe;
#[cfg(any(feature = "wgpu", test))]
#[cfg_attr(
    not(feature = "wgpu"),
    allow(dead_code, reason = "tested in CUDA's build")
)]
pub mod vulkan;
