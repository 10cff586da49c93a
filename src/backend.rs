//! Choice of the Burn backend: the only file that names concrete ones.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use burn_autodiff::Autodiff;
use sppo_model::ops::TrainingOps;
use sppo_training::config::{Cluster, Matmul};

use crate::cublaslt;
use crate::errors::user;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::gpu::{kernel_cache, kernel_times, probe};
use crate::nccl;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::output;
use crate::profile;

/// Every device name, whether this build has it or not.
const NAMES: [&str; 5] = ["cpu", "flex", "ndarray", "wgpu", "cuda"];

/// A device that this build has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Burn's Flex CPU backend.
    #[cfg(feature = "flex")]
    Flex,
    /// The ndarray CPU backend.
    #[cfg(feature = "ndarray")]
    NdArray,
    /// Vulkan through wgpu: the n-th discrete GPU, or whichever wgpu thinks best.
    #[cfg(feature = "wgpu")]
    Wgpu(Option<usize>),
    /// The n-th CUDA device, or the first; of many processes each has one of its own.
    #[cfg(feature = "cuda")]
    Cuda(Option<usize>),
}

/// Generic code that runs on whichever backend was chosen.
pub trait WithBackend {
    /// What it gives back.
    type Output;
    /// Runs on a backend and one of its devices.
    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output;
}

/// Parts a device's name from its number.
fn parse(text: &str) -> anyhow::Result<(&str, Option<usize>)> {
    match text.split_once(':') {
        None if NAMES.contains(&text) => Ok((text, None)),
        Some((name @ ("wgpu" | "cuda"), index)) => match index.parse::<usize>() {
            Ok(number) => Ok((name, Some(number))),
            Err(_) => Err(user(format!(
                "device {text:?}: {index:?} is not the number of a device; \
                 write {name} or {name}:0"
            ))),
        },
        Some((name, _)) if NAMES.contains(&name) => {
            Err(user(format!("device {text:?}: {name} takes no number")))
        }
        _ => Err(user(format!(
            "unknown device {text:?}; write cpu, flex, ndarray, wgpu, wgpu:N, cuda or cuda:N"
        ))),
    }
}

impl FromStr for Device {
    type Err = anyhow::Error;

    /// Reads `cpu | flex | ndarray | wgpu[:N] | cuda[:N]`; a `UserError` otherwise.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, index) = parse(text)?;
        Self::named(name, index)
    }
}

impl Device {
    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        expect(unused_variables, reason = "only GPUs are numbered")
    )]
    fn named(name: &str, index: Option<usize>) -> anyhow::Result<Self> {
        match name {
            #[cfg(feature = "flex")]
            "cpu" | "flex" => Ok(Self::Flex),
            #[cfg(all(feature = "ndarray", not(feature = "flex")))]
            "cpu" => Ok(Self::NdArray),
            #[cfg(feature = "ndarray")]
            "ndarray" => Ok(Self::NdArray),
            #[cfg(feature = "wgpu")]
            "wgpu" => Ok(Self::Wgpu(index)),
            #[cfg(feature = "cuda")]
            "cuda" => Ok(Self::Cuda(index)),
            lacking => {
                let feature = if lacking == "cpu" { "flex" } else { lacking };
                Err(user(format!(
                    "this build has no device {lacking:?}; build it with the cargo feature: \
                     cargo build --release --features {feature}"
                )))
            }
        }
    }

    /// Whether a device's name means the CPU, whatever this build has.
    pub fn is_cpu_name(text: &str) -> anyhow::Result<bool> {
        let (name, _) = parse(text)?;
        Ok(!matches!(name, "wgpu" | "cuda"))
    }

    /// Its name without a number.
    pub fn kind(self) -> &'static str {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => "flex",
            #[cfg(feature = "ndarray")]
            Self::NdArray => "ndarray",
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => "wgpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
        }
    }

    /// The number that was asked for.
    pub fn number(self) -> Option<usize> {
        match self {
            #[cfg(feature = "wgpu")]
            Self::Wgpu(number) => number,
            #[cfg(feature = "cuda")]
            Self::Cuda(number) => number,
            #[cfg(any(feature = "flex", feature = "ndarray"))]
            _ => None,
        }
    }

    /// The same kind with this number, where it has numbers.
    pub fn with_number(self, number: usize) -> Self {
        match self {
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => Self::Wgpu(Some(number)),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => Self::Cuda(Some(number)),
            #[cfg(any(feature = "flex", feature = "ndarray"))]
            cpu => {
                let _ = number;
                cpu
            }
        }
    }

    /// Whether weights and activations may be bf16 here.
    pub fn has_bf16(self) -> bool {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => true,
            #[cfg(feature = "ndarray")]
            Self::NdArray => false,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => false,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => true,
        }
    }
}

