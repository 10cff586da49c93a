//! Matrix products: CubeCL's, and for linear layers another library's where the program found one.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

/// The product of two (batches of) matrices, into `out` where that is given.
///
/// On a device with matrix units the fastest of some routines is sought, once for each kind of
/// shapes. One without gets the routine for such devices at once: there are few, and on the software
/// GPUs that have none each trial compiles for seconds.
pub(super) fn product<R: CubeRuntime>(
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    out: Option<CubeTensor<R>>,
    dtype: DType,
) -> CubeTensor<R> {
    let features = &a.client.properties().features.matmul;
    let strategy = match features.cmma.is_empty() && features.mma.is_empty() {
        true => MatmulStrategy::Cube,
        false => MatmulStrategy::Autotune,
    };
    // A routine that takes all shapes is among them.
    matmul(a, b, out, strategy, dtype).expect("a matrix product that fits")
}

/// Another library than CubeCL, for the products of linear layers.
pub trait LinearProducts<R: CubeRuntime>: Send + Sync {
    /// `a · b`, `[m, k]` and `[k, n]` with any strides → `[m, n]` in `dtype`, added up in f32. `None`
    /// where the library does not multiply such tensors.
    fn product(&self, a: &CubeTensor<R>, b: &CubeTensor<R>, dtype: DType) -> Option<CubeTensor<R>>;
}

static LINEAR: OnceLock<Box<dyn Any + Send + Sync>> = OnceLock::new();

/// Lets linear layers on devices of `R` multiply by this library from now on.
///
/// For the whole process, which has one device: operations are functions of the backend's type, and
/// a tensor brings nothing along but its device.
pub fn use_linear_products<R: CubeRuntime>(library: Arc<dyn LinearProducts<R>>) {
    let _ = LINEAR.set(Box::new(library));
}

/// The library that linear layers on devices of `R` multiply by; CubeCL where there is none.
pub fn linear_products<R: CubeRuntime>() -> Option<&'static dyn LinearProducts<R>> {
    let any = LINEAR.get()?;
    let library = any.downcast_ref::<Arc<dyn LinearProducts<R>>>()?;
    Some(&**library)
}

/// The product of a linear layer, `[m, k] · [k, n]`.
pub(super) fn linear_product<R: CubeRuntime>(
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    dtype: DType,
) -> CubeTensor<R> {
    let by_library = linear_products::<R>().and_then(|library| library.product(&a, &b, dtype));
    by_library.unwrap_or_else(|| product(a, b, None, dtype))
}
