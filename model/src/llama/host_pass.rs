//! A block's forward and backward pass over the host's memory, for CPU backends.
//!
//! Matrix products are the backend's; everything between them is one pass over memory on all
//! cores, where under autodiff each elementwise operation is a pass of its own on one core.

use burn::module::ParamId;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rayon::prelude::*;

use super::layout::PackedBatch;
use super::transformer::{Attention, Block, Llama};
use crate::host;
use crate::nn::{Adapter, Linear, RmsNorm};

/// Where the tokens of a batch lie in attention's rectangles, and how they turn.
pub struct HostBatch {
    grids: Vec<HostGrid>,
    /// For each token its cells, by grid; the first one's output is the token's.
    cells_of: Vec<Vec<(usize, usize)>>,
    /// `[tokens, head_dim]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// One rectangle `[rows, longest]`.
struct HostGrid {
    longest: usize,
    /// Of its rows.
    lengths: Vec<usize>,
    /// For each cell its token; none where it is padding.
    cells: Vec<Option<usize>>,
}

/// What a block's backward pass needs of its forward pass.
pub struct Kept<B: Backend> {
    input: Tensor<B, 2>,
    attention_scales: Vec<f32>,
    attention_input: Tensor<B, 2>,
    grids: Vec<KeptGrid<B>>,
    mixed: Tensor<B, 2>,
    middle: Tensor<B, 2>,
    mlp_scales: Vec<f32>,
    mlp_input: Tensor<B, 2>,
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    gated: Tensor<B, 2>,
}

/// The same of one rectangle's attention.
struct KeptGrid<B: Backend> {
    /// `[rows, kv_heads, group · longest, head_dim]`, scaled.
    queries: Tensor<B, 4>,
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
    /// `[rows, kv_heads, group · longest, longest]`.
    weights: Tensor<B, 4>,
}

/// Takes flat gradients of parameters.
pub trait Sink<B: Backend> {
    /// Whether this parameter is trained; the gradients of others are not computed.
    fn wants(&self, id: ParamId) -> bool;
    /// Takes the gradient `[n]`.
    fn take(&mut self, id: ParamId, grad: Tensor<B, 1>);
}

impl HostBatch {
    /// Of a packed batch, with the model's rotary angles.
    pub fn new<B: Backend>(model: &Llama<B>, batch: &PackedBatch<B>) -> Self {
        let mut cells_of = vec![Vec::new(); batch.tokens()];
        let mut grids: Vec<HostGrid> = Vec::with_capacity(batch.grids.len());
        for grid in &batch.grids {
            let lengths: Vec<usize> = grid.rows.iter().map(|&i| batch.places[i].len()).collect();
            grids.push(HostGrid {
                longest: grid.longest,
                cells: vec![None; lengths.len() * grid.longest],
                lengths,
            });
        }
        let rows = batch.grids.iter().enumerate().flat_map(|(number, grid)| {
            let rows = grid.rows.iter().enumerate();
            rows.map(move |(row, &sequence)| (sequence, number, row))
        });
        let mut rows: Vec<(usize, usize, usize)> = rows.collect();
        // A token's first cell lies in the sequence that laid it down.
        rows.sort_unstable();
        for (sequence, number, row) in rows {
            let (places, grid) = (&batch.places[sequence], &mut grids[number]);
            for i in 0..places.len() {
                let (cell, token) = (row * grid.longest + i, places.at(i));
                grid.cells[cell] = Some(token);
                cells_of[token].push((number, cell));
            }
        }
        let (cos, sin) = model.rope.at(batch.positions.clone());
        Self {
            grids,
            cells_of,
            cos: host::take(cos),
            sin: host::take(sin),
        }
    }

    /// Heads of tokens `[tokens, heads · width]` → for each grid
    /// `[rows, kv_heads, group · longest, width]`; zeros for padding.
    fn to_grids<B: Backend>(&self, x: Tensor<B, 2>, kv: usize, way: Way) -> Vec<Tensor<B, 4>> {
        let [tokens, across] = x.dims();
        let width = self.cos.len() / tokens;
        let device = x.device();
        let x = host::take(x);
        let grid = |(number, grid): (usize, &HostGrid)| {
            let values = self.fill_grid(&x, width, number, way);
            let group = across / width / kv;
            let shape = [grid.lengths.len(), kv, group * grid.longest, width];
            Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
        };
        self.grids.iter().enumerate().map(grid).collect()
    }

