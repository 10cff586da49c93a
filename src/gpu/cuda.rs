//! Whether a CUDA card can be used, asked of its driver: CubeCL panics in threads of its own where
//! it cannot.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use cudarc::driver::sys::CUdevice_attribute::{
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{DriverError, result};
use cudarc::nvrtc::sys as nvrtc;
use sppo_model::quiet::quietly;

/// Memory below which a card is full: the driver's context and the smallest model.
const LEAST_FREE: usize = 256 << 20;

/// What sets the kernels of one card apart from those of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// As its maker calls it.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// Of the compiler, such as (13, 0).
    pub nvrtc: (i32, i32),
}

/// Why a card cannot be used; its text says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    NoDriver,
    NoCard,
    NoSuchCard {
        number: usize,
        count: usize,
    },
    NoCompiler,
    OldDriver {
        driver: (i32, i32),
        nvrtc: (i32, i32),
    },
    /// Where headers were looked for.
    NoHeaders(Option<PathBuf>),
    NoMemory {
        number: usize,
        free: usize,
        total: usize,
    },
    /// In the driver's words.
    Other(String),
}

impl Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => f.write_str(
                "this machine has no NVIDIA driver (libcuda.so.1 cannot be loaded); install it, in a \
                 container start that with --gpus all, or use --device cpu",
            ),
            Self::NoCard => f.write_str(
                "the NVIDIA driver finds no card; see nvidia-smi and CUDA_VISIBLE_DEVICES, or use \
                 --device cpu",
            ),
            Self::NoSuchCard { number, count } => write!(
                f,
                "there is no cuda:{number}: the driver shows {count} card{}, from cuda:0 to cuda:{}; \
                 see CUDA_VISIBLE_DEVICES",
                if *count == 1 { "" } else { "s" },
                count - 1
            ),
            Self::NoCompiler => f.write_str(
                "NVRTC, which compiles kernels, cannot be loaded (libnvrtc.so); install the CUDA \
                 toolkit, or pip install nvidia-cuda-nvrtc and name its lib folder in LD_LIBRARY_PATH",
            ),
            Self::OldDriver { driver, nvrtc } => write!(
                f,
                "the NVIDIA driver knows CUDA {}.{}, but NVRTC is of CUDA {}.{}, whose kernels it \
                 cannot load; update the driver, or install NVRTC and headers of the driver's version",
                driver.0, driver.1, nvrtc.0, nvrtc.1
            ),
            Self::NoHeaders(None) => f.write_str(
                "the headers of CUDA are missing; install the CUDA toolkit, or name the folder that \
                 holds include/cuda_fp16.h in CUDA_PATH",
            ),
            Self::NoHeaders(Some(path)) => write!(
                f,
                "the headers of CUDA are missing: there is no {}; name the folder that holds \
                 include/cuda_fp16.h in CUDA_PATH",
                path.join("include/cuda_fp16.h").display()
            ),
            Self::NoMemory {
                number,
                free,
                total,
            } => write!(
                f,
                "cuda:{number} has {} MiB of its {} MiB free; see with nvidia-smi what uses it, or \
                 use another card",
                free >> 20,
                total >> 20
            ),
            Self::Other(text) => write!(f, "the NVIDIA driver fails: {text}; see nvidia-smi"),
        }
    }
}

