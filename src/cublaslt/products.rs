//! Products of CubeCL's tensors by cuBLASLt.
//!
//! cuBLASLt has a stream of its own, since CubeCL's are private. Before a product it waits for all
//! that was launched, and all that is launched behind the product waits for it, on the device both
//! times (CUDA 12.5). Nothing is copied: a matrix whose rows lie end to end is, column after column,
//! the turned one, and a · b is computed as (bᵀ · aᵀ)ᵀ.

use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cuda::{Cuda, CudaDevice};
use cubecl::cuda::CudaRuntime;
use sppo_model::ops::LinearProducts;
use sppo_training::cluster::world;

use super::layout::layout;
use super::library::{Library, Pointer};
use super::plan::{Element, Factor, Kind, Plan};
use crate::gpu::buffer::Buffer;
use crate::gpu::driver::Driver;
use crate::gpu::probe;
use crate::{errors, job};

type Backend = Cuda<f32, i32>;

/// Bytes that routines may use beside factors and result: what NVIDIA advises for its larger cards.
const WORKSPACE: usize = 32 << 20;

/// Plans that are kept. Batches differ in tokens, so that a long run meets ever new kinds.
const MOST_PLANS: usize = 4096;

/// What routines ask of an address at most: the bytes of a load. Where more happened to hold it would
/// only make other kinds, whose routines may round otherwise.
const MOST_ALIGNMENT: u32 = 16;

/// cuBLASLt on a card.
pub struct Products {
    library: Library,
    handle: Pointer,
    driver: Arc<Driver>,
    card: CudaDevice,
    shared: Mutex<Shared>,
}

/// What products use one after the other.
struct Shared {
    workspace: Buffer,
    plans: HashMap<Kind, Plan>,
}

// SAFETY: cuBLASLt's handle may be used from any thread.
unsafe impl Send for Products {}
// SAFETY: likewise.
unsafe impl Sync for Products {}

impl Products {
    /// Starts the library on a card.
    pub fn new(library: Library, card: &CudaDevice) -> Result<Self, String> {
        let of_driver = |error| format!("the CUDA driver: {error}");
        let driver = Driver::new(card.index).map_err(of_driver)?;
        if !driver.orders_on_device() {
            return Err(
                "the NVIDIA driver is older than CUDA 12.5 and cannot order products among CubeCL's \
                 kernels (it has no cuCtxRecordEvent); update it, or use matmul \"cubecl\""
                    .into(),
            );
        }
        let mut handle = null_mut();
        // SAFETY: the place is ours, and the card's context is this thread's.
        let status = unsafe { (library.functions.cublasLtCreate)(&mut handle) };
        library.functions.checked(status)?;
        let room = Tensor::<Backend, 1>::empty([WORKSPACE / size_of::<f32>()], card);
        let workspace = Buffer::of(room.into_primitive().tensor())?;
        Ok(Self {
            library,
            handle,
            driver: Arc::new(driver),
            card: card.clone(),
            shared: Mutex::new(Shared {
                workspace,
                plans: HashMap::new(),
            }),
        })
    }

