//! The layers that the models are made of, computed as transformers computes them.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::ops::{ModelOps, TrainingOps, cast, to_f32};

/// `y = x · weightᵀ + bias`, weight in the file's layout `[out, in]`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`.
    pub weight: Param<Tensor<B, 2>>,
    /// How many outputs there are where the weight is packed ([`ModelOps::pack_weight`]).
    pub packed: Option<usize>,
    /// `[out]`; `None` where the layer has none.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// A change of the weight that is trained in its place.
    pub adapter: Option<Adapter<B>>,
}

impl<B: ModelOps> Linear<B> {
    /// `[tokens, in]` → `[tokens, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let bias = self.bias.as_ref().map(Param::val);
        if let Some(outputs) = self.packed {
            return B::packed_linear_layer(x, self.weight.val(), outputs, bias);
        }
        let Some(adapter) = &self.adapter else {
            return B::linear_layer(x, self.weight.val(), bias);
        };
        let y = B::linear_layer(x.clone(), self.weight.val(), bias);
        let dtype = y.dtype();
        cast(to_f32(y) + adapter.forward(x), dtype)
    }

    /// The same layer for products of few rows, without an adapter: its weight is packed where the
    /// backend has products with such, whose results are f32.
    pub fn for_few_rows(self) -> Self {
        let outputs = self.weight.dims()[0];
        let Some(packed) = B::pack_weight(self.weight.val()) else {
            return self;
        };
        let bias = self.bias.map(|bias| to_f32(bias.val()));
        Self {
            weight: Param::from_tensor(packed),
            packed: Some(outputs),
            bias: bias.map(Param::from_tensor),
            adapter: None,
        }
    }
}

impl<B: TrainingOps> Linear<B> {
    /// A tensor `[1]` whose backward pass begins with `grad` as the gradient by
    /// `residual + self.forward(x)`, which is not computed.
    pub fn with_gradient(
        &self,
        residual: Tensor<B, 2>,
        x: Tensor<B, 2>,
        grad: Tensor<B::InnerBackend, 2>,
    ) -> Tensor<B, 1> {
        if self.bias.is_some() {
            return B::with_gradient(residual + self.forward(x), grad);
        }
        let seed = |x| B::linear_layer_with_gradient(residual, x, self.weight.val(), grad.clone());
        match &self.adapter {
            None => seed(x),
            Some(adapter) => {
                let change = adapter.forward(x.clone());
                seed(x) + B::with_gradient(change, to_f32(grad.clone()))
            }
        }
    }
}

impl<B: Backend> Linear<B> {
    /// The same layer with its adapter added to the weight, in f32 and rounded to the weight's
    /// dtype.
    pub fn merged(self) -> Self {
        let Some(adapter) = self.adapter else {
            return self;
        };
        let weight = self.weight.val();
        let dtype = weight.dtype();
        let merged = cast(to_f32(weight) + adapter.change(), dtype);
        Self {
            weight: Param::from_tensor(merged.detach()),
            packed: None,
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
    /// What the product B · A is multiplied with.
    pub scale: f64,
}

impl<B: ModelOps> Adapter<B> {
    /// What is added to the layer's output, `[tokens, in]` → f32 `[tokens, out]`.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let narrow = B::linear_layer(to_f32(x), self.lora_a.val(), None) * self.scale;
        B::linear_layer(narrow, self.lora_b.val(), None)
    }
}

impl<B: Backend> Adapter<B> {
    /// What is added to the layer's weight, f32 `[out, in]`.
    pub fn change(&self) -> Tensor<B, 2> {
        self.lora_b.val().matmul(self.lora_a.val()) * self.scale
    }
}

/// Root-mean-square normalisation: in f32, cast back, then scaled (the order of transformers).
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl<B: ModelOps> RmsNorm<B> {
    /// `[tokens, hidden]` → the same shape and dtype.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::rms_norm(x, self.weight.val(), self.eps)
    }

    /// `x + residual` and its norm.
    pub fn add(&self, x: Tensor<B, 2>, residual: Tensor<B, 2>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        B::residual_rms_norm(x, residual, self.weight.val(), self.eps)
    }
}

/// Layer normalisation, in f32.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// `[hidden]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[hidden]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Added to the variance.
    pub eps: f64,
}

impl<B: ModelOps> LayerNorm<B> {
    /// `[tokens, hidden]` → the same shape and dtype.
    pub fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::residual_layer_norm(x, None, self.weight.val(), self.bias.val(), self.eps)
    }

    /// The norm of `x + residual`.
    pub fn add(&self, x: Tensor<B, 2>, residual: Tensor<B, 2>) -> Tensor<B, 2> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        B::residual_layer_norm(x, Some(residual), weight, bias, self.eps)
    }
}