/// The CUDA cards that this process sees, by UUID.
#[cfg(feature = "cuda")]
pub fn cuda_cards() -> Result<Vec<String>, String> {
    use cudarc::driver::{DriverError, result};
    let ask = || -> Result<Vec<String>, DriverError> {
        result::init()?;
        let uuid = |number| {
            let uuid = result::device::get_uuid(result::device::get(number)?)?;
            let bytes = uuid.bytes.iter();
            Ok(bytes.map(|byte| format!("{byte:02x}")).collect())
        };
        (0..result::device::get_count()?).map(uuid).collect()
    };
    // It panics where there is no driver.
    sppo_model::quiet::quietly(ask)?.map_err(|error| error.to_string())
}

/// The CUDA cards that this process sees; this build knows none.
#[cfg(not(feature = "cuda"))]
pub fn cuda_cards() -> Result<Vec<String>, String> {
    Err("this build has no CUDA".into())
}

/// Runs the action on the device, linear layers by the library that `matmul` names; a `UserError`
/// where the machine lacks either.
pub fn dispatch<A: WithBackend>(
    device: Device,
    matmul: Matmul,
    action: A,
) -> anyhow::Result<A::Output> {
    if device.kind() != "cuda" {
        cublaslt::refuse(matmul)?;
    }
    match device {
        #[cfg(feature = "flex")]
        Device::Flex => {
            profile::refuse()?;
            Ok(action.run::<Autodiff<burn_flex::Flex<f32, i32>>>(Default::default()))
        }
        #[cfg(feature = "ndarray")]
        Device::NdArray => {
            profile::refuse()?;
            Ok(action.run::<Autodiff<burn_ndarray::NdArray<f32, i64, i8>>>(Default::default()))
        }
        #[cfg(feature = "wgpu")]
        Device::Wgpu(index) => {
            use burn_wgpu::{Wgpu, WgpuDevice};
            use cubecl::wgpu::WgpuRuntime;

            use crate::gpu::vulkan;

            // CubeCL's key of a kernel holds the adapter; its choices do not, but for their number.
            let kept = kernel_cache::For {
                target: "vulkan".into(),
                card: index.map_or("default".into(), |number| number.to_string()),
            };
            configure(&kept, false)?;
            let place = index.map_or(WgpuDevice::DefaultDevice, WgpuDevice::DiscreteGpu);
            try_out::<WgpuRuntime>(&place).map_err(|failed| {
                let lack = vulkan::lack(index, &failed);
                user(lack.unwrap_or_else(|| unusable("wgpu", index, &failed)))
            })?;
            let out = action.run::<Autodiff<Wgpu<f32, i32, u32>>>(place.clone());
            print_kernels::<WgpuRuntime>(&place)?;
            Ok(out)
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            use cubecl::cuda::CudaRuntime;

            use crate::gpu::cuda;

            let number = index.unwrap_or(0);
            let card = cuda::find(number).map_err(|lack| user(lack.to_string()))?;
            let ((major, minor), nvrtc) = (card.capability, card.nvrtc);
            let kept = kernel_cache::For {
                target: format!("sm_{major}{minor}-nvrtc-{}.{}", nvrtc.0, nvrtc.1),
                card: card.name,
            };
            configure(&kept, true)?;
            let place = burn_cuda::CudaDevice::new(number);
            try_out::<CudaRuntime>(&place)
                .map_err(|failed| user(unusable("cuda", index, &failed)))?;
            cublaslt::enable(matmul, &place)?;
            let out = action.run::<Autodiff<burn_cuda::Cuda<f32, i32>>>(place.clone());
            print_kernels::<CudaRuntime>(&place)?;
            Ok(out)
        }
    }
}

/// Settles how CubeCL works in this process, before its first use: what is kept of its kernels and
/// whether they are timed (`tell_apart`: see [`kernel_times::enable`]).
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn configure(kept: &kernel_cache::For, tell_apart: bool) -> anyhow::Result<()> {
    use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

    static CONFIGURED: OnceLock<()> = OnceLock::new();
    let timed = profile::wanted()?;
    CONFIGURED.get_or_init(|| {
        let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
        kernel_cache::enable(&mut config, kept);
        if timed {
            kernel_times::enable(&mut config, tell_apart);
        }
        CubeClRuntimeConfig::set(config);
    });
    Ok(())
}

/// Prints the times of the kernels, where they are wanted.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn print_kernels<R: cubecl::Runtime>(device: &R::Device) -> anyhow::Result<()> {
    match profile::wanted()? {
        true => output::print(&kernel_times::table::<R>(device)),
        false => Ok(()),
    }
}

/// Runs an action that trains, as one rank of many: their cards are connected first, where that is
/// wanted.
pub fn dispatch_connected<A: WithBackend>(
    device: Device,
    cluster: &Cluster,
    matmul: Matmul,
    action: A,
) -> anyhow::Result<A::Output> {
    #[cfg(feature = "cuda")]
    if matches!(device, Device::Cuda(_)) {
        return dispatch(device, matmul, Connected(cluster, action))?;
    }
    nccl::refuse(cluster)?;
    dispatch(device, matmul, action)
}

