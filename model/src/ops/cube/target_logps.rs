//! Log-probabilities of given tokens from logits, and the gradient by the logits.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{
    RowWork, addresses, flat, largest_of_lanes, largest_of_vector, room, sum_of_lanes,
    sum_of_vector, vector,
};

/// The largest logit of a row and Σ exp(logit − largest).
#[cube]
fn largest_and_sum<T: Float, N: Size>(
    logits: &Array<Vector<T, N>>,
    start: usize,
    width: usize,
    shared: &mut SharedMemory<f32>,
    #[comptime] lanes: usize,
) -> (f32, f32) {
    // Each unit keeps its own largest and corrects its sum when that grows.
    let mut largest = f32::min_value();
    let mut sum = 0.0f32;
    let mut i = UNIT_POS_X as usize;
    while i < width {
        let logits = Vector::<f32, N>::cast_from(logits[start + i]);
        let here = largest_of_vector::<N>(logits);
        if here > largest {
            sum *= (largest - here).exp();
            largest = here;
        }
        sum += sum_of_vector::<N>((logits - Vector::new(largest)).exp());
        i += lanes;
    }
    let of_all = largest_of_lanes(largest, shared, lanes);
    let sum = sum_of_lanes(sum * (largest - of_all).exp(), shared, lanes);
    (of_all, sum)
}

#[cube(launch, address_type = "dynamic")]
fn target_logps_kernel<T: Float, I: Int, N: Size>(
    logits: &Array<Vector<T, N>>,
    targets: &Array<I>,
    logps: &mut Array<f32>,
    width: usize,
    rows: usize,
    #[comptime] lanes: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(lanes);
    let live = CUBE_POS < rows;
    let row = select(live, CUBE_POS, 0);
    let (largest, sum) = largest_and_sum::<T, N>(logits, row * width, width, &mut shared, lanes);
    if live && UNIT_POS_X == 0 {
        let target = usize::cast_from(targets[row]);
        let own = Vector::<f32, N>::cast_from(logits[row * width + target / N::value()]);
        let mut logit = 0.0f32;
        #[unroll]
        for i in 0..N::value() {
            if target % N::value() == i {
                logit = own[i];
            }
        }
        logps[row] = logit - largest - sum.ln();
    }
}

/// Of logits `[rows, vocab]` → f32 `[rows]`.
pub(super) fn target_logps<R: CubeRuntime>(
    logits: CubeTensor<R>,
    targets: CubeTensor<R>,
) -> CubeTensor<R> {
    let (logits, targets) = (flat(logits), flat(targets));
    let [rows, vocab] = [logits.meta.shape()[0], logits.meta.shape()[1]];
    let dtypes = [logits.dtype.into(), targets.dtype.into()];
    let logps = room(&logits, [rows], DType::F32);
    let vector = vector(&logits, vocab, &[logits.dtype]);
    let work = RowWork::alone(vocab / vector);
    target_logps_kernel::launch(
        &logps.client,
        work.cubes(rows),
        work.dim(),
        addresses(&[&logits]),
        vector,
        logits.into_array_arg(),
        targets.into_array_arg(),
        logps.clone().into_array_arg(),
        vocab / vector,
        rows,
        work.lanes,
        dtypes,
    );
    logps
}

#[cube(launch, address_type = "dynamic")]
fn target_logps_backward_kernel<T: Float, I: Int, N: Size>(
    logits: &Array<Vector<T, N>>,
    targets: &Array<I>,
    grad: &Array<f32>,
    of_logits: &mut Array<Vector<T, N>>,
    width: usize,
    rows: usize,
    #[comptime] lanes: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let mut shared = SharedMemory::<f32>::new(lanes);
    let live = CUBE_POS < rows;
    let row = select(live, CUBE_POS, 0);
    let start = row * width;
    let (largest, sum) = largest_and_sum::<T, N>(logits, start, width, &mut shared, lanes);
    if live {
        let grad = grad[row];
        let target = usize::cast_from(targets[row]);
        let mut i = UNIT_POS_X as usize;
        while i < width {
            let logits = Vector::<f32, N>::cast_from(logits[start + i]);
            let scale = Vector::new(0.0f32 - grad / sum);
            let mut found = (logits - Vector::new(largest)).exp() * scale;
            if target / N::value() == i {
                #[unroll]
                for j in 0..N::value() {
                    if target % N::value() == j {
                        found[j] += grad;
                    }
                }
            }
            of_logits[start + i] = Vector::cast_from(found);
            i += lanes;
        }
    }
}

/// (onehot − softmax) · grad, `[rows, vocab]`, in the place of the logits where nobody else has
/// them.
pub(super) fn target_logps_backward<R: CubeRuntime>(
    grad: CubeTensor<R>,
    logits: CubeTensor<R>,
    targets: CubeTensor<R>,
) -> CubeTensor<R> {
    let (grad, logits, targets) = (flat(grad), flat(logits), flat(targets));
    let [rows, vocab] = [logits.meta.shape()[0], logits.meta.shape()[1]];
    let (dtype, client) = (logits.dtype, logits.client.clone());
    let dtypes = [dtype.into(), targets.dtype.into()];
    let vector = vector(&logits, vocab, &[dtype]);
    let work = RowWork::alone(vocab / vector);
    let addresses = addresses(&[&logits]);
    let out = match logits.can_mut() {
        true => None,
        false => Some(room(&logits, [rows, vocab], dtype)),
    };
    let (written, found) = match out {
        Some(out) => (out.clone().into_array_arg(), out),
        None => {
            let alias = logits.as_tensor_alias(0).into_array_arg();
            (alias, logits.clone())
        }
    };
    target_logps_backward_kernel::launch(
        &client,
        work.cubes(rows),
        work.dim(),
        addresses,
        vector,
        logits.into_array_arg(),
        targets.into_array_arg(),
        grad.into_array_arg(),
        written,
        vocab / vector,
        rows,
        work.lanes,
        dtypes,
    );
    found
}
