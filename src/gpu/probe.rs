//! A small matrix product on a GPU: whether it computes at all, and rightly.

use cubecl::Runtime;
use cubecl::prelude::*;

/// The variable that leaves the values of the product alone: a driver without a card computes none.
pub const SKIP: &str = "SPPO_SKIP_PROBE_PRODUCT";

const SIDE: usize = 16;

#[cube(launch)]
fn product(a: &Array<f32>, b: &Array<f32>, out: &mut Array<f32>, #[comptime] side: usize) {
    if ABSOLUTE_POS < side * side {
        let row = ABSOLUTE_POS / side;
        let column = ABSOLUTE_POS % side;
        let mut sum = 0.0f32;
        for i in 0..side {
            sum += a[row * side + i] * b[i * side + column];
        }
        out[ABSOLUTE_POS] = sum;
    }
}

/// Small whole numbers, so that their product is exact.
fn factor(offset: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 7 + offset) % 11) as f32 - 5.0;
    (0..SIDE * SIDE).map(value).collect()
}

/// Computes it; what is wrong where something is. CubeCL may panic instead.
pub fn computes<R: Runtime>(device: &R::Device) -> Result<(), String> {
    let client = R::client(device);
    let (a, b) = (factor(1), factor(4));
    let handle = |values: &[f32]| {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        client.create_from_slice(&bytes.collect::<Vec<u8>>())
    };
    let out = client.empty(SIDE * SIDE * size_of::<f32>());
    // SAFETY: the buffers have as many elements.
    unsafe {
        product::launch::<R>(
            &client,
            CubeCount::new_single(),
            CubeDim::new_1d((SIDE * SIDE) as u32),
            ArrayArg::from_raw_parts(handle(&a), SIDE * SIDE),
            ArrayArg::from_raw_parts(handle(&b), SIDE * SIDE),
            ArrayArg::from_raw_parts(out.clone(), SIDE * SIDE),
            SIDE,
        );
    }
    let bytes = client.read_one(out).map_err(|error| error.to_string())?;
    if std::env::var_os(SKIP).is_some() {
        return Ok(());
    }
    let found = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    compare(&a, &b, &found.collect::<Vec<f32>>())
}

fn compare(a: &[f32], b: &[f32], found: &[f32]) -> Result<(), String> {
    for (i, value) in found.iter().enumerate() {
        let terms = (0..SIDE).map(|k| a[i / SIDE * SIDE + k] * b[k * SIDE + i % SIDE]);
        let expected: f32 = terms.sum();
        if *value != expected {
            return Err(format!(
                "it computes wrongly: {value} instead of {expected} in a small matrix product; the \
                 card or its driver is broken"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_product_is_noticed() {
        let (a, b) = (factor(1), factor(4));
        let of = |i: usize| -> f32 {
            let row = &a[i / SIDE * SIDE..];
            (0..SIDE).map(|k| row[k] * b[k * SIDE + i % SIDE]).sum()
        };
        let mut found: Vec<f32> = (0..SIDE * SIDE).map(of).collect();
        assert_eq!(compare(&a, &b, &found), Ok(()));
        found[77] += 1.0;
        let said = compare(&a, &b, &found).unwrap_err();
        assert!(said.starts_with("it computes wrongly: "), "{said}");
    }
}