impl From<DriverError> for Lack {
    fn from(error: DriverError) -> Self {
        match error.0 {
            CUresult::CUDA_ERROR_NO_DEVICE => Self::NoCard,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// The n-th card, if kernels can be compiled for it and run on it.
pub fn find(number: usize) -> Result<Card, Lack> {
    // cudarc panics where a library or one of its functions is missing.
    quietly(|| look(number)).unwrap_or_else(|text| Err(Lack::Other(text)))
}

fn look(number: usize) -> Result<Card, Lack> {
    // SAFETY: opens libraries of NVIDIA's and closes them.
    let (has_driver, has_compiler) =
        unsafe { (sys::is_culib_present(), nvrtc::is_culib_present()) };
    if !has_driver {
        return Err(Lack::NoDriver);
    }
    result::init()?;
    let count = result::device::get_count()?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(Lack::NoCard);
    }
    if number >= count {
        return Err(Lack::NoSuchCard { number, count });
    }
    if !has_compiler {
        return Err(Lack::NoCompiler);
    }
    let (driver, nvrtc) = (driver_version()?, nvrtc_version()?);
    if driver < nvrtc {
        return Err(Lack::OldDriver { driver, nvrtc });
    }
    headers(cubecl::cuda::install::cuda_path().as_deref())?;
    let device = result::device::get(number as i32)?;
    // SAFETY: the device is there; CubeCL retains its context, too, for as long as it is used.
    let (capability, memory) = unsafe {
        let of = |attribute| result::device::get_attribute(device, attribute);
        let capability = (of(MAJOR)?, of(MINOR)?);
        let context = result::primary_ctx::retain(device);
        let memory = context.and_then(|context| {
            result::ctx::set_current(context)?;
            result::mem_get_info()
        });
        (capability, memory)
    };
    let (free, total) = match memory {
        Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            // SAFETY: likewise.
            (0, unsafe { result::device::total_mem(device) }?)
        }
        other => other?,
    };
    match free < LEAST_FREE {
        true => Err(Lack::NoMemory {
            number,
            free,
            total,
        }),
        false => Ok(Card {
            name: result::device::get_name(device)?,
            capability,
            nvrtc,
        }),
    }
}

/// 13020 is 13.2.
fn parted(version: i32) -> (i32, i32) {
    (version / 1000, version % 1000 / 10)
}

fn driver_version() -> Result<(i32, i32), Lack> {
    let mut version = 0;
    // SAFETY: the place is ours.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    Ok(parted(version))
}

fn nvrtc_version() -> Result<(i32, i32), Lack> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the places are ours.
    let status = unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
    match status {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok((major, minor)),
        _ => Err(Lack::NoCompiler),
    }
}

fn headers(folder: Option<&Path>) -> Result<(), Lack> {
    match folder {
        Some(path) if path.join("include/cuda_fp16.h").is_file() => Ok(()),
        other => Err(Lack::NoHeaders(other.map(Into::into))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_says_what_to_do() {
        let of = |lack: Lack| lack.to_string();
        let one = of(Lack::NoSuchCard {
            number: 1,
            count: 1,
        });
        assert!(
            one.starts_with("there is no cuda:1: the driver shows 1 card, "),
            "{one}"
        );
        let two = of(Lack::NoSuchCard {
            number: 7,
            count: 2,
        });
        assert!(two.contains("2 cards, from cuda:0 to cuda:1;"), "{two}");
        let old = of(Lack::OldDriver {
            driver: parted(11040),
            nvrtc: (13, 0),
        });
        assert!(
            old.contains("knows CUDA 11.4, but NVRTC is of CUDA 13.0"),
            "{old}"
        );
        let full = of(Lack::NoMemory {
            number: 0,
            free: 100 << 20,
            total: 80 << 30,
        });
        assert!(
            full.starts_with("cuda:0 has 100 MiB of its 81920 MiB free"),
            "{full}"
        );
    }

    #[test]
    fn headers_are_looked_for() {
        assert_eq!(headers(None), Err(Lack::NoHeaders(None)));
        let folder = tempfile::tempdir().unwrap();
        let lack = headers(Some(folder.path())).unwrap_err();
        let expected = folder.path().join("include/cuda_fp16.h");
        assert!(
            lack.to_string()
                .contains(&format!("there is no {}", expected.display()))
        );
        std::fs::create_dir(folder.path().join("include")).unwrap();
        std::fs::write(expected, "").unwrap();
        assert_eq!(headers(Some(folder.path())), Ok(()));
    }
}