    /// The values of grid `number`, `[rows, heads, longest, width]`.
    fn fill_grid(&self, x: &[f32], width: usize, number: usize, way: Way) -> Vec<f32> {
        let grid = &self.grids[number];
        let across = x.len() / self.cells_of.len();
        let mut values = vec![0f32; grid.cells.len() * across];
        let fill = |(row, values): (usize, &mut [f32])| {
            for i in 0..grid.lengths[row] {
                let cell = row * grid.longest + i;
                let Some(token) = grid.cells[cell] else {
                    continue;
                };
                if matches!(way, Way::Owner) && self.cells_of[token][0] != (number, cell) {
                    continue;
                }
                let from = &x[token * across..(token + 1) * across];
                for (head, from) in from.chunks_exact(width).enumerate() {
                    let at = (head * grid.longest + i) * width;
                    let to = &mut values[at..at + width];
                    match way {
                        Way::Turned(scale) => self.turn(to, from, token, scale, 1.0),
                        Way::Plain | Way::Owner => to.copy_from_slice(from),
                    }
                }
            }
        };
        let row = grid.longest * across;
        values.par_chunks_mut(row.max(1)).enumerate().for_each(fill);
        values
    }

    /// The way back, `[rows, kv_heads, group · longest, width]` of each grid →
    /// `[tokens, heads · width]`: the transpose of [`Self::to_grids`] in the same way.
    fn to_tokens<B: Backend>(
        &self,
        grids: Vec<Tensor<B, 4>>,
        heads: usize,
        way: Way,
    ) -> Tensor<B, 2> {
        let tokens = self.cells_of.len();
        let width = self.cos.len() / tokens;
        let across = heads * width;
        let device = grids.first().map(Tensor::device).unwrap_or_default();
        let grids: Vec<Vec<f32>> = grids.into_iter().map(host::take).collect();
        let mut out = vec![0f32; tokens * across];
        let fill = |(token, out): (usize, &mut [f32])| {
            let cells = match way {
                Way::Owner => &self.cells_of[token][..1],
                Way::Plain | Way::Turned(_) => &self.cells_of[token][..],
            };
            let mut turned = vec![0f32; width];
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                for &(number, cell) in cells {
                    let longest = self.grids[number].longest;
                    let (row, i) = (cell / longest, cell % longest);
                    let at = ((row * heads + head) * longest + i) * width;
                    let from = &grids[number][at..at + width];
                    out.iter_mut().zip(from).for_each(|(to, x)| *to += x);
                }
                if let Way::Turned(scale) = way {
                    self.turn(&mut turned, out, token, scale, -1.0);
                    out.copy_from_slice(&turned);
                }
            }
        };
        let grain = (tokens / 64).max(1);
        out.par_chunks_mut(across)
            .with_min_len(grain)
            .enumerate()
            .for_each(fill);
        Tensor::from_data(
            TensorData::new(out, [tokens, across]),
            (&device, DType::F32),
        )
    }

    /// Turns one head to its token's position, or back with `sign` −1.
    fn turn(&self, to: &mut [f32], from: &[f32], token: usize, scale: f32, sign: f32) {
        let width = from.len();
        let half = width / 2;
        let (cos, sin) = (
            &self.cos[token * width..][..width],
            &self.sin[token * width..][..width],
        );
        for i in 0..half {
            let (a, b) = (from[i], from[i + half]);
            to[i] = (a * cos[i] + sign * b * sin[i]) * scale;
            to[i + half] = (b * cos[i + half] + sign * a * sin[i + half]) * scale;
        }
    }
}

/// How heads go between tokens and cells.
#[derive(Clone, Copy)]
enum Way {
    /// As they are, to every cell of their token.
    Plain,
    /// Turned to their positions and scaled.
    Turned(f32),
    /// The first cell only.
    Owner,
}

