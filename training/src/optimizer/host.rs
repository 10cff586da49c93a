//! The updates in one pass over the host's memory, for CPU backends: by tensor operations each
//! takes about nine, on one core.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rayon::prelude::*;
use sppo_model::host;

use super::{AdamW, RmsProp, Sgd};

/// Elements that one thread takes at a time.
const GRAIN: usize = 1 << 14;

/// One weight's update, given its gradient and its place in each slot.
trait Rule<const N: usize>: Sync {
    fn update(&self, weight: &mut f32, grad: f32, slots: [&mut f32; N]);
}

struct RmsPropRule {
    alpha: f32,
    /// 1 − alpha, before it is rounded.
    fresh: f32,
    eps: f32,
    decay: f32,
    rate: f32,
}

impl Rule<1> for RmsPropRule {
    fn update(&self, weight: &mut f32, grad: f32, [v]: [&mut f32; 1]) {
        let grad = grad + self.decay * *weight;
        *v = *v * self.alpha + grad * grad * self.fresh;
        *weight -= grad * self.rate / (v.sqrt() + self.eps);
    }
}

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
    fn update(&self, weight: &mut f32, grad: f32, [m, v]: [&mut f32; 2]) {
        *m = *m * self.beta1 + grad * self.fresh[0];
        *v = *v * self.beta2 + grad * grad * self.fresh[1];
        let scale = (*v * self.correction).sqrt() + self.eps;
        *weight = *weight * self.keep - *m * self.rate / scale;
    }
}

struct SgdRule {
    decay: f32,
    rate: f32,
}

impl Rule<0> for SgdRule {
    fn update(&self, weight: &mut f32, grad: f32, []: [&mut f32; 0]) {
        let grad = grad + self.decay * *weight;
        *weight -= grad * self.rate;
    }
}

/// RMSProp's update of `master` `[n]` by `grad` `[n]`.
pub(super) fn rms_prop<B: Backend>(
    o: &RmsProp,
    master: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    slots: &mut Vec<Tensor<B, 1>>,
    rate: f64,
) -> Tensor<B, 1> {
    let rule = RmsPropRule {
        alpha: o.alpha as f32,
        fresh: (1.0 - o.alpha) as f32,
        eps: o.eps as f32,
        decay: o.weight_decay as f32,
        rate: rate as f32,
    };
    apply::<B, 1>(&rule, master, grad, slots)
}

/// AdamW's, `step` counted from 1.
pub(super) fn adam_w<B: Backend>(
    o: &AdamW,
    master: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    slots: &mut Vec<Tensor<B, 1>>,
    rate: f64,
    step: usize,
) -> Tensor<B, 1> {
    let correct = |beta: f64| 1.0 - beta.powi(step as i32);
    let rule = AdamWRule {
        beta1: o.beta1 as f32,
        beta2: o.beta2 as f32,
        fresh: [o.beta1, o.beta2].map(|beta| (1.0 - beta) as f32),
        eps: o.eps as f32,
        keep: (1.0 - rate * o.weight_decay) as f32,
        rate: (rate / correct(o.beta1)) as f32,
        correction: correct(o.beta2).recip() as f32,
    };
    apply::<B, 2>(&rule, master, grad, slots)
}

/// Plain gradient descent's.
pub(super) fn sgd<B: Backend>(
    o: &Sgd,
    master: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    slots: &mut Vec<Tensor<B, 1>>,
    rate: f64,
) -> Tensor<B, 1> {
    let rule = SgdRule {
        decay: o.weight_decay as f32,
        rate: rate as f32,
    };
    apply::<B, 0>(&rule, master, grad, slots)
}

/// Runs a rule over all weights; `slots` holds its `N` tensors before and after.
fn apply<B: Backend, const N: usize>(
    rule: &impl Rule<N>,
    master: Tensor<B, 1>,
    grad: Tensor<B, 1>,
    slots: &mut Vec<Tensor<B, 1>>,
) -> Tensor<B, 1> {
    let device = master.device();
    let grad = host::take(grad);
    let mut state: Vec<Vec<f32>> = slots.drain(..).map(host::take).collect();
    let updated = host::map(master, |weights| {
        let mut parts: Vec<_> = state
            .iter_mut()
            .map(|slot| slot.chunks_mut(GRAIN))
            .collect();
        let work: Vec<_> = weights
            .chunks_mut(GRAIN)
            .zip(grad.chunks(GRAIN))
            .map(|(weights, grad)| {
                let slots: Vec<&mut [f32]> = parts.iter_mut().filter_map(Iterator::next).collect();
                (weights, grad, slots)
            })
            .collect();
        work.into_par_iter().for_each(|(weights, grad, slots)| {
            let Ok(mut slots) = <[&mut [f32]; N]>::try_from(slots) else {
                debug_assert!(false, "a rule has its own number of slots");
                return;
            };
            for (i, (weight, grad)) in weights.iter_mut().zip(grad).enumerate() {
                rule.update(weight, *grad, slots.each_mut().map(|slot| &mut slot[i]));
            }
        });
    });
    let tensor = |values: Vec<f32>| {
        let shape = [values.len()];
        Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
    };
    slots.extend(state.into_iter().map(tensor));
    updated
}

/// Σ x², in f64.
pub(crate) fn sum_of_squares<B: Backend>(x: Tensor<B, 1>) -> f64 {
    let squares = |part: &[f32]| part.iter().map(|&x| x as f64 * x as f64).sum::<f64>();
    let parts: Vec<f64> = host::take(x).par_chunks(GRAIN).map(squares).collect();
    parts.iter().sum()
}
