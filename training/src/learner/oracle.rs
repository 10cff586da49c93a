//! A Llama written out plainly in f64, one sequence at a time: what the learner is held to. It
//! shares nothing with the learner but the weights.

use std::collections::HashMap;

use burn::module::{Param, ParamId};
use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_autodiff::Autodiff;
use sppo_model::llama::attention::Attention;
use sppo_model::llama::block::Block;
use sppo_model::llama::parameters::{ParameterVisitor, visit_parameters};
use sppo_model::llama::rope::inverse_frequencies;
use sppo_model::llama::{Llama, LlamaConfig};
use sppo_model::nn::{Linear, RmsNorm};

use crate::tokenise::TokenisedSequence;

// Not NdArray<f64>: it shares its device, and that device's default dtype, with NdArray<f32>.
type Double = Autodiff<burn_flex::Flex<f32, i32>>;
type Matrix = Tensor<Double, 2>;

/// Log-probabilities of sequences, and the gradients of their weighted sum by parameter.
pub struct Exact {
    pub logps: Vec<f64>,
    /// By place in the table.
    pub gradients: Vec<Vec<f64>>,
}

/// Of Σ wᵢ · logpᵢ over whole responses, of every parameter of `model`, frozen or not.
pub fn exact<B: Backend>(
    model: &Llama<B>,
    config: &LlamaConfig,
    sequences: &[&TokenisedSequence],
    weights: &[f64],
) -> Exact {
    let mut plain = Plain {
        config,
        leaves: HashMap::new(),
    };
    let each = sequences.iter().map(|sequence| plain.logp(model, sequence));
    let each: Vec<Tensor<Double, 1>> = each.collect();
    let value = |x: &Tensor<Double, 1>| x.clone().into_data().to_vec::<f64>().unwrap()[0];
    let logps = each.iter().map(value).collect();
    let weighted = each.into_iter().zip(weights).map(|(x, w)| x * *w);
    let total = weighted.reduce(|a, b| a + b).unwrap();
    let mut all = total.backward();
    let mut order = Order::default();
    visit_parameters(model, 0, &mut order);
    let gradient = |id: ParamId| {
        let leaf = plain.leaves.remove(&id).unwrap();
        let zero = || Tensor::zeros_like(&leaf.clone().inner());
        let gradient = leaf.grad_remove(&mut all).unwrap_or_else(zero);
        gradient.into_data().to_vec().unwrap()
    };
    Exact {
        logps,
        gradients: order.0.into_iter().map(gradient).collect(),
    }
}

/// The parameters in the order of the table.
#[derive(Default)]
struct Order(Vec<ParamId>);

impl<B: Backend> ParameterVisitor<B> for Order {
    fn visit<const D: usize>(&mut self, _index: usize, parameter: &Param<Tensor<B, D>>) {
        self.0.push(parameter.id);
    }
}

/// Parameters as leaves of one graph, vectors as matrices of one row.
struct Plain<'a> {
    config: &'a LlamaConfig,
    leaves: HashMap<ParamId, Matrix>,
}

