//! Rotary position embedding in Hugging Face's rotate-half layout.

use std::collections::HashMap;
use std::sync::Arc;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::device::Placement;
use super::memory::{HostMemory, HostTensor, cast, from_host};
use super::vectors::vectorised;

/// How far each token's heads are rotated.
#[derive(Clone, Debug)]
pub struct Rotation<B: Backend> {
    angles: Arc<Angles>,
    /// Where rotations are neither a pass over the host's memory nor a kernel.
    factors: Option<Factors<B>>,
    /// Where they are a kernel: cosines, then sines, of half a head, f32 `[tokens, head_dim]`.
    table: Option<Tensor<B, 2>>,
}

/// Cosines and sines `[tokens, head_dim]`; both halves of a head turn by the same angles, the first
/// with a negative sine.
#[derive(Debug)]
pub(super) struct Angles {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub head_dim: usize,
}

/// The same on the device, f32 `[tokens, 1, head_dim]`.
#[derive(Clone, Debug)]
struct Factors<B: Backend> {
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
}

impl Angles {
    /// `positions` times the inverse `frequencies` `[head_dim / 2]`; each position is computed once.
    fn new(frequencies: &[f32], positions: &[u32]) -> Self {
        let half = frequencies.len();
        let head_dim = 2 * half;
        // By position, not up to the last one: a step far along a sequence has few.
        let mut table: HashMap<u32, Vec<(f32, f32)>> = HashMap::new();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        cos.reserve_exact(positions.len() * head_dim);
        sin.reserve_exact(positions.len() * head_dim);
        for &position in positions {
            let turn = |frequency: &f32| {
                let angle = position as f32 * frequency;
                (angle.cos(), angle.sin())
            };
            let turns = table.entry(position);
            let turns = turns.or_insert_with(|| frequencies.iter().map(turn).collect());
            cos.extend(turns.iter().chain(turns.iter()).map(|turn| turn.0));
            sin.extend(turns.iter().map(|turn| -turn.1));
            sin.extend(turns.iter().map(|turn| turn.1));
        }
        Self { cos, sin, head_dim }
    }

    /// Of each token the cosines of half a head, then the sines.
    fn table(&self) -> Vec<f32> {
        let half = self.head_dim / 2;
        let cos = self.cos.chunks_exact(self.head_dim);
        let sin = self.sin.chunks_exact(self.head_dim);
        let rows = cos
            .zip(sin)
            .flat_map(|(cos, sin)| cos[..half].iter().chain(&sin[half..]));
        rows.copied().collect()
    }

    /// Rotates one head of token `token`, or back with `sign` −1.
    pub fn rotate(&self, to: &mut [f32], from: &[f32], token: usize, scale: f32, sign: f32) {
        let width = self.head_dim;
        let (first, second) = from[..width].split_at(width / 2);
        let (to_first, to_second) = to[..width].split_at_mut(width / 2);
        let (cos, sin) = (&self.cos[token * width..], &self.sin[token * width..]);
        let ((cos, cos_behind), (sin, sin_behind)) =
            (cos.split_at(width / 2), sin.split_at(width / 2));
        turn(to_first, [first, second], [cos, sin], scale, sign);
        turn(
            to_second,
            [second, first],
            [cos_behind, sin_behind],
            scale,
            sign,
        );
    }
}

vectorised! {
    fn turn(to: &mut [f32], x: [&[f32]; 2], angles: [&[f32]; 2], scale: f32, sign: f32) {
        let ([x, other], [cos, sin]) = (x, angles);
        let angles = cos.iter().zip(sin);
        for (((to, x), other), (cos, sin)) in to.iter_mut().zip(x).zip(other).zip(angles) {
            *to = (x * cos + sign * other * sin) * scale;
        }
    }
}

impl<B: Backend> Rotation<B> {
    pub(super) fn angles(&self) -> &Angles {
        &self.angles
    }

    #[cfg(feature = "cubecl")]
    pub(super) fn table(&self, device: &B::Device) -> Tensor<B, 2> {
        let known = self.table.clone();
        known.unwrap_or_else(|| {
            let tokens = self.angles.cos.len() / self.angles.head_dim;
            from_host(self.angles.table(), [tokens, self.angles.head_dim], device)
        })
    }
}

