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

/// Panels that AVX-512's rows are summed by at a time: with [`WIDE_ROWS`], 24 of its 32 registers.
const WIDE_PANELS: usize = 2;

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
    let each = match each {
        1 => 1,
        _ => each.next_multiple_of(WIDE_PANELS),
    };
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
        // Blocks as even as may be: one of few rows would wait for its own sums.
        let blocks = self.rows.div_ceil(if WIDE { WIDE_ROWS } else { ROWS });
        let mut panel = self.panels.start;
        while panel < self.panels.end {
            let several = WIDE && panel + WIDE_PANELS <= self.panels.end;
            for block in 0..blocks {
                let place = Place {
                    panel,
                    block,
                    blocks,
                };
                match several {
                    true => self.block::<FMA, WIDE, WIDE_PANELS>(place),
                    false => self.block::<FMA, WIDE, 1>(place),
                }
            }
            panel += if several { WIDE_PANELS } else { 1 };
        }
    }
}

/// A block of rows and the first of the panels that it is summed by.
#[derive(Clone, Copy)]
struct Place {
    panel: usize,
    block: usize,
    blocks: usize,
}

impl<T: Stored> Panels<'_, T> {
    #[inline(always)]
    fn block<const FMA: bool, const WIDE: bool, const PANELS: usize>(&self, place: Place) {
        let [first, end] = [place.block, place.block + 1].map(|b| self.rows * b / place.blocks);
        macro_rules! sum {
            ($count:literal) => {
                self.sum::<FMA, WIDE, PANELS, $count>(place, first)
            };
        }
        match end - first {
            1 => sum!(1),
            2 => sum!(2),
            3 => sum!(3),
            4 => sum!(4),
            5 => sum!(5),
            6 => sum!(6),
            7 if WIDE => sum!(7),
            8 if WIDE => sum!(8),
            9 if WIDE => sum!(9),
            10 if WIDE => sum!(10),
            11 if WIDE => sum!(11),
            12 if WIDE => sum!(12),
            rows => unreachable!("a block of {rows} rows"),
        }
    }

    /// `COUNT` rows from row `first`, by `PANELS` panels. Sums go over the inputs in their order,
    /// whatever these are.
    #[inline(always)]
    fn sum<const FMA: bool, const WIDE: bool, const PANELS: usize, const COUNT: usize>(
        &self,
        place: Place,
        first: usize,
    ) {
        let (inputs, of_panel) = (self.inputs, self.inputs * LANES);
        let x = &self.x[first * inputs..(first + COUNT) * inputs];
        let all = &self.packed[place.panel * of_panel..(place.panel + PANELS) * of_panel];
        let panels: [&[[T; LANES]]; PANELS] =
            std::array::from_fn(|panel| all[panel * of_panel..][..of_panel].as_chunks().0);
        // Each block reads its part of the next panels ahead, evenly: memory is slower than a block.
        let line = size_of::<[T; LANES]>();
        let ahead = all.as_ptr_range().end.cast::<u8>();
        let ahead = ahead.wrapping_add(inputs * line * place.block / place.blocks);
        // Of 2¹⁶ths of bytes.
        let step = (line << 16) / place.blocks;
        // Not one array: compilers would not unroll a loop within a loop, and keep it in memory.
        let [mut sums, mut of_next] = [[[0f32; LANES]; COUNT]; 2];
        for at in 0..inputs {
            for panel in 0..PANELS {
                prefetch(ahead.wrapping_add(panel * inputs * line + ((at * step) >> 16)));
            }
            // SAFETY: there is one of each panel for each input; WIDE is the caller's.
            let (weights, next) = unsafe {
                (
                    T::widen::<WIDE>(panels[0].get_unchecked(at)),
                    T::widen::<WIDE>(panels[PANELS - 1].get_unchecked(at)),
                )
            };
            for row in 0..COUNT {
                // SAFETY: each of x's rows has one for each input; WIDE is the caller's.
                unsafe {
                    let factor = *x.get_unchecked(row * inputs + at);
                    add_product::<FMA, WIDE>(&mut sums[row], factor, &weights);
                    if PANELS > 1 {
                        add_product::<FMA, WIDE>(&mut of_next[row], factor, &next);
                    }
                }
            }
        }
        for (panel, sums) in [sums, of_next].iter().take(PANELS).enumerate() {
            for (row, sums) in sums.iter().enumerate() {
                let column = (place.panel + panel) * LANES;
                let columns = (self.outputs - column).min(LANES);
                // SAFETY: `product` has room for all rows; these columns are this panel's own.
                unsafe {
                    let y = self.y.0.add((first + row) * self.outputs + column);
                    y.copy_from_nonoverlapping(sums.as_ptr(), columns);
                }
            }
        }
    }
}
