//! Optimizers' updates in torch's form, on flat f32 weights.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use super::device::DeviceError;
use super::math::GRAIN;
use super::memory::{HostMemory, HostTensor, cast, from_host, map, take, to_host};
use super::vectors::{LANES, Work, by_vectors, vectorised};

/// torch.optim.RMSprop: v = αv + (1 − α)g², w −= lr · g / (√v + eps).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    /// α, the decay of v.
    pub alpha: f64,
    /// Added to the root.
    pub eps: f64,
    /// Times the weight, added to the gradient.
    pub weight_decay: f64,
}

/// torch.optim.AdamW: decoupled weight decay, bias correction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the gradients' mean.
    pub beta1: f64,
    /// Decay of the squared gradients' mean.
    pub beta2: f64,
    /// Added to the root.
    pub eps: f64,
    /// Times the rate, taken off the weight.
    pub weight_decay: f64,
}

/// torch.optim.SGD without momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Times the weight, added to the gradient.
    pub weight_decay: f64,
}

/// An optimizer and its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    /// One slot: v.
    RmsProp(RmsProp),
    /// Two slots: the means of the gradients and of their squares.
    AdamW(AdamW),
    /// No slot.
    Sgd(Sgd),
}

/// What an update needs to know of its step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateStep {
    /// Learning rate.
    pub rate: f64,
    /// Counted from 1.
    pub number: usize,
    /// What gradients are multiplied by first: below 1 where they are clipped.
    pub gradient_scale: f64,
}

impl Optimizer {
    /// State tensors a parameter needs, each as large as the parameter.
    pub fn slots(&self) -> usize {
        match self {
            Self::RmsProp(_) => 1,
            Self::AdamW(_) => 2,
            Self::Sgd(_) => 0,
        }
    }
}

/// What an update changes, all flat f32 `[n]`.
#[derive(Clone, Debug)]
pub struct Updating<B: Backend> {
    /// Weights.
    pub weights: Tensor<B, 1>,
    /// Their gradient.
    pub grad: Tensor<B, 1>,
    /// The optimizer's own tensors, none before the first step.
    pub slots: Vec<Tensor<B, 1>>,
}

/// What an update gives.
#[derive(Clone, Debug)]
pub struct Updated<B: Backend> {
    /// Weights f32 `[n]`.
    pub weights: Tensor<B, 1>,
    /// The optimizer's own tensors f32 `[n]`.
    pub slots: Vec<Tensor<B, 1>>,
    /// The weights in their own dtype, where that is not f32.
    pub rounded: Option<Tensor<B, 1>>,
}

impl<B: Backend> Updated<B> {
    pub(super) fn new(weights: Tensor<B, 1>, slots: Vec<Tensor<B, 1>>, dtype: DType) -> Self {
        let rounded = (dtype != DType::F32).then(|| cast(weights.clone(), dtype));
        Self {
            weights,
            slots,
            rounded,
        }
    }
}

/// 1 − βⁿ.
pub(super) fn correction(beta: f64, step: UpdateStep) -> f64 {
    1.0 - beta.powi(step.number as i32)
}

pub(super) fn update<B: Backend>(
    optimizer: &Optimizer,
    step: UpdateStep,
    updating: Updating<B>,
) -> (Tensor<B, 1>, Vec<Tensor<B, 1>>) {
    let Updating {
        weights,
        grad,
        slots,
    } = updating;
    let grad = match step.gradient_scale == 1.0 {
        true => grad,
        false => grad * step.gradient_scale,
    };
    let rate = step.rate;
    let mut slots = slots.into_iter();
    let mut slot = || slots.next().unwrap_or_else(|| Tensor::zeros_like(&weights));
    match optimizer {
        Optimizer::RmsProp(o) => {
            let v = slot();
            let grad = with_decay(grad, &weights, o.weight_decay);
            let v = blend(v, grad.clone() * grad.clone(), o.alpha);
            (weights - grad * rate / (v.clone().sqrt() + o.eps), vec![v])
        }
        Optimizer::AdamW(o) => {
            let (m, v) = (slot(), slot());
            let v = blend(v, grad.clone() * grad.clone(), o.beta2);
            let m = blend(m, grad, o.beta1);
            let scale = (v.clone() / correction(o.beta2, step)).sqrt() + o.eps;
            let decayed = match o.weight_decay == 0.0 {
                true => weights,
                false => weights * (1.0 - rate * o.weight_decay),
            };
            let change = m.clone() * (rate / correction(o.beta1, step)) / scale;
            (decayed - change, vec![m, v])
        }
        Optimizer::Sgd(o) => {
            let grad = with_decay(grad, &weights, o.weight_decay);
            (weights - grad * rate, Vec::new())
        }
    }
}