/// A linear layer's gradient by its input, given the one by its output.
fn linear_back<B: Backend>(
    linear: &Linear<B>,
    input: &Tensor<B, 2>,
    grad: Tensor<B, 2>,
    sink: &mut dyn Sink<B>,
) -> Tensor<B, 2> {
    if sink.wants(linear.weight.id) {
        let of_weight = grad.clone().transpose().matmul(input.clone());
        sink.take(linear.weight.id, of_weight.reshape([-1]));
    }
    if let Some(bias) = &linear.bias
        && sink.wants(bias.id)
    {
        sink.take(bias.id, grad.clone().sum_dim(0).reshape([-1]));
    }
    let of_input = grad.clone().matmul(linear.weight.val());
    match &linear.adapter {
        Some(adapter) => of_input + adapter_back(adapter, input, grad, sink),
        None => of_input,
    }
}

/// An adapter's part of its layer's gradient by the input; x · Aᵀ is cheaper to compute again
/// than to keep.
fn adapter_back<B: Backend>(
    adapter: &Adapter<B>,
    input: &Tensor<B, 2>,
    grad: Tensor<B, 2>,
    sink: &mut dyn Sink<B>,
) -> Tensor<B, 2> {
    let (a, b) = (&adapter.lora_a, &adapter.lora_b);
    if sink.wants(b.id) {
        let narrow = input.clone().matmul(a.val().transpose()) * adapter.scale;
        let of_b = grad.clone().transpose().matmul(narrow);
        sink.take(b.id, of_b.reshape([-1]));
    }
    let of_narrow = grad.matmul(b.val()) * adapter.scale;
    if sink.wants(a.id) {
        let of_a = of_narrow.clone().transpose().matmul(input.clone());
        sink.take(a.id, of_a.reshape([-1]));
    }
    of_narrow.matmul(a.val())
}

/// RMSNorm of rows; also each row's scale 1/√(mean x² + ε).
fn norm<B: Backend>(norm: &RmsNorm<B>, x: &Tensor<B, 2>) -> (Tensor<B, 2>, Vec<f32>) {
    let weight = host::take(norm.weight.val());
    let mut scales = Vec::new();
    let normed = host::map(x.clone(), |x| {
        scales = host::rms_norm_scales(x, &weight, norm.eps as f32);
    });
    (normed, scales)
}

/// The gradient of RMSNorm's input `x`, given `added` that reaches it by another way, too.
fn norm_back<B: Backend>(
    norm: &RmsNorm<B>,
    x: &Tensor<B, 2>,
    scales: &[f32],
    grad: Tensor<B, 2>,
    added: Option<Tensor<B, 2>>,
    sink: &mut dyn Sink<B>,
) -> Tensor<B, 2> {
    let weight = host::take(norm.weight.val());
    let (x, added) = (host::take(x.clone()), added.map(host::take));
    let device = grad.device();
    let mut of_weight = Vec::new();
    let grad = host::map(grad, |grad| {
        of_weight = host::rms_norm_back(grad, &x, scales, &weight, added.as_deref());
    });
    if sink.wants(norm.weight.id) {
        sink.take(norm.weight.id, flat(of_weight, &device));
    }
    grad
}

fn flat<B: Backend>(values: Vec<f32>, device: &B::Device) -> Tensor<B, 1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

impl<B: Backend> Block<B> {
    /// `[tokens, hidden]` → `[tokens, hidden]`, and what the way back needs.
    pub fn forward_on_host(
        &self,
        input: Tensor<B, 2>,
        batch: &HostBatch,
    ) -> (Tensor<B, 2>, Kept<B>) {
        let attention = &self.self_attn;
        let (x, attention_scales) = norm(&self.input_layernorm, &input);
        let (grids, mixed) = attention.attend_on_host(&x, batch);
        let middle = input.clone() + attention.o_proj.forward(mixed.clone());
        let (mlp_input, mlp_scales) = norm(&self.post_attention_layernorm, &middle);
        let gate = self.mlp.gate_proj.forward(mlp_input.clone());
        let up = self.mlp.up_proj.forward(mlp_input.clone());
        let of_up = host::take(up.clone());
        let gated = host::map(gate.clone(), |gate| host::swiglu(gate, &of_up));
        let out = middle.clone() + self.mlp.down_proj.forward(gated.clone());
        let kept = Kept {
            input,
            attention_scales,
            attention_input: x,
            grids,
            mixed,
            middle,
            mlp_scales,
            mlp_input,
            gate,
            up,
            gated,
        };
        (out, kept)
    }