/// Connects the cards before the action.
#[cfg(feature = "cuda")]
struct Connected<'a, A>(&'a Cluster, A);

#[cfg(feature = "cuda")]
impl<A: WithBackend> WithBackend for Connected<'_, A> {
    type Output = anyhow::Result<A::Output>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        let any: &dyn std::any::Any = &device;
        if let Some(card) = any.downcast_ref() {
            nccl::connect(self.0, card)?;
        }
        Ok(self.1.run::<B>(device))
    }
}

/// Asks the device's allocator how many bytes it holds.
type AskMemory = Box<dyn Fn() -> Option<u64> + Send + Sync>;

static ASK_MEMORY: OnceLock<AskMemory> = OnceLock::new();

/// The most bytes that the device's allocator was seen to hold; `None` on a CPU. To be asked from
/// the thread that computes, since allocators are kept by thread.
pub fn device_memory_bytes() -> Option<u64> {
    static MOST: AtomicU64 = AtomicU64::new(0);
    let now = ASK_MEMORY.get()?()?;
    Some(MOST.fetch_max(now, Ordering::Relaxed).max(now))
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn watch_memory<R: cubecl::Runtime>(device: &R::Device) {
    let client = R::client(device);
    let ask = move || Some(client.memory_usage().ok()?.bytes_reserved);
    // A process has one device.
    let _ = ASK_MEMORY.set(Box::new(ask));
}

/// Tries the device first, and watches its memory from then on; says what failed. The GPU runtimes
/// panic in threads of their own where they cannot have it: no thread's panic is shown meanwhile.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn try_out<R: cubecl::Runtime>(device: &R::Device) -> Result<(), String> {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::{Arc, Mutex, PoisonError};

    // The first panic says why; those of whoever waited for that thread do not.
    let first = Arc::new(Mutex::new(None::<String>));
    let hook = std::panic::take_hook();
    let keeper = first.clone();
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload_as_str().unwrap_or("its driver failed");
        let mut first = keeper.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| text.trim().to_owned());
    }));
    let tried = catch_unwind(AssertUnwindSafe(|| probe::computes::<R>(device)));
    std::panic::set_hook(hook);
    let panicked = first.lock().unwrap_or_else(PoisonError::into_inner).take();
    match tried {
        Ok(Ok(())) => {
            watch_memory::<R>(device);
            Ok(())
        }
        Ok(Err(message)) => Err(panicked.unwrap_or(message)),
        Err(_) => Err(panicked.unwrap_or_default()),
    }
}

/// What failed on a device that is there, in the words of whoever failed.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn unusable(kind: &str, index: Option<usize>, failed: &str) -> String {
    let number = index.map(|number| format!(":{number}")).unwrap_or_default();
    // A backtrace or a kernel's source may follow.
    let failed = failed.lines().next().unwrap_or_default();
    format!("{kind}{number} cannot be used: {failed}; look after its driver, or use --device cpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> String {
        match text.parse::<Device>() {
            Ok(device) => format!("accepted as {device:?}"),
            Err(error) => {
                assert_eq!(crate::errors::exit_code(&error), 2);
                error.to_string()
            }
        }
    }

    #[test]
    fn devices_that_are_none() {
        assert!(message("tpu").starts_with("unknown device \"tpu\"; write cpu,"));
        assert!(message("tpu:1").starts_with("unknown device \"tpu:1\""));
        assert!(message("").starts_with("unknown device"));
        assert_eq!(message("cpu:0"), "device \"cpu:0\": cpu takes no number");
        assert!(message("cuda:x").contains("\"x\" is not the number of a device"));
        assert!(message("wgpu:-1").contains("write wgpu or wgpu:0"));
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_the_build_lacks_names_the_feature() {
        let expected = "this build has no device \"cuda\"; build it with the cargo feature: \
                        cargo build --release --features cuda";
        assert_eq!(message("cuda:1"), expected);
    }

    #[test]
    #[cfg(feature = "flex")]
    fn cpu_is_the_faster_backend() {
        assert_eq!("cpu".parse::<Device>().unwrap(), Device::Flex);
    }

    #[test]
    #[cfg(any(feature = "flex", feature = "ndarray"))]
    fn the_cpu_runs() {
        use burn::tensor::{ElementConversion, Tensor};

        struct Sum;
        impl WithBackend for Sum {
            type Output = f32;
            fn run<B: TrainingOps>(self, device: B::Device) -> f32 {
                let ones = Tensor::<B, 1>::ones([3], &device);
                ones.sum().into_scalar().elem()
            }
        }
        let device: Device = "cpu".parse().unwrap();
        assert_eq!(dispatch(device, Matmul::Auto, Sum).unwrap(), 3.0);
    }
}
