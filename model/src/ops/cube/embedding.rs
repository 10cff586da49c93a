//! The embeddings' gradient: the rows of each token summed up in their order.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, elementwise, flat, vector};

/// Rows by token: `[token, first, behind]` of each token that there is, then the rows' numbers.
pub(super) fn rows_by_token(ids: &[u32]) -> (usize, Vec<u32>) {
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&row| ids[row as usize]);
    let mut table = Vec::new();
    let same = |a: &u32, b: &u32| ids[*a as usize] == ids[*b as usize];
    let mut first = 0;
    for rows in order.chunk_by(same) {
        let behind = first + rows.len() as u32;
        table.extend([ids[rows[0] as usize], first, behind]);
        first = behind;
    }
    let tokens = table.len() / 3;
    table.extend(order);
    (tokens, table)
}

#[cube(launch, address_type = "dynamic")]
fn embed_backward_kernel<T: Float, I: Int, N: Size>(
    grad: &Array<Vector<T, N>>,
    table: &Array<I>,
    out: &mut Array<Vector<f32, N>>,
    tokens: usize,
    width: usize,
    #[define(T, I)] _dtypes: [StorageType; 2],
) {
    let entry = ABSOLUTE_POS / width;
    let column = ABSOLUTE_POS % width;
    if entry < tokens {
        let token = usize::cast_from(table[entry * 3]);
        let first = usize::cast_from(table[entry * 3 + 1]);
        let behind = usize::cast_from(table[entry * 3 + 2]);
        let mut sum = Vector::<f32, N>::new(0.0f32);
        for i in first..behind {
            let row = usize::cast_from(table[tokens * 3 + i]);
            sum += Vector::<f32, N>::cast_from(grad[row * width + column]);
        }
        out[token * width + column] = sum;
    }
}

/// `[rows, hidden]` and [`rows_by_token`] on the device → f32 `[vocab, hidden]`.
pub(super) fn embed_backward<R: CubeRuntime>(
    grad: CubeTensor<R>,
    tokens: usize,
    table: CubeTensor<R>,
    vocab: usize,
) -> CubeTensor<R> {
    let (grad, table) = (flat(grad), flat(table));
    let hidden = grad.meta.shape()[1];
    let dtypes = [grad.dtype.into(), table.dtype.into()];
    let out = zeros(grad.device.clone(), [vocab, hidden].into(), DType::F32);
    let out = flat(out);
    let vector = vector(&grad, hidden, &[DType::F32]);
    let width = hidden / vector;
    let (cubes, units) = elementwise(tokens * width);
    embed_backward_kernel::launch(
        &out.client,
        cubes,
        units,
        addresses(&[&grad, &out]),
        vector,
        grad.into_array_arg(),
        table.into_array_arg(),
        out.clone().into_array_arg(),
        tokens,
        width,
        dtypes,
    );
    out
}