    /// The gradient by the input, given the one by the output; those of the parameters go to
    /// `sink`.
    pub fn backward_on_host(
        &self,
        grad: Tensor<B, 2>,
        kept: Kept<B>,
        batch: &HostBatch,
        sink: &mut dyn Sink<B>,
    ) -> Tensor<B, 2> {
        let mlp = &self.mlp;
        let of_gated = linear_back(&mlp.down_proj, &kept.gated, grad.clone(), sink);
        let mut of_gate = host::take(kept.gate);
        let of_up = host::map(kept.up, |up| {
            host::swiglu_back(&mut of_gate, up, &host::take(of_gated))
        });
        let shape = of_up.dims();
        let of_gate = Tensor::from_data(
            TensorData::new(of_gate, shape),
            (&of_up.device(), DType::F32),
        );
        let of_input = linear_back(&mlp.gate_proj, &kept.mlp_input, of_gate, sink)
            + linear_back(&mlp.up_proj, &kept.mlp_input, of_up, sink);
        let norm = &self.post_attention_layernorm;
        let grad = norm_back(
            norm,
            &kept.middle,
            &kept.mlp_scales,
            of_input,
            Some(grad),
            sink,
        );

        let attention = &self.self_attn;
        let of_mixed = linear_back(&attention.o_proj, &kept.mixed, grad.clone(), sink);
        let x = &kept.attention_input;
        let of_x = attention.attend_back_on_host(x, of_mixed, kept.grids, batch, sink);
        let norm = &self.input_layernorm;
        norm_back(
            norm,
            &kept.input,
            &kept.attention_scales,
            of_x,
            Some(grad),
            sink,
        )
    }
}

impl<B: Backend> Attention<B> {
    /// What attention makes of normed `x` before its last layer, `[tokens, heads · head_dim]`.
    fn attend_on_host(
        &self,
        x: &Tensor<B, 2>,
        batch: &HostBatch,
    ) -> (Vec<KeptGrid<B>>, Tensor<B, 2>) {
        let kv = self.kv_heads;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let grids = |linear: &Linear<B>, way| batch.to_grids(linear.forward(x.clone()), kv, way);
        let queries = grids(&self.q_proj, Way::Turned(scale));
        let keys = grids(&self.k_proj, Way::Turned(1.0));
        let values = grids(&self.v_proj, Way::Plain);
        let mut kept = Vec::with_capacity(batch.grids.len());
        let mut mixed = Vec::with_capacity(batch.grids.len());
        let heads = queries.into_iter().zip(keys).zip(values);
        for (((queries, keys), values), grid) in heads.zip(&batch.grids) {
            let scores = queries.clone().matmul(keys.clone().transpose());
            let each = self.heads * grid.longest;
            let weights = host::map(scores, |scores| {
                host::softmax_used(scores, grid.longest, |row| grid.used(row, each));
            });
            mixed.push(weights.clone().matmul(values.clone()));
            kept.push(KeptGrid {
                queries,
                keys,
                values,
                weights,
            });
        }
        (kept, batch.to_tokens(mixed, self.heads, Way::Owner))
    }

    /// The gradient by `x`, given the one by what [`Self::attend_on_host`] made of it.
    fn attend_back_on_host(
        &self,
        x: &Tensor<B, 2>,
        of_mixed: Tensor<B, 2>,
        kept: Vec<KeptGrid<B>>,
        batch: &HostBatch,
        sink: &mut dyn Sink<B>,
    ) -> Tensor<B, 2> {
        let (heads, kv) = (self.heads, self.kv_heads);
        let of_mixed = batch.to_grids(of_mixed, kv, Way::Owner);
        let (mut of_queries, mut of_keys, mut of_values) = (Vec::new(), Vec::new(), Vec::new());
        for ((kept, of_mixed), grid) in kept.into_iter().zip(of_mixed).zip(&batch.grids) {
            of_values.push(kept.weights.clone().transpose().matmul(of_mixed.clone()));
            let of_weights = of_mixed.matmul(kept.values.transpose());
            let weights = host::take(kept.weights);
            let each = heads * grid.longest;
            let of_scores = host::map(of_weights, |of_weights| {
                host::softmax_back(of_weights, &weights, grid.longest, |row| {
                    grid.used(row, each)
                });
            });
            of_queries.push(of_scores.clone().matmul(kept.keys));
            of_keys.push(of_scores.transpose().matmul(kept.queries));
        }
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let of_queries = batch.to_tokens(of_queries, heads, Way::Turned(scale));
        let of_keys = batch.to_tokens(of_keys, kv, Way::Turned(1.0));
        let of_values = batch.to_tokens(of_values, kv, Way::Plain);
        linear_back(&self.q_proj, x, of_queries, sink)
            + linear_back(&self.k_proj, x, of_keys, sink)
            + linear_back(&self.v_proj, x, of_values, sink)
    }
}

