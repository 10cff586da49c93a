//! A Llama prepared for generation: weights in the layout that matrix products read fastest,
//! prompts into prefixes, and one token a slot behind them.

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::config::LlamaConfig;
use super::layout::{MASKED, ints};
use super::rope::{Factors, Rope};
use super::slot_cache::{Prefix, SlotCache, Writes, rounded_width};
use super::transformer::{Attention, Block, Llama};
use crate::host::is_host;
use crate::nn::{Linear, RmsNorm, from_f32, to_f32};

/// A Llama for generation only. Results differ from [`Llama`]'s by rounding.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    embed_tokens: Tensor<B, 2>,
    layers: Vec<Layer<B>>,
    norm: RmsNorm<B>,
    head: Projection<B>,
    rope: Rope<B>,
    host: bool,
    pub config: LlamaConfig,
}

#[derive(Debug)]
struct Layer<B: Backend> {
    attention_norm: RmsNorm<B>,
    /// Queries and keys side by side, so that both are rotated at once.
    queries_keys: Projection<B>,
    values: Projection<B>,
    output: Projection<B>,
    mlp_norm: RmsNorm<B>,
    gate: Projection<B>,
    up: Projection<B>,
    down: Projection<B>,
}

/// `y = x · weight + bias`, weight `[in, out]`, bias `[1, out]`.
#[derive(Debug)]
struct Projection<B: Backend> {
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 2>>,
}

impl<B: Backend> Projection<B> {
    /// Of weights in the file's layout `[out, in]`.
    fn new(weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>, host: bool) -> Self {
        let (dtype, device) = (weight.dtype(), weight.device());
        let transposed = weight.transpose();
        // CPU products of few rows spend most of their time on turning weights around; GPU ones
        // read either layout.
        let weight = match host {
            true => Tensor::from_data(transposed.into_data(), (&device, dtype)),
            false => transposed,
        };
        Self {
            weight,
            bias: bias.map(|b| b.unsqueeze()),
        }
    }

    fn of(linear: Linear<B>, host: bool) -> Self {
        Self::new(linear.weight.val(), linear.bias.map(|b| b.val()), host)
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let y = x.matmul(self.weight.clone());
        match &self.bias {
            Some(bias) => y + bias.clone(),
            None => y,
        }
    }
}

impl<B: Backend> Layer<B> {
    fn new(block: Block<B>, host: bool) -> Self {
        let Attention {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            ..
        } = block.self_attn;
        let weight = Tensor::cat(vec![q_proj.weight.val(), k_proj.weight.val()], 0);
        let bias = match (q_proj.bias, k_proj.bias) {
            (Some(q), Some(k)) => Some(Tensor::cat(vec![q.val(), k.val()], 0)),
            _ => None,
        };
        Self {
            attention_norm: block.input_layernorm,
            queries_keys: Projection::new(weight, bias, host),
            values: Projection::of(v_proj, host),
            output: Projection::of(o_proj, host),
            mlp_norm: block.post_attention_layernorm,
            gate: Projection::of(block.mlp.gate_proj, host),
            up: Projection::of(block.mlp.up_proj, host),
            down: Projection::of(block.mlp.down_proj, host),
        }
    }

    fn feed_forward(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        let normed = self.mlp_norm.forward(hidden.clone());
        let gate = silu(self.gate.forward(normed.clone()));
        hidden + self.down.forward(gate * self.up.forward(normed))
    }
}

impl<B: Backend> Decoder<B> {
    /// Takes a model over, layer by layer.
    pub fn new(model: Llama<B>, config: &LlamaConfig) -> Self {
        let host = is_host::<B>(&model.device());
        let embed_tokens = model.embed_tokens.val();
        let head = match model.lm_head {
            Some(head) => Projection::of(head, host),
            None => Projection::new(embed_tokens.clone(), None, host),
        };
        let layers = model.layers.into_iter();
        Self {
            embed_tokens,
            layers: layers.map(|block| Layer::new(block, host)).collect(),
            norm: model.norm,
            head,
            rope: model.rope,
            host,
            config: config.clone(),
        }
    }

    /// The device that the weights live on.
    pub fn device(&self) -> B::Device {
        self.embed_tokens.device()
    }

