//! Outputs of the reference implementations (tests/fixtures/golden), on every backend.

#[cfg(any(feature = "flex", feature = "cuda"))]
mod bf16;
mod learning;
pub(crate) mod llama;
mod lora;
mod pairrm;
pub mod reward;
mod steps;

use std::path::PathBuf;

use serde_json::Value;

/// A file of the golden cases.
pub fn path(name: &str) -> PathBuf {
    // At run time, too: scripts/gpu.sh runs this binary on another machine.
    let root = std::env::var_os("CARGO_MANIFEST_DIR");
    PathBuf::from(root.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()))
        .join("tests/fixtures/golden")
        .join(name)
}

/// A golden JSON file.
pub fn json(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

/// The numbers of a JSON list.
pub fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The token ids of a JSON list.
pub fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

/// One test per backend that was built in; `$case` is generic over the backend.
#[macro_export]
macro_rules! on_every_backend {
    ($($case:ident),* $(,)?) => {
        #[cfg(feature = "ndarray")]
        mod ndarray {
            type Backend = burn_ndarray::NdArray<f32, i64, i8>;
            $(#[test] fn $case() { super::$case::<Backend>(&Default::default()); })*
        }
        #[cfg(feature = "flex")]
        mod flex {
            type Backend = burn_flex::Flex<f32, i32>;
            $(#[test] fn $case() { super::$case::<Backend>(&Default::default()); })*
        }
        #[cfg(feature = "wgpu")]
        mod wgpu {
            type Backend = burn_wgpu::Wgpu<f32, i32, u32>;
            $(#[test] fn $case() { super::$case::<Backend>(&Default::default()); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            type Backend = burn_cuda::Cuda<f32, i32>;
            $(#[test] #[ignore = "needs a GPU"] fn $case() {
                super::$case::<Backend>(&Default::default());
            })*
        }
    };
}

/// The same on the backends that have bf16.
#[macro_export]
macro_rules! on_bf16_backends {
    ($($case:ident),* $(,)?) => {
        #[cfg(feature = "flex")]
        mod flex {
            type Backend = burn_flex::Flex<f32, i32>;
            $(#[test] fn $case() { super::$case::<Backend>(&Default::default()); })*
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            type Backend = burn_cuda::Cuda<f32, i32>;
            $(#[test] #[ignore = "needs a GPU"] fn $case() {
                super::$case::<Backend>(&Default::default());
            })*
        }
    };
}