fn blend<B: Backend>(old: Tensor<B, 1>, new: Tensor<B, 1>, keep: f64) -> Tensor<B, 1> {
    old * keep + new * (1.0 - keep)
}

fn with_decay<B: Backend>(grad: Tensor<B, 1>, weights: &Tensor<B, 1>, decay: f64) -> Tensor<B, 1> {
    match decay == 0.0 {
        true => grad,
        false => grad + weights.clone() * decay,
    }
}

/// In f32, each chunk scaled by its largest entry first, since squares may overflow; one transfer
/// for all.
pub(super) fn sums_of_squares<B: Backend>(
    tensors: Vec<Tensor<B, 1>>,
) -> Result<Vec<Vec<f64>>, DeviceError> {
    let mut parts = Vec::new();
    let mut add = |chunks: Tensor<B, 2>| {
        let largest = chunks.clone().abs().max_dim(1);
        let largest = largest.clamp_min(f32::MIN_POSITIVE);
        let scaled = chunks / largest.clone();
        let sums = (scaled.clone() * scaled).sum_dim(1);
        parts.push(Tensor::cat(vec![largest, sums], 1).reshape([-1]));
    };
    let mut counts = Vec::new();
    for tensor in tensors {
        let [count] = tensor.dims();
        let (whole, rest) = (count / GRAIN, count % GRAIN);
        let behind = whole * GRAIN;
        if whole > 0 {
            add(tensor.clone().slice(0..behind).reshape([whole, GRAIN]));
        }
        if rest > 0 {
            add(tensor.slice(behind..count).reshape([1, rest]));
        }
        counts.push(count.div_ceil(GRAIN));
    }
    let values = match parts.is_empty() {
        true => Vec::new(),
        false => to_host(Tensor::cat(parts, 0))?,
    };
    Ok(squares_of_grains(&values, counts))
}

/// Σ x² of each tensor's grains, of each `[largest, sum of squares of what is scaled by it]`.
pub(super) fn squares_of_grains(
    values: &[f32],
    grains: impl IntoIterator<Item = usize>,
) -> Vec<Vec<f64>> {
    let mut squares = values.chunks_exact(2).map(|part| {
        let (largest, sum) = (f64::from(part[0]), f64::from(part[1]));
        largest * largest * sum
    });
    let take = |count: usize| squares.by_ref().take(count).collect();
    grains.into_iter().map(take).collect()
}

/// One weight's update, given its gradient and its place in each slot.
trait Rule<const N: usize>: Copy + Send + Sync {
    /// The new weight and slots.
    fn update(&self, weight: f32, grad: f32, slots: [f32; N]) -> (f32, [f32; N]);
}

#[derive(Clone, Copy)]
struct RmsPropRule {
    alpha: f32,
    /// 1 − alpha, before it is rounded.
    fresh: f32,
    eps: f32,
    decay: f32,
    rate: f32,
}

impl Rule<1> for RmsPropRule {
    #[inline(always)]
    fn update(&self, weight: f32, grad: f32, [v]: [f32; 1]) -> (f32, [f32; 1]) {
        let grad = grad + self.decay * weight;
        let v = v * self.alpha + grad * grad * self.fresh;
        (weight - grad * self.rate / (v.sqrt() + self.eps), [v])
    }
}

#[derive(Clone, Copy)]
struct AdamWRule {
    beta1: f32,
    beta2: f32,
    /// 1 − beta1 and 1 − beta2, before they are rounded.
    fresh: [f32; 2],
    eps: f32,
    /// 1 − rate · weight decay.
    keep: f32,
    /// The rate over the first moment's bias correction.
    rate: f32,
    /// One over the second moment's.
    correction: f32,
}

impl Rule<2> for AdamWRule {
    #[inline(always)]
    fn update(&self, weight: f32, grad: f32, [m, v]: [f32; 2]) -> (f32, [f32; 2]) {
        let m = m * self.beta1 + grad * self.fresh[0];
        let v = v * self.beta2 + grad * grad * self.fresh[1];
        let scale = (v * self.correction).sqrt() + self.eps;
        (weight * self.keep - m * self.rate / scale, [m, v])
    }
}

#[derive(Clone, Copy)]
struct SgdRule {
    decay: f32,
    rate: f32,
}

impl Rule<0> for SgdRule {
    #[inline(always)]
    fn update(&self, weight: f32, grad: f32, []: [f32; 0]) -> (f32, [f32; 0]) {
        let grad = grad + self.decay * weight;
        (weight - grad * self.rate, [])
    }
}

