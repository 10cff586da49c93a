//! NdArray's `simd` feature takes the processor's estimate for a reciprocal (12 bits with AVX2, 14
//! with AVX-512), and autodiff's division multiplies by it: gradients were off by up to 6e-4.

use burn::tensor::{Tensor, TensorData};

type NdArray = burn_ndarray::NdArray<f32, i64, i8>;

#[test]
fn reciprocals_are_rounded_once() {
    let values: Vec<f32> = (1..4000).map(|i| i as f32 * 0.37).collect();
    let data = TensorData::new(values.clone(), [values.len()]);
    let found = Tensor::<NdArray, 1>::from_data(data, &Default::default()).recip();
    for (found, x) in found
        .into_data()
        .to_vec::<f32>()
        .unwrap()
        .iter()
        .zip(values)
    {
        assert_eq!(*found, 1.0 / x, "1 / {x}");
    }
}
