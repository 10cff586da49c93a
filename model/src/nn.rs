//! The layers that the models are made of, computed as transformers computes them.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use crate::host;

/// `y = x · weightᵀ + bias`, weight in the file's layout `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    pub weight: Param<Tensor<B, 2>>,
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// A change of the weight that is trained in its place.
    pub adapter: Option<Adapter<B>>,
}

impl<B: Backend> Linear<B> {
    /// `[tokens, in]` → `[tokens, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = x.clone().matmul(self.weight.val().transpose());
        let y = match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        };
        match &self.adapter {
            Some(adapter) => {
                let dtype = y.dtype();
                from_f32(to_f32(y) + adapter.forward(x), dtype)
            }
            None => y,
        }
    }

    /// The same layer with its adapter added to the weight, in f32 and rounded to the weight's
    /// dtype.
    pub fn merged(self) -> Self {
        let Some(adapter) = self.adapter else {
            return self;
        };
        let weight = self.weight.val();
        let dtype = weight.dtype();
        let merged = from_f32(to_f32(weight) + adapter.change(), dtype);
        Self {
            weight: Param::from_tensor(merged.detach()),
            bias: self.bias,
            adapter: None,
        }
    }
}

/// A change of rank `rank` of a linear layer's weight, `scale · B · A` (LoRA, arXiv 2106.09685).
///
/// Always f32, also beside bf16 weights: updates of a low rate would vanish in bf16, and it is
/// small. That is what PEFT does, too.
#[derive(Module, Debug)]
pub struct Adapter<B: Backend> {
    /// A, `[rank, in]`.
    pub lora_a: Param<Tensor<B, 2>>,
    /// B, `[out, rank]`.
    pub lora_b: Param<Tensor<B, 2>>,
    pub scale: f64,
}

impl<B: Backend> Adapter<B> {
    /// What is added to the layer's output, `[tokens, in]` → f32 `[tokens, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let narrow = to_f32(x).matmul(self.lora_a.val().transpose()) * self.scale;
        narrow.matmul(self.lora_b.val().transpose())
    }

    /// What is added to the layer's weight, f32 `[out, in]`.
    pub fn change(&self) -> Tensor<B, 2> {
        self.lora_b.val().matmul(self.lora_a.val()) * self.scale
    }
}

/// Root-mean-square normalisation: in f32, cast back, then scaled (the order of transformers).
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    pub weight: Param<Tensor<B, 1>>,
    pub eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// `[tokens, hidden]` → the same shape and dtype.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = x.dtype();
        let x = to_f32(x);
        let mean_square = x.clone().powi_scalar(2).mean_dim(1);
        let normed = x / (mean_square + self.eps).sqrt();
        from_f32(normed, dtype) * self.weight.val().unsqueeze()
    }
}

/// Layer normalisation, in f32.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    pub weight: Param<Tensor<B, 1>>,
    pub bias: Param<Tensor<B, 1>>,
    pub eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// `[tokens, hidden]` → the same shape and dtype.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let dtype = x.dtype();
        let x = to_f32(x);
        let centred = x.clone() - x.mean_dim(1);
        let variance = centred.clone().powi_scalar(2).mean_dim(1);
        let normed = centred / (variance + self.eps).sqrt();
        let scaled = normed * to_f32(self.weight.val()).unsqueeze();
        from_f32(scaled + to_f32(self.bias.val()).unsqueeze(), dtype)
    }

    /// The norm of `x + y`; in one pass where `on_host`, which f32 on a CPU allows.
    pub fn add(&self, x: Tensor<B, 2>, y: Tensor<B, 2>, on_host: bool) -> Tensor<B, 2> {
        if !on_host {
            return self.forward(x + y);
        }
        let (y, weight, bias) = (
            host::take(y),
            host::take(self.weight.val()),
            host::take(self.bias.val()),
        );
        host::map(x, |x| {
            host::add_layer_norm(x, &y, &weight, &bias, self.eps as f32)
        })
    }
}

/// `x` in f32; no operation where it is f32 already.
pub fn to_f32<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    from_f32(x, DType::F32)
}

/// `x` in `dtype`; no operation where it has that dtype already.
pub fn from_f32<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
