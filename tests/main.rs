//! End-to-end tests: the golden cases on every backend that was built in, and the binary itself.

#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cli;
mod close;
#[cfg(all(unix, any(feature = "ndarray", feature = "flex")))]
mod cluster;
mod golden;
#[cfg(all(feature = "flex", any(feature = "wgpu", feature = "cuda")))]
mod kernels;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod regression;
#[cfg(all(unix, feature = "serve", any(feature = "ndarray", feature = "flex")))]
mod serve;
#[cfg(feature = "flex")]
mod theorem;
