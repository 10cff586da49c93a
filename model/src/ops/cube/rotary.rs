//! Heads rotated to their positions.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use burn::tensor::DType;

use super::launch::{addresses, elementwise, flat, room, vector};

/// A unit turns a vector of the first half of a head and its like of the second. `table` has the
/// cosines of a token's half head, then the sines.
#[cube(launch, address_type = "dynamic")]
fn rotate_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    table: &Array<Vector<f32, N>>,
    out: &mut Array<Vector<T, N>>,
    count: usize,
    heads: usize,
    half: usize,
    scale: f32,
    #[define(T)] _dtype: StorageType,
) {
    if ABSOLUTE_POS < count {
        let head = ABSOLUTE_POS / half;
        let i = ABSOLUTE_POS % half;
        let token = head / heads;
        let at = head * half * 2 + i;
        let cos = table[token * half * 2 + i] * Vector::new(scale);
        let sin = table[token * half * 2 + half + i] * Vector::new(scale);
        let a = Vector::<f32, N>::cast_from(x[at]);
        let b = Vector::<f32, N>::cast_from(x[at + half]);
        out[at] = Vector::cast_from(a * cos - b * sin);
        out[at + half] = Vector::cast_from(b * cos + a * sin);
    }
}

/// `[tokens, heads · head_dim]` by a table f32 `[tokens, head_dim]` → `[tokens, heads, head_dim]`.
pub(super) fn rotate<R: CubeRuntime>(
    x: CubeTensor<R>,
    table: CubeTensor<R>,
    scale: f64,
) -> CubeTensor<R> {
    let (x, table) = (flat(x), flat(table));
    let [tokens, across] = [x.meta.shape()[0], x.meta.shape()[1]];
    let width = table.meta.shape()[1];
    let (heads, half, dtype) = (across / width, width / 2, x.dtype);
    let out = room(&x, [tokens, heads, width], dtype);
    let vector = vector(&x, half, &[DType::F32]);
    let count = tokens * heads * half / vector;
    let (cubes, units) = elementwise(count);
    rotate_kernel::launch(
        &out.client,
        cubes,
        units,
        addresses(&[&x, &table]),
        vector,
        x.into_array_arg(),
        table.into_array_arg(),
        out.clone().into_array_arg(),
        count,
        heads,
        half / vector,
        scale as f32,
        dtype.into(),
    );
    out
}
