//! Matrix products, which are CubeCL's.

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
