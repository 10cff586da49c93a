//! Linear layers of generation on a host: few rows, weights packed once.
//!
//! A product of few rows reads its weight once, and its time is that. The weight lies in the order in
//! which it is read, in panels of [`LANES`] outputs, `[panels, in · LANES]`, zeros behind the last
//! output; where it is bf16 it stays that and is widened in registers, half the bytes.

use burn::tensor::{DType, Tensor, TensorData, bf16};
use rayon::prelude::*;

use super::memory::{HostMemory, HostTensor, from_host, primitive};
use super::vectors::{LANES, Work, add_product, by_vectors, prefetch};

/// Rows that are summed side by side: with [`LANES`] of f32, as many sums as AVX2 has registers for.
const ROWS: usize = 6;

/// The same of AVX-512.
const WIDE_ROWS: usize = 12;

/// Products that one thread takes at a time: some tens of microseconds.
const GRAIN: usize = 1 << 21;

/// From where the weight lies. None in a dtype that there are no products for.
pub(super) fn pack<B: HostMemory>(weight: Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    let ([_, inputs], device, dtype) = (weight.dims(), weight.device(), weight.dtype());
    let weight = primitive(weight);
    let packed = match dtype {
        DType::F32 => panels::<f32>(&B::values(&weight), inputs),
        DType::BF16 => panels::<bf16>(B::bf16_values(&weight)?, inputs),
        _ => return None,
    };
    Some(Tensor::from_data(packed, (&device, dtype)))
}

fn panels<T: Stored>(weight: &[T], inputs: usize) -> TensorData {
    let outputs = weight.len() / inputs.max(1);
    let panels = outputs.div_ceil(LANES);
    let mut packed = vec![T::default(); panels * inputs * LANES];
    let fill = |(panel, packed): (usize, &mut [T])| {
        let rows = weight[panel * LANES * inputs..].chunks_exact(inputs);
        for (lane, row) in rows.take(LANES).enumerate() {
            for (to, from) in packed[lane..].iter_mut().step_by(LANES).zip(row) {
                *to = *from;
            }
        }
    };
    packed
        .par_chunks_mut((inputs * LANES).max(1))
        .enumerate()
        .for_each(fill);
    TensorData::new(packed, [panels, inputs * LANES])
}

/// How a weight's numbers are stored.
pub(super) trait Stored: burn::tensor::Element + Default + Copy + Send + Sync {
    /// # Safety
    ///
    /// That of [`add_product`].
    unsafe fn widen<const WIDE: bool>(weights: &[Self; LANES]) -> [f32; LANES];
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn widen<const WIDE: bool>(weights: &[Self; LANES]) -> [f32; LANES] {
        *weights
    }
}

impl Stored for bf16 {
    #[inline(always)]
    unsafe fn widen<const WIDE: bool>(weights: &[Self; LANES]) -> [f32; LANES] {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            use std::arch::x86_64::{
                _mm256_loadu_si256, _mm512_cvtepu16_epi32, _mm512_slli_epi32, _mm512_storeu_si512,
            };
            let mut wide = [0f32; LANES];
            // SAFETY: the processor has it, says the caller; both are as long as is read and written.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(weights.as_ptr().cast()));
                _mm512_storeu_si512(wide.as_mut_ptr().cast(), _mm512_slli_epi32::<16>(bits));
            }
            return wide;
        }
        weights.map(|weight| f32::from_bits(u32::from(weight.to_bits()) << 16))
    }
}

/// `x · weightᵀ + bias`, f32 `[rows, in]`, → f32 `[rows, outputs]`.
pub(super) fn forward<B: HostMemory>(
    x: Tensor<B, 2>,
    packed: Tensor<B, 2>,
    outputs: usize,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, 2> {
    let (device, dtype) = (x.device(), packed.dtype());
    let ([rows, inputs], packed) = (x.dims(), primitive(packed));
    let x = HostTensor::new(x);
    let x = &x.values()[..];
    let mut y = Vec::with_capacity(rows * outputs);
    match dtype {
        DType::BF16 => {
            let packed = B::bf16_values(&packed).unwrap_or_default();
            product(&mut y, x, packed, [rows, inputs, outputs]);
        }
        _ => product(&mut y, x, &B::values(&packed), [rows, inputs, outputs]),
    }
    // SAFETY: the product writes each of its numbers.
    unsafe { y.set_len(rows * outputs) };
    let y = from_host(y, [rows, outputs], &device);
    match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    }
}

/// Writes all of `y` `[rows, outputs]`, which has room for it.
fn product<T: Stored>(
    y: &mut Vec<f32>,
    x: &[f32],
    packed: &[T],
    [rows, inputs, outputs]: [usize; 3],
) {
    let panels = outputs.div_ceil(LANES);
    assert!(packed.len() == panels * inputs * LANES && x.len() == rows * inputs);
    let each = (GRAIN / (rows * inputs * LANES).max(1)).clamp(1, panels.max(1));
    let y = Results(y.spare_capacity_mut().as_mut_ptr().cast());
    (0..panels.div_ceil(each)).into_par_iter().for_each(|part| {
        by_vectors(Panels {
            x,
            rows,
            inputs,
            packed,
            panels: part * each..((part + 1) * each).min(panels),
            y,
            outputs,
        });
    });
}

