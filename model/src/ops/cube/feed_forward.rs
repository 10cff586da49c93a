//! SwiGLU, element by element.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, elementwise, flat, room, vector};

/// σ(x).
#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    one / (one + (Vector::new(0.0f32) - x).exp())
}

#[cube(launch, address_type = "dynamic")]
fn swiglu_kernel<T: Float, N: Size>(
    gate: &Array<Vector<T, N>>,
    up: &Array<Vector<T, N>>,
    out: &mut Array<Vector<T, N>>,
    count: usize,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count {
        let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        // Rounded between the two products, as torch does.
        let gated = Vector::<T, N>::cast_from(gate * sigmoid::<N>(gate));
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        out[ABSOLUTE_POS] = Vector::cast_from(Vector::<f32, N>::cast_from(gated) * up);
    }
}

/// gate · σ(gate) · up, of one shape.
pub(super) fn swiglu<R: CubeRuntime>(gate: CubeTensor<R>, up: CubeTensor<R>) -> CubeTensor<R> {
    let (gate, up) = (flat(gate), flat(up));
    let (shape, dtype) = (gate.meta.shape().clone(), gate.dtype);
    let vector = vector(&gate, shape.num_elements(), &[dtype]);
    let count = shape.num_elements() / vector;
    let out = room(&gate, shape, dtype);
    let (cubes, units) = elementwise(count);
    swiglu_kernel::launch(
        &out.client,
        cubes,
        units,
        addresses(&[&out]),
        vector,
        gate.into_array_arg(),
        up.into_array_arg(),
        out.clone().into_array_arg(),
        count,
        dtype.into(),
    );
    out
}

#[cube(launch, address_type = "dynamic")]
fn swiglu_backward_kernel<T: Float, N: Size>(
    grad: &Array<Vector<T, N>>,
    gate: &Array<Vector<T, N>>,
    up: &Array<Vector<T, N>>,
    of_gate: &mut Array<Vector<T, N>>,
    of_up: &mut Array<Vector<T, N>>,
    count: usize,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count {
        let grad = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
        let gate = Vector::<f32, N>::cast_from(gate[ABSOLUTE_POS]);
        let up = Vector::<f32, N>::cast_from(up[ABSOLUTE_POS]);
        let one = Vector::<f32, N>::new(1.0f32);
        let sigmoid = sigmoid::<N>(gate);
        let slope = sigmoid * (one + gate * (one - sigmoid));
        of_gate[ABSOLUTE_POS] = Vector::cast_from(grad * up * slope);
        of_up[ABSOLUTE_POS] = Vector::cast_from(grad * gate * sigmoid);
    }
}

/// The gradients by gate and up.
pub(super) fn swiglu_backward<R: CubeRuntime>(
    grad: CubeTensor<R>,
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
) -> [CubeTensor<R>; 2] {
    let (grad, gate, up) = (flat(grad), flat(gate), flat(up));
    let (shape, dtype) = (gate.meta.shape().clone(), gate.dtype);
    let vector = vector(&gate, shape.num_elements(), &[dtype]);
    let count = shape.num_elements() / vector;
    let found = [(); 2].map(|()| room(&gate, shape.clone(), dtype));
    let (cubes, units) = elementwise(count);
    swiglu_backward_kernel::launch(
        &found[0].client,
        cubes,
        units,
        addresses(&[&gate]),
        vector,
        grad.into_array_arg(),
        gate.into_array_arg(),
        up.into_array_arg(),
        found[0].clone().into_array_arg(),
        found[1].clone().into_array_arg(),
        count,
        dtype.into(),
    );
    found
}