    /// Whether small products come out right, in all the ways that layers multiply.
    pub fn check(&self) -> Result<(), String> {
        let [m, k, n] = [5, 24, 9];
        // Small whole numbers, so that their products are exact.
        let value = |i: usize| (i * 7 % 5) as f32 - 2.0;
        let matrix = |rows: usize, columns: usize, turned: bool, dtype: DType| {
            let at = |i: usize| match turned {
                false => value(i),
                true => value(i % rows * columns + i / rows),
            };
            let values: Vec<f32> = (0..rows * columns).map(at).collect();
            let shape = if turned {
                [columns, rows]
            } else {
                [rows, columns]
            };
            let data = TensorData::new(values, shape).convert_dtype(dtype);
            let made = Tensor::<Backend, 2>::from_data(data, (&self.card, dtype));
            let made = if turned { made.transpose() } else { made };
            made.into_primitive().tensor()
        };
        let expected = (0..m * n).map(|i| {
            let term = |p: usize| value(i / n * k + p) * value(p * n + i % n);
            (0..k).map(term).sum()
        });
        let expected: Vec<f32> = expected.collect();
        for (inputs, output) in [
            (DType::F32, DType::F32),
            (DType::BF16, DType::BF16),
            (DType::BF16, DType::F32),
        ] {
            for turned in [[false, false], [false, true], [true, false], [true, true]] {
                let a = matrix(m, k, turned[0], inputs);
                let b = matrix(k, n, turned[1], inputs);
                let out = self.multiply(&a, &b, output)?;
                let out = out.ok_or("it has no routine for f32 and bf16")?;
                let out = Tensor::<Backend, 2>::from_primitive(TensorPrimitive::Float(out));
                let out = out.try_into_data().map_err(|error| format!("{error:?}"))?;
                let found: Vec<f32> = out.iter::<f32>().collect();
                if std::env::var_os(probe::SKIP).is_none() && found != expected {
                    return Err(format!(
                        "it computes wrongly: a small product of {inputs:?} in {output:?} differs from \
                         the host's"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Starts a · b; `None` for tensors that it is not made for.
    fn multiply(
        &self,
        a: &CubeTensor<CudaRuntime>,
        b: &CubeTensor<CudaRuntime>,
        dtype: DType,
    ) -> Result<Option<CubeTensor<CudaRuntime>>, String> {
        let ([m, k], [_, n]) = (shape(a), shape(b));
        let (Some(inputs), Some(output)) = (element(a.dtype), element(dtype)) else {
            return Ok(None);
        };
        if a.dtype != b.dtype || m * k * n == 0 {
            return Ok(None);
        }
        let ((a, of_a), (b, of_b)) = (laid_out(a)?, laid_out(b)?);
        let (client, device) = (a.client.clone(), a.device.clone());
        let out = empty_device_contiguous_dtype(client, device, [m, n].into(), dtype);
        let [a, b, result] = [Buffer::of(a)?, Buffer::of(b)?, Buffer::of(out.clone())?];
        let of_result = Factor {
            lies: layout([m, n], [n, 1]).ok_or("its result has no layout")?.0,
            turn: false,
            alignment: alignment(result.at),
        };
        let kind = Kind {
            first: of_b(b.at),
            second: of_a(a.at),
            result: of_result,
            inputs,
            output,
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared { workspace, plans } = &mut *shared;
        self.driver.enter()?;
        if !plans.contains_key(&kind) {
            if plans.len() == MOST_PLANS {
                plans.clear();
            }
            let plan = Plan::new(&self.library.functions, self.handle, &kind, WORKSPACE)
                .map_err(|error| format!("{error}, for {kind:?}"))?;
            plans.insert(kind, plan);
        }
        self.driver.stream_waits_for_context()?;
        let places = [b.at, a.at, result.at, workspace.at];
        // SAFETY: the buffers are of those layouts. They are used anew in CubeCL's order, which waits
        // for the stream from here on; the workspace is used by this stream alone.
        unsafe {
            let functions = &self.library.functions;
            plans[&kind].start(functions, self.handle, places, self.driver.stream)?;
        }
        let past = self.driver.mark()?;
        self.driver.context_waits_for(&past)?;
        Ok(Some(out))
    }
}

impl LinearProducts<CudaRuntime> for Products {
    fn product(
        &self,
        a: &CubeTensor<CudaRuntime>,
        b: &CubeTensor<CudaRuntime>,
        dtype: DType,
    ) -> Option<CubeTensor<CudaRuntime>> {
        self.multiply(a, b, dtype).unwrap_or_else(|error| {
            // What was computed cannot be trusted, and no caller could go on.
            let error =
                anyhow::anyhow!("cuBLASLt failed: {error}; matmul \"cubecl\" does without it");
            job::say(&errors::text(&error));
            world().fail(1)
        })
    }
}

fn shape(x: &CubeTensor<CudaRuntime>) -> [usize; 2] {
    let shape = x.meta.shape();
    [shape[0], shape[1]]
}

fn element(dtype: DType) -> Option<Element> {
    match dtype {
        DType::F32 => Some(Element::F32),
        DType::BF16 => Some(Element::Bf16),
        _ => None,
    }
}

/// The largest power of two that an address is a multiple of, as far as cuBLASLt cares.
fn alignment(at: u64) -> u32 {
    1 << at.trailing_zeros().min(MOST_ALIGNMENT.ilog2())
}

/// The tensor where cuBLAS can read it, which is almost always where it lies, and what it is as a
/// factor at an address.
fn laid_out(
    x: &CubeTensor<CudaRuntime>,
) -> Result<(CubeTensor<CudaRuntime>, impl Fn(u64) -> Factor + use<>), String> {
    let strides = |x: &CubeTensor<CudaRuntime>| [x.meta.strides()[0], x.meta.strides()[1]];
    let (x, lies) = match layout(shape(x), strides(x)) {
        Some(lies) => (x.clone(), Some(lies)),
        None => {
            let x = into_contiguous(x.clone());
            let lies = layout(shape(&x), strides(&x));
            (x, lies)
        }
    };
    let (lies, turned) = lies.ok_or("a factor has no layout")?;
    let factor = move |at| Factor {
        lies,
        // cuBLAS computes the turned product.
        turn: !turned,
        alignment: alignment(at),
    };
    Ok((x, factor))
}