/// In one pass on all cores; by tensor operations an update takes about nine, on one core.
pub(super) fn update_on_host<B: HostMemory>(
    optimizer: &Optimizer,
    step: UpdateStep,
    updating: Updating<B>,
) -> (Tensor<B, 1>, Vec<Tensor<B, 1>>) {
    let Updating {
        weights,
        grad,
        slots,
    } = updating;
    let pass = Pass {
        weights,
        grad,
        slots,
        gradient_scale: step.gradient_scale as f32,
    };
    let rate = step.rate;
    match optimizer {
        Optimizer::RmsProp(o) => pass.run(RmsPropRule {
            alpha: o.alpha as f32,
            fresh: (1.0 - o.alpha) as f32,
            eps: o.eps as f32,
            decay: o.weight_decay as f32,
            rate: rate as f32,
        }),
        Optimizer::AdamW(o) => pass.run(AdamWRule {
            beta1: o.beta1 as f32,
            beta2: o.beta2 as f32,
            fresh: [o.beta1, o.beta2].map(|beta| (1.0 - beta) as f32),
            eps: o.eps as f32,
            keep: (1.0 - rate * o.weight_decay) as f32,
            rate: (rate / correction(o.beta1, step)) as f32,
            correction: correction(o.beta2, step).recip() as f32,
        }),
        Optimizer::Sgd(o) => pass.run(SgdRule {
            decay: o.weight_decay as f32,
            rate: rate as f32,
        }),
    }
}

struct Pass<B: HostMemory> {
    weights: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    slots: Vec<Tensor<B, 1>>,
    gradient_scale: f32,
}

impl<B: HostMemory> Pass<B> {
    /// Runs a rule over all weights.
    fn run<const N: usize>(self, rule: impl Rule<N>) -> (Tensor<B, 1>, Vec<Tensor<B, 1>>) {
        let (device, [count]) = (self.weights.device(), self.weights.dims());
        let grad = HostTensor::new(self.grad);
        let grad = grad.values();
        let mut slots = self.slots.into_iter().map(take);
        let mut state: [Vec<f32>; N] =
            std::array::from_fn(|_| slots.next().unwrap_or_else(|| vec![0.0; count]));
        let scale = self.gradient_scale;
        let updated = map(self.weights, |weights| {
            let mut parts = state.each_mut().map(|slot| slot.chunks_mut(GRAIN));
            let work: Vec<_> = weights
                .chunks_mut(GRAIN)
                .zip(grad.chunks(GRAIN))
                .map(|(weights, grad)| {
                    let slots = parts.each_mut().map(|part| part.next().unwrap_or_default());
                    (weights, grad, slots)
                })
                .collect();
            work.into_par_iter().for_each(|(weights, grad, mut slots)| {
                by_vectors(Part {
                    rule,
                    scale,
                    weights,
                    grad,
                    slots: slots.each_mut().map(|slot| &mut **slot),
                });
            });
        });
        let state = state
            .into_iter()
            .map(|slot| from_host(slot, [count], &device));
        (updated, state.collect())
    }
}

/// Some weights of a pass.
struct Part<'a, R, const N: usize> {
    rule: R,
    scale: f32,
    weights: &'a mut [f32],
    grad: &'a [f32],
    slots: [&'a mut [f32]; N],
}

impl<R: Rule<N>, const N: usize> Work for Part<'_, R, N> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool, const WIDE: bool>(self) {
        // All of one length, known to the loop, so that it is one of vectors.
        let count = self.weights.len();
        let (weights, grad) = (&mut self.weights[..count], &self.grad[..count]);
        let mut slots = self.slots.map(|slot| &mut slot[..count]);
        for i in 0..count {
            let state = slots.each_ref().map(|slot| slot[i]);
            let (weight, state) = self.rule.update(weights[i], grad[i] * self.scale, state);
            weights[i] = weight;
            for (slot, state) in slots.iter_mut().zip(state) {
                slot[i] = state;
            }
        }
    }
}

/// In f64.
pub(super) fn sums_of_squares_on_host<B: HostMemory>(x: Tensor<B, 1>) -> Vec<f64> {
    let x = HostTensor::new(x);
    x.values().par_chunks(GRAIN).map(sum_of_squares).collect()
}

vectorised! {
    fn sum_of_squares(x: &[f32]) -> f64 {
        let mut sums = [0.0f64; LANES];
        for part in x.chunks(LANES) {
            for (sum, &x) in sums.iter_mut().zip(part) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        sums.iter().sum()
    }
}