    /// The dtype of weights, activations and cache.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.dtype()
    }

    /// Whether it runs on the host's cores.
    pub fn on_host(&self) -> bool {
        self.host
    }

    /// How caches for this backend are written.
    pub fn writes(&self) -> Writes {
        match self.host {
            true => Writes::Copies,
            false => Writes::Additions,
        }
    }

    /// Runs the next tokens of a prompt behind those in `prefix` and adds them to it; the last
    /// token's logits, f32 `[1, vocab]`.
    pub fn prefill(&self, tokens: &[u32], prefix: &mut Prefix<B>) -> Tensor<B, 2> {
        let device = self.device();
        let (new, before) = (tokens.len(), prefix.first().map_or(0, |p| p.1.dims()[1]));
        let (heads, kv, width) = self.heads();
        let group = heads / kv;
        let rope = self.rope_at((before..before + new).map(|p| p as i64).collect());
        let mask = causal_rows(before, new, group, &device);
        let ids = tokens.iter().map(|&t| t as i64).collect();
        let mut hidden = self.embed(ints(ids, &device));
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, hidden.clone(), &rope);
            let (k, v) = (k.permute([1, 2, 0]), v.swap_dims(0, 1));
            let (keys, values) = match prefix.get(index) {
                None => (k, v),
                Some((old_k, old_v)) => (
                    Tensor::cat(vec![old_k.clone(), k], 2),
                    Tensor::cat(vec![old_v.clone(), v], 1),
                ),
            };
            let q = q.reshape([new, kv, group, width]).permute([1, 2, 0, 3]);
            let scores = to_f32(q.reshape([kv, group * new, width]).matmul(keys.clone()));
            let [_, rows, columns] = scores.dims();
            // One row of a matrix for all: the broadcast that CPU backends do fast.
            let scores = scores.reshape([kv, rows * columns]) + mask.clone();
            let weights = softmax(scores.reshape([kv, rows, columns]), 2);
            let mixed = from_f32(weights, self.dtype()).matmul(values.clone());
            let mixed = mixed
                .reshape([kv, group, new, width])
                .permute([2, 0, 1, 3])
                .reshape([new, heads * width]);
            hidden = layer.feed_forward(hidden + layer.output.forward(mixed));
            match prefix.get_mut(index) {
                None => prefix.push((keys, values)),
                Some(place) => *place = (keys, values),
            }
        }
        self.logits(hidden.narrow(0, new - 1, 1))
    }

    /// Runs one token a row, row `i` behind the `lengths[i]` tokens of slot `i`, and keeps its
    /// keys and values there; logits, f32 `[rows, vocab]`.
    pub fn step(&self, ids: &[u32], lengths: &[usize], cache: &mut SlotCache<B>) -> Tensor<B, 2> {
        let device = self.device();
        let rows = ids.len();
        let (heads, kv, width) = self.heads();
        let group = heads / kv;
        let longest = lengths.iter().max().map_or(0, |l| l + 1);
        cache.reserve(longest, &device);
        let columns = rounded_width(longest);
        let rope = self.rope_at(lengths.iter().map(|&l| l as i64).collect());
        let mask = self.mask(lengths, columns, &device);
        let ids = ids.iter().map(|&t| t as i64).collect();
        let mut hidden = self.embed(ints(ids, &device));
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, hidden.clone(), &rope);
            cache.append(index, lengths, k, v);
            let Some((keys, values)) = cache.read(index, rows, columns) else {
                continue;
            };
            let scores = to_f32(q.reshape([rows, kv, group, width]).matmul(keys));
            let weights = from_f32(softmax(scores + mask.clone(), 3), self.dtype());
            let mixed = weights.matmul(values).reshape([rows, heads * width]);
            hidden = layer.feed_forward(hidden + layer.output.forward(mixed));
        }
        self.logits(hidden)
    }

    fn heads(&self) -> (usize, usize, usize) {
        let c = &self.config;
        (c.num_attention_heads, c.num_key_value_heads, c.head_dim)
    }

    fn embed(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_tokens.clone().select(0, ids)
    }

    fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        to_f32(self.head.forward(self.norm.forward(hidden)))
    }

    fn rope_at(&self, positions: Vec<i64>) -> Factors<B> {
        let (heads, kv, _) = self.heads();
        let positions = ints(positions, &self.device());
        self.rope.joint(positions, heads, kv, self.dtype())
    }

    /// Queries `[tokens, heads, head_dim]`, scaled, keys and values
    /// `[tokens, kv_heads, head_dim]`; the first two rotated.
    fn project(
        &self,
        layer: &Layer<B>,
        hidden: Tensor<B, 2>,
        rope: &Factors<B>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 3>) {
        let (heads, kv, width) = self.heads();
        let tokens = hidden.dims()[0];
        let x = layer.attention_norm.forward(hidden);
        let both = layer.queries_keys.forward(x.clone());
        let both = rope.apply(both.reshape([tokens, heads + kv, width]));
        let queries = both.clone().narrow(1, 0, heads);
        let keys = both.narrow(1, heads, kv);
        let values = layer.values.forward(x).reshape([tokens, kv, width]);
        (queries, keys, values)
    }

    /// Hides what lies behind each row's new token, f32 `[rows, kv_heads, group, columns]` on a
    /// host (CPU backends add equal shapes many times faster), else `[rows, 1, 1, columns]`.
    fn mask(&self, lengths: &[usize], columns: usize, device: &B::Device) -> Tensor<B, 4> {
        let (heads, kv, _) = self.heads();
        let copies = if self.host { heads } else { 1 };
        let mut cells = vec![0f32; lengths.len() * copies * columns];
        let each = (copies * columns).max(1);
        for (block, &length) in cells.chunks_exact_mut(each).zip(lengths) {
            for row in block.chunks_exact_mut(columns) {
                row[length + 1..].fill(MASKED);
            }
        }
        let shape = match self.host {
            true => [lengths.len(), kv, heads / kv, columns],
            false => [lengths.len(), 1, 1, columns],
        };
        Tensor::from_data(TensorData::new(cells, shape), (device, DType::F32))
    }
}

/// The causal mask of `new` tokens behind `before`, once for each head of a group, in one row.
fn causal_rows<B: Backend>(
    before: usize,
    new: usize,
    group: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let columns = before + new;
    let mut cells = vec![0f32; group * new * columns];
    for (i, row) in cells.chunks_exact_mut(columns).enumerate() {
        row[before + i % new + 1..].fill(MASKED);
    }
    let shape = [1, cells.len()];
    Tensor::from_data(TensorData::new(cells, shape), (device, DType::F32))
}
