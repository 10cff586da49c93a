//! Linear layers: the products are the backend's, on Flex the same ones of the gemm crate without
//! Flex's copies: it fills a product's room with zeros and copies them once, on one core.

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

#[cfg(feature = "flex")]
pub(super) use by_gemm::{forward_on_flex, input_gradient_on_flex, weight_gradient_on_flex};

pub(super) fn forward<B: Backend>(
    x: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    let y = x.matmul(weight.transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

#[cfg(feature = "flex")]
mod by_gemm {
    use burn::tensor::Tensor;

    use super::super::memory::{HostMemory, HostTensor, from_host};

    /// Multiply-adds from which a product is worth being shared by the cores.
    const SHARED: usize = 192 * 192 * 192;

    pub fn forward_on_flex<B: HostMemory>(
        x: Tensor<B, 2>,
        weight: Tensor<B, 2>,
        bias: Option<Tensor<B, 1>>,
    ) -> Tensor<B, 2> {
        let y = product(Factor::new(x), Factor::new(weight).turned());
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    pub fn weight_gradient_on_flex<B: HostMemory>(
        grad: Tensor<B, 2>,
        x: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        product(Factor::new(grad).turned(), Factor::new(x))
    }

    pub fn input_gradient_on_flex<B: HostMemory>(
        grad: Tensor<B, 2>,
        weight: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        product(Factor::new(grad), Factor::new(weight))
    }

    /// A matrix as a product reads it.
    struct Factor<B: HostMemory> {
        values: HostTensor<B>,
        device: B::Device,
        shape: [usize; 2],
        /// From row to row and from column to column.
        strides: [usize; 2],
    }

    impl<B: HostMemory> Factor<B> {
        fn new(x: Tensor<B, 2>) -> Self {
            let (shape, device) = (x.dims(), x.device());
            Self {
                values: HostTensor::new(x),
                device,
                shape,
                strides: [shape[1], 1],
            }
        }

        /// Its transpose, where it lies.
        fn turned(mut self) -> Self {
            self.shape.reverse();
            self.strides.reverse();
            self
        }
    }

    /// `[rows, inner] · [inner, columns]`.
    fn product<B: HostMemory>(left: Factor<B>, right: Factor<B>) -> Tensor<B, 2> {
        let ([rows, inner], [others, columns]) = (left.shape, right.shape);
        let (a, b) = (left.values.values(), right.values.values());
        assert!(
            inner == others && a.len() == rows * inner && b.len() == inner * columns,
            "a product of [{rows}, {inner}] and [{others}, {columns}]"
        );
        let mut y: Vec<f32> = Vec::with_capacity(rows * columns);
        let shared = rows.saturating_mul(columns).saturating_mul(inner) >= SHARED;
        let [[a_down, a_along], [b_down, b_along]] =
            [left.strides, right.strides].map(|strides| strides.map(|stride| stride as isize));
        // SAFETY: the slices are as large as shapes and strides say; the product writes each number
        // of the room that is reserved, and reads none of it.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                inner,
                y.as_mut_ptr(),
                1,
                columns as isize,
                false,
                a.as_ptr(),
                a_along,
                a_down,
                b.as_ptr(),
                b_along,
                b_down,
                0.0,
                1.0,
                false,
                false,
                false,
                match shared {
                    true => gemm::Parallelism::Rayon(0),
                    false => gemm::Parallelism::None,
                },
            );
            y.set_len(rows * columns);
        }
        from_host(y, [rows, columns], &left.device)
    }
}