impl HostGrid {
    /// How many keys row `row` of all scores sees: its own position and what stands before it.
    fn used(&self, row: usize, rows_of_sequence: usize) -> usize {
        let (sequence, at) = (row / rows_of_sequence, row % self.longest);
        match at < self.lengths[sequence] {
            true => at + 1,
            false => 0,
        }
    }
}

/// Summed log-probabilities of tokens under a model's head, over the host's memory.
pub struct HostHead<B: Backend> {
    picked: Tensor<B, 2>,
    scales: Vec<f32>,
    normed: Tensor<B, 2>,
    /// Probabilities `[rows, vocab]`.
    probabilities: Tensor<B, 2>,
    tokens: Vec<usize>,
    /// Log-probability of each row's token.
    pub logps: Vec<f32>,
}

impl<B: Backend> Llama<B> {
    /// Log-probabilities of `tokens`, one a row, from the last block's output there
    /// `[rows, hidden]`.
    pub fn head_on_host(&self, picked: Tensor<B, 2>, tokens: Vec<usize>) -> HostHead<B> {
        let (normed, scales) = norm(&self.norm, &picked);
        let vocab = self.embed_tokens.dims()[0];
        let mut logps = Vec::new();
        let probabilities = host::map(self.project(normed.clone()), |logits| {
            logps = host::log_softmax_at(logits, vocab, &tokens);
        });
        HostHead {
            picked,
            scales,
            normed,
            probabilities,
            tokens,
            logps,
        }
    }

    /// The gradient of Σ wᵢ · logpᵢ by the head's input.
    pub fn head_backward_on_host(
        &self,
        head: HostHead<B>,
        weights: &[f32],
        sink: &mut dyn Sink<B>,
    ) -> Tensor<B, 2> {
        let vocab = self.embed_tokens.dims()[0];
        let of_logits = host::map(head.probabilities, |p| {
            host::log_softmax_back(p, vocab, &head.tokens, weights);
        });
        let of_normed = match &self.lm_head {
            Some(linear) => linear_back(linear, &head.normed, of_logits, sink),
            None => {
                if sink.wants(self.embed_tokens.id) {
                    let of_weight = of_logits.clone().transpose().matmul(head.normed);
                    sink.take(self.embed_tokens.id, of_weight.reshape([-1]));
                }
                of_logits.matmul(self.embed_tokens.val())
            }
        };
        norm_back(
            &self.norm,
            &head.picked,
            &head.scales,
            of_normed,
            None,
            sink,
        )
    }

    /// The embeddings' gradient, given that of their rows `[tokens, hidden]`.
    pub fn embed_backward_on_host(
        &self,
        batch: &PackedBatch<B>,
        grad: Tensor<B, 2>,
        sink: &mut dyn Sink<B>,
    ) {
        if !sink.wants(self.embed_tokens.id) {
            return;
        }
        let [vocab, hidden] = self.embed_tokens.dims();
        let device = grad.device();
        let ids: Vec<i64> = batch.ids.to_data().iter::<i64>().collect();
        let mut sums = vec![0f32; vocab * hidden];
        for (id, grad) in ids.into_iter().zip(host::take(grad).chunks_exact(hidden)) {
            let sums = &mut sums[id as usize * hidden..][..hidden];
            sums.iter_mut().zip(grad).for_each(|(sum, x)| *sum += x);
        }
        sink.take(self.embed_tokens.id, flat(sums, &device));
    }
}