impl<B: Placement> Rotation<B> {
    /// Of tokens at `positions` by the inverse `frequencies` `[head_dim / 2]`, for heads in `dtype`.
    pub fn new(frequencies: &[f32], positions: &[u32], dtype: DType, device: &B::Device) -> Self {
        let angles = Angles::new(frequencies, positions);
        let factors = !B::HAS_KERNELS && !B::in_passes(dtype);
        let table = || from_host(angles.table(), [positions.len(), angles.head_dim], device);
        Self {
            factors: factors.then(|| Factors::new(&angles, device)),
            table: B::HAS_KERNELS.then(table),
            angles: Arc::new(angles),
        }
    }

    fn factors(&self, device: &B::Device) -> Factors<B> {
        let known = self.factors.clone();
        known.unwrap_or_else(|| Factors::new(&self.angles, device))
    }

    /// Heads `[tokens, heads, head_dim]` rotated, or back with `sign` −1.
    pub(super) fn apply(&self, x: Tensor<B, 3>, sign: f64) -> Tensor<B, 3> {
        let [tokens, heads, width] = x.dims();
        let (dtype, half) = (x.dtype(), width / 2);
        let Factors { cos, sin } = self.factors(&x.device());
        // CPU backends multiply equal shapes many times faster than broadcast ones.
        let spread = |x: Tensor<B, 3>| match B::ON_HOST {
            true => cast(x, dtype).repeat_dim(1, heads),
            false => cast(x, dtype),
        };
        let first = x.clone().slice([0..tokens, 0..heads, 0..half]);
        let second = x.clone().slice([0..tokens, 0..heads, half..width]);
        let swapped = Tensor::cat(vec![second, first], 2);
        x * spread(cos) + swapped * spread(sin * sign)
    }
}

impl<B: AutodiffBackend> Rotation<B> {
    pub(super) fn from_inner(inner: Rotation<B::InnerBackend>) -> Self {
        Self {
            angles: inner.angles,
            table: inner.table.map(Tensor::from_inner),
            factors: inner.factors.map(|factors| Factors {
                cos: Tensor::from_inner(factors.cos),
                sin: Tensor::from_inner(factors.sin),
            }),
        }
    }

    pub(super) fn inner(&self) -> Rotation<B::InnerBackend> {
        Rotation {
            angles: self.angles.clone(),
            table: self.table.clone().map(Tensor::inner),
            factors: self.factors.clone().map(|factors| Factors {
                cos: factors.cos.inner(),
                sin: factors.sin.inner(),
            }),
        }
    }
}

impl<B: Backend> Factors<B> {
    fn new(angles: &Angles, device: &B::Device) -> Self {
        let table = |values: &Vec<f32>| {
            let shape = [values.len() / angles.head_dim, 1, angles.head_dim];
            from_host(values.clone(), shape, device)
        };
        Self {
            cos: table(&angles.cos),
            sin: table(&angles.sin),
        }
    }
}

pub(super) fn rotate<B: Placement>(
    x: Tensor<B, 2>,
    rotation: &Rotation<B>,
    scale: f64,
) -> Tensor<B, 3> {
    let width = rotation.angles.head_dim;
    let [tokens, across] = x.dims();
    let rotated = rotation.apply(x.reshape([tokens, across / width, width]), 1.0);
    match scale == 1.0 {
        true => rotated,
        false => rotated * scale,
    }
}

pub(super) fn rotate_on_host<B: HostMemory>(
    x: Tensor<B, 2>,
    rotation: &Rotation<B>,
    scale: f64,
) -> Tensor<B, 3> {
    let ([tokens, across], device) = (x.dims(), x.device());
    let angles = rotation.angles();
    let width = angles.head_dim;
    let x = HostTensor::new(x);
    let x = x.values();
    let mut out = vec![0f32; x.len()];
    let rows = out.par_chunks_mut(across).zip(x.par_chunks(across));
    rows.enumerate()
        .with_min_len(64)
        .for_each(|(token, (to, from))| {
            for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(width)) {
                angles.rotate(to, from, token, scale as f32, 1.0);
            }
        });
    from_host(out, [tokens, across / width, width], &device)
}
