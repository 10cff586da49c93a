//! One parameter's update, on its flat f32 master weights.

use burn::tensor::{Tensor, backend::Backend};
use sppo_model::host::is_host;

use super::host;

/// torch.optim.RMSprop: v = αv + (1 − α)g², w −= lr · g / (√v + eps).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsProp {
    pub alpha: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// torch.optim.AdamW: decoupled weight decay, bias correction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// torch.optim.SGD without momentum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    pub weight_decay: f64,
}

/// The optimizers by their configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Optimizer {
    RmsProp(RmsProp),
    AdamW(AdamW),
    Sgd(Sgd),
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

    /// Updates flat f32 `master` `[n]` by `grad` `[n]`; `slots` holds this parameter's state
    /// (empty before the first step) and `step` counts from 1.
    pub fn update<B: Backend>(
        &self,
        master: Tensor<B, 1>,
        grad: Tensor<B, 1>,
        slots: &mut Vec<Tensor<B, 1>>,
        rate: f64,
        step: usize,
    ) -> Tensor<B, 1> {
        while slots.len() < self.slots() {
            slots.push(Tensor::zeros_like(&master));
        }
        if is_host::<B>(&master.device()) {
            return match self {
                Self::RmsProp(o) => host::rms_prop(o, master, grad, slots, rate),
                Self::AdamW(o) => host::adam_w(o, master, grad, slots, rate, step),
                Self::Sgd(o) => host::sgd(o, master, grad, slots, rate),
            };
        }
        self.update_on_device(master, grad, slots, rate, step)
    }

    /// The same by tensor operations.
    fn update_on_device<B: Backend>(
        &self,
        master: Tensor<B, 1>,
        grad: Tensor<B, 1>,
        slots: &mut Vec<Tensor<B, 1>>,
        rate: f64,
        step: usize,
    ) -> Tensor<B, 1> {
        match self {
            Self::RmsProp(o) => {
                let grad = coupled_decay(grad, &master, o.weight_decay);
                let square = grad.clone() * grad.clone();
                let v = blend(slots.remove(0), square, o.alpha);
                slots.push(v.clone());
                master - grad * rate / (v.sqrt() + o.eps)
            }
            Self::AdamW(o) => {
                let square = grad.clone() * grad.clone();
                let v = blend(slots.remove(1), square, o.beta2);
                let m = blend(slots.remove(0), grad, o.beta1);
                slots.extend([m.clone(), v.clone()]);
                let correct = |beta: f64| 1.0 - beta.powi(step as i32);
                let scale = (v / correct(o.beta2)).sqrt() + o.eps;
                let decayed = match o.weight_decay == 0.0 {
                    true => master,
                    false => master * (1.0 - rate * o.weight_decay),
                };
                decayed - m * (rate / correct(o.beta1)) / scale
            }
            Self::Sgd(o) => {
                let grad = coupled_decay(grad, &master, o.weight_decay);
                master - grad * rate
            }
        }
    }
}

fn blend<B: Backend>(old: Tensor<B, 1>, new: Tensor<B, 1>, keep: f64) -> Tensor<B, 1> {
    old * keep + new * (1.0 - keep)
}

fn coupled_decay<B: Backend>(
    grad: Tensor<B, 1>,
    master: &Tensor<B, 1>,
    decay: f64,
) -> Tensor<B, 1> {
    match decay == 0.0 {
        true => grad,
        false => grad + master.clone() * decay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Flex = burn_flex::Flex<f32, i32>;

    /// The same in f64, weight by weight.
    fn exactly(
        optimizer: &Optimizer,
        weights: &mut [f64],
        grads: &[f32],
        slots: &mut [Vec<f64>],
        rate: f64,
        step: i32,
    ) {
        for (i, (w, g)) in weights.iter_mut().zip(grads).enumerate() {
            let g = f64::from(*g);
            match optimizer {
                Optimizer::RmsProp(o) => {
                    let g = g + o.weight_decay * *w;
                    let v = &mut slots[0][i];
                    *v = o.alpha * *v + (1.0 - o.alpha) * g * g;
                    *w -= rate * g / (v.sqrt() + o.eps);
                }
                Optimizer::AdamW(o) => {
                    slots[0][i] = o.beta1 * slots[0][i] + (1.0 - o.beta1) * g;
                    slots[1][i] = o.beta2 * slots[1][i] + (1.0 - o.beta2) * g * g;
                    let m = slots[0][i] / (1.0 - o.beta1.powi(step));
                    let v = slots[1][i] / (1.0 - o.beta2.powi(step));
                    *w -= rate * (o.weight_decay * *w + m / (v.sqrt() + o.eps));
                }
                Optimizer::Sgd(o) => *w -= rate * (g + o.weight_decay * *w),
            }
        }
    }

    /// Five steps both ways, with weight decay, over more weights than one thread takes. Each is
    /// one rounding of f32 or a few away from f64: at most 2.2e-7 of the largest was seen.
    #[test]
    fn updates_are_those_of_f64() {
        let device = Default::default();
        let weight_decay = 0.01;
        let optimizers = [
            Optimizer::RmsProp(RmsProp {
                alpha: 0.999,
                eps: 1e-8,
                weight_decay,
            }),
            Optimizer::AdamW(AdamW {
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay,
            }),
            Optimizer::Sgd(Sgd { weight_decay }),
        ];
        let values = |seed: usize| -> Vec<f32> {
            let value = |i: usize| ((i * 37 + seed * 11) % 1001) as f32 / 500.0 - 1.0;
            (0..40_000).map(value).collect()
        };
        let tensor = |values: &[f32]| Tensor::<Flex, 1>::from_floats(values, &device);
        let double = |values: &[f32]| -> Vec<f64> { values.iter().map(|&x| x.into()).collect() };
        for optimizer in optimizers {
            let (mut one, mut other) = (tensor(&values(1)), tensor(&values(1)));
            let mut exact = double(&values(1));
            let mut slots = [Vec::new(), Vec::new()];
            slots[1].resize_with(optimizer.slots(), || Tensor::zeros_like(&other));
            let mut exact_slots = vec![vec![0.0; exact.len()]; optimizer.slots()];
            for step in 1..=5 {
                let grad = values(step + 1);
                one = optimizer.update(one, tensor(&grad), &mut slots[0], 0.01, step);
                other = optimizer.update_on_device(other, tensor(&grad), &mut slots[1], 0.01, step);
                exactly(
                    &optimizer,
                    &mut exact,
                    &grad,
                    &mut exact_slots,
                    0.01,
                    step as i32,
                );
            }
            assert_eq!(slots[0].len(), optimizer.slots());
            for (weights, slots) in [(one, &slots[0]), (other, &slots[1])] {
                let found = std::iter::once(&weights).chain(slots);
                let exact = std::iter::once(&exact).chain(&exact_slots);
                for (found, exact) in found.zip(exact) {
                    let found = double(&found.clone().into_data().to_vec::<f32>().unwrap());
                    let largest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
                    let gaps = found.iter().zip(exact).map(|(a, b)| (a - b).abs());
                    let gap = gaps.fold(0.0, f64::max) / largest;
                    println!("{optimizer:?}: {gap:.2e}");
                    assert!(gap < 1e-6, "{optimizer:?}: {gap} of the largest");
                }
            }
        }
    }
}
