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

    /// Five steps both ways, with weight decay, over more weights than one thread takes.
    #[test]
    fn one_pass_does_what_tensor_operations_do() {
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
        let values = |seed: usize| {
            let values = (0..40_000).map(|i| ((i * 37 + seed * 11) % 1001) as f32 / 500.0 - 1.0);
            Tensor::<Flex, 1>::from_floats(values.collect::<Vec<f32>>().as_slice(), &device)
        };
        for optimizer in optimizers {
            let (mut one, mut other) = (values(1), values(1));
            let mut slots = [Vec::new(), Vec::new()];
            slots[1].resize_with(optimizer.slots(), || Tensor::zeros_like(&other));
            for step in 1..=5 {
                one = optimizer.update(one, values(step + 1), &mut slots[0], 0.01, step);
                let grad = values(step + 1);
                other = optimizer.update_on_device(other, grad, &mut slots[1], 0.01, step);
            }
            let pairs = slots[0].iter().zip(&slots[1]).chain([(&one, &other)]);
            for (one, other) in pairs {
                let gap = (one.clone() - other.clone()).abs().max().into_scalar();
                let largest = other.clone().abs().max().into_scalar();
                assert!(gap < 2e-6 * largest, "{optimizer:?}: {gap} of {largest}");
            }
            assert_eq!(slots[0].len(), optimizer.slots());
        }
    }
}