/// Where results go; each part of a product writes columns of its own.
#[derive(Clone, Copy)]
struct Results(*mut f32);

// SAFETY: no two parts write the same numbers, and none reads any.
unsafe impl Send for Results {}
// SAFETY: as above.
unsafe impl Sync for Results {}

/// Some panels of a product.
struct Panels<'a, T> {
    x: &'a [f32],
    rows: usize,
    inputs: usize,
    packed: &'a [T],
    panels: std::ops::Range<usize>,
    y: Results,
    outputs: usize,
}

impl<T: Stored> Work for Panels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        let rows = self.rows;
        let of_panel = self.inputs * LANES;
        for panel in self.panels.clone() {
            let weights = &self.packed[panel * of_panel..][..of_panel];
            // Blocks as even as may be: one of few rows would wait for its own sums.
            let blocks = rows.div_ceil(if WIDE { WIDE_ROWS } else { ROWS });
            for block in 0..blocks {
                let [first, end] = [block, block + 1].map(|block| rows * block / blocks);
                // The last of them reads the next panel ahead, which nothing else would.
                let last = block + 1 == blocks;
                if WIDE && end - first > ROWS {
                    self.many_rows::<FMA, WIDE>(first, end - first, last, panel, weights);
                    continue;
                }
                match (end - first, last) {
                    (6, false) => self.rows::<FMA, WIDE, false, 6>(first, panel, weights),
                    (6, true) => self.rows::<FMA, WIDE, true, 6>(first, panel, weights),
                    (5, false) => self.rows::<FMA, WIDE, false, 5>(first, panel, weights),
                    (5, true) => self.rows::<FMA, WIDE, true, 5>(first, panel, weights),
                    (4, false) => self.rows::<FMA, WIDE, false, 4>(first, panel, weights),
                    (4, true) => self.rows::<FMA, WIDE, true, 4>(first, panel, weights),
                    // Hardly ever where there are several blocks.
                    (3, _) => self.rows::<FMA, WIDE, true, 3>(first, panel, weights),
                    (2, _) => self.rows::<FMA, WIDE, true, 2>(first, panel, weights),
                    _ => self.rows::<FMA, WIDE, true, 1>(first, panel, weights),
                }
            }
        }
    }
}

impl<T: Stored> Panels<'_, T> {
    /// More than [`ROWS`], up to [`WIDE_ROWS`].
    #[inline(always)]
    fn many_rows<const FMA: bool, const WIDE: bool>(
        &self,
        first: usize,
        count: usize,
        last: bool,
        panel: usize,
        weights: &[T],
    ) {
        match (count, last) {
            (12, false) => self.rows::<FMA, WIDE, false, 12>(first, panel, weights),
            (12, true) => self.rows::<FMA, WIDE, true, 12>(first, panel, weights),
            (11, false) => self.rows::<FMA, WIDE, false, 11>(first, panel, weights),
            (11, true) => self.rows::<FMA, WIDE, true, 11>(first, panel, weights),
            (10, false) => self.rows::<FMA, WIDE, false, 10>(first, panel, weights),
            (10, true) => self.rows::<FMA, WIDE, true, 10>(first, panel, weights),
            (9, false) => self.rows::<FMA, WIDE, false, 9>(first, panel, weights),
            (9, true) => self.rows::<FMA, WIDE, true, 9>(first, panel, weights),
            (8, false) => self.rows::<FMA, WIDE, false, 8>(first, panel, weights),
            (8, true) => self.rows::<FMA, WIDE, true, 8>(first, panel, weights),
            (_, false) => self.rows::<FMA, WIDE, false, 7>(first, panel, weights),
            (_, true) => self.rows::<FMA, WIDE, true, 7>(first, panel, weights),
        }
    }

    /// `COUNT` rows from row `first`, by one panel. Sums go over the inputs in their order, whatever
    /// `COUNT` is.
    #[inline(always)]
    fn rows<const FMA: bool, const WIDE: bool, const AHEAD: bool, const COUNT: usize>(
        &self,
        first: usize,
        panel: usize,
        weights: &[T],
    ) {
        let x = &self.x[first * self.inputs..(first + COUNT) * self.inputs];
        let mut sums = [[0f32; LANES]; COUNT];
        let behind = weights.as_ptr_range().end;
        for (at, weights) in weights.as_chunks::<LANES>().0.iter().enumerate() {
            if AHEAD {
                prefetch(behind.wrapping_add(at * LANES));
            }
            // SAFETY: WIDE is the caller's.
            let weights = unsafe { T::widen::<WIDE>(weights) };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: there is one for each of the panel's rows, in each of x's.
                unsafe {
                    let factor = *x.get_unchecked(row * self.inputs + at);
                    add_product::<FMA, WIDE>(sums, factor, &weights);
                }
            }
        }
        let column = panel * LANES;
        let columns = (self.outputs - column).min(LANES);
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: `product` has room for all rows; these columns are this panel's own.
            unsafe {
                let y = self.y.0.add((first + row) * self.outputs + column);
                y.copy_from_nonoverlapping(sums.as_ptr(), columns);
            }
        }
    }
}