impl Plain<'_> {
    fn leaf<B: Backend, const D: usize>(&mut self, param: &Param<Tensor<B, D>>) -> Matrix {
        let make = || {
            let data = param.val().into_data().convert::<f64>();
            let last = data.shape[D - 1];
            let shape = [data.num_elements() / last, last];
            let data = TensorData::new(data.to_vec::<f64>().unwrap(), shape);
            Tensor::from_data(data, (&Default::default(), DType::F64)).require_grad()
        };
        self.leaves.entry(param.id).or_insert_with(make).clone()
    }

    fn logp<B: Backend>(
        &mut self,
        model: &Llama<B>,
        sequence: &TokenisedSequence,
    ) -> Tensor<Double, 1> {
        let ids = |ids: &[u32]| -> Tensor<Double, 1, Int> {
            let ids: Vec<i64> = ids.iter().map(|&id| id.into()).collect();
            Tensor::from_data(ids.as_slice(), &Default::default())
        };
        let (count, start) = (sequence.ids.len(), sequence.response_start);
        let embeddings = self.leaf(&model.embed_tokens);
        let mut x = embeddings.clone().select(0, ids(&sequence.ids));
        for block in &model.layers {
            x = self.block(block, x);
        }
        let x = self.norm(&model.norm, x);
        let logits = match &model.lm_head {
            Some(head) => self.linear(head, x),
            None => x.matmul(embeddings.transpose()),
        };
        let of_targets = log_softmax(logits.narrow(0, start - 1, count - start), 1);
        let targets = ids(sequence.response()).unsqueeze_dim(1);
        of_targets.gather(1, targets).sum()
    }

    fn block<B: Backend>(&mut self, block: &Block<B>, x: Matrix) -> Matrix {
        let normed = self.norm(&block.input_layernorm, x.clone());
        let x = x + self.attention(&block.self_attn, normed);
        let normed = self.norm(&block.post_attention_layernorm, x.clone());
        let gate = silu(self.linear(&block.mlp.gate_proj, normed.clone()));
        let up = self.linear(&block.mlp.up_proj, normed);
        x + self.linear(&block.mlp.down_proj, gate * up)
    }

    fn norm<B: Backend>(&mut self, norm: &RmsNorm<B>, x: Matrix) -> Matrix {
        let mean_square = (x.clone() * x.clone()).mean_dim(1);
        x / (mean_square + norm.eps).sqrt() * self.leaf(&norm.weight)
    }

    fn linear<B: Backend>(&mut self, linear: &Linear<B>, x: Matrix) -> Matrix {
        let mut y = x.clone().matmul(self.leaf(&linear.weight).transpose());
        if let Some(bias) = &linear.bias {
            y = y + self.leaf(bias);
        }
        if let Some(adapter) = &linear.adapter {
            let narrow = x.matmul(self.leaf(&adapter.lora_a).transpose());
            y = y + narrow.matmul(self.leaf(&adapter.lora_b).transpose()) * adapter.scale;
        }
        y
    }

    /// Head by head.
    fn attention<B: Backend>(&mut self, attention: &Attention<B>, x: Matrix) -> Matrix {
        let (count, width) = (x.dims()[0], attention.head_dim);
        let q = self.linear(&attention.q_proj, x.clone());
        let k = self.linear(&attention.k_proj, x.clone());
        let v = self.linear(&attention.v_proj, x);
        let of_head = |x: &Matrix, head: usize| {
            let columns = head * width..(head + 1) * width;
            x.clone().slice([0..count, columns])
        };
        let hidden = (0..count * count).map(|i| i % count > i / count);
        let hidden = TensorData::new(hidden.collect::<Vec<bool>>(), [count, count]);
        let hidden = Tensor::from_data(hidden, &Default::default());
        let group = attention.heads / attention.kv_heads;
        let heads = (0..attention.heads).map(|head| {
            let query = self.rotated(of_head(&q, head));
            let key = self.rotated(of_head(&k, head / group));
            let scores = query.matmul(key.transpose()) / (width as f64).sqrt();
            let weights = softmax(scores.mask_fill(hidden.clone(), -1e30), 1);
            weights.matmul(of_head(&v, head / group))
        });
        let mixed = Tensor::cat(heads.collect(), 1);
        self.linear(&attention.o_proj, mixed)
    }

    /// Rows turned to positions 0, 1, …; the angles are f32, as in transformers.
    fn rotated(&self, x: Matrix) -> Matrix {
        let [count, width] = x.dims();
        let frequencies = inverse_frequencies(self.config);
        let table = |of: fn(f64) -> f64| -> Matrix {
            let at = |i: usize| {
                let frequency = frequencies[i % width % (width / 2)];
                of(f64::from((i / width) as f32 * frequency))
            };
            let values: Vec<f64> = (0..count * width).map(at).collect();
            let data = TensorData::new(values, [count, width]);
            Tensor::from_data(data, (&Default::default(), DType::F64))
        };
        let first = x.clone().slice([0..count, 0..width / 2]);
        let second = x.clone().slice([0..count, width / 2..width]);
        let swapped = Tensor::cat(vec![-second, first], 1);
        x * table(f64::cos) + swapped * table(f64::sin)
    }
}
