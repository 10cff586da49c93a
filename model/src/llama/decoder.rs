//! A Llama prepared for generation: weights in the layout that matrix products read fastest,
//! prompts into prefixes, and one token a slot behind them.

use burn::tensor::activation::{silu, softmax};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::config::LlamaConfig;
use super::layout::{MASKED, ints};
use super::rope::{Factors, Rope};
use super::slot_cache::{Prefix, SlotCache, Writes, rounded_width};
use super::transformer::{Attention, Block, Llama};
use crate::host::{self, is_host};
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

/// How queries and keys of some tokens turn.
enum Turns<B: Backend> {
    OnDevice(Factors<B>),
    /// `[tokens, head_dim]`.
    OnHost {
        cos: Vec<f32>,
        sin: Vec<f32>,
    },
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

    fn feed_forward(&self, hidden: Tensor<B, 2>, host: bool) -> Tensor<B, 2> {
        let normed = norm(&self.mlp_norm, hidden.clone(), host);
        let gate = self.gate.forward(normed.clone());
        let up = self.up.forward(normed);
        let gated = match host {
            true => {
                let up = host::take(up);
                host::map(gate, |gate| host::swiglu(gate, &up))
            }
            false => silu(gate) * up,
        };
        hidden + self.down.forward(gated)
    }
}

/// RMSNorm, in one pass over the host's memory where that can be.
fn norm<B: Backend>(norm: &RmsNorm<B>, x: Tensor<B, 2>, host: bool) -> Tensor<B, 2> {
    if !host {
        return norm.forward(x);
    }
    let weight = host::take(norm.weight.val());
    host::map(x, |x| host::rms_norm(x, &weight, norm.eps as f32))
}

impl<B: Backend> Decoder<B> {
    /// Takes a model over, layer by layer; adapters are added to its weights.
    pub fn new(model: Llama<B>, config: &LlamaConfig) -> Self {
        let model = model.merged();
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

    /// Whether elementwise work is done in passes over the host's memory.
    fn in_passes(&self) -> bool {
        self.host && self.dtype() == DType::F32
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
        let turns = self.turns((before..before + new).map(|p| p as i64).collect());
        let mask = (!self.host).then(|| causal_rows(before, new, group, &device));
        let ids = tokens.iter().map(|&t| t as i64).collect();
        let mut hidden = self.embed(ints(ids, &device));
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, hidden.clone(), &turns);
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
            let weights = match &mask {
                Some(mask) => softmax(scores + mask.clone(), 2),
                None => host::map(scores, |scores| {
                    host::softmax_used(scores, before + new, |row| before + row % new + 1);
                }),
            };
            let mixed = from_f32(weights, self.dtype()).matmul(values.clone());
            let mixed = mixed
                .reshape([kv, group, new, width])
                .permute([2, 0, 1, 3])
                .reshape([new, heads * width]);
            hidden = layer.feed_forward(hidden + layer.output.forward(mixed), self.in_passes());
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
        let turns = self.turns(lengths.iter().map(|&l| l as i64).collect());
        let mask = (!self.host).then(|| mask(lengths, columns, &device));
        let ids = ids.iter().map(|&t| t as i64).collect();
        let mut hidden = self.embed(ints(ids, &device));
        for (index, layer) in self.layers.iter().enumerate() {
            let (q, k, v) = self.project(layer, hidden.clone(), &turns);
            cache.append(index, lengths, k, v);
            let Some((keys, values)) = cache.read(index, rows, columns) else {
                continue;
            };
            let scores = to_f32(q.reshape([rows, kv, group, width]).matmul(keys));
            let weights = match &mask {
                Some(mask) => softmax(scores + mask.clone(), 3),
                None => host::map(scores, |scores| {
                    host::softmax_used(scores, columns, |row| lengths[row / heads] + 1);
                }),
            };
            let weights = from_f32(weights, self.dtype());
            let mixed = weights.matmul(values).reshape([rows, heads * width]);
            hidden = layer.feed_forward(hidden + layer.output.forward(mixed), self.in_passes());
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
        to_f32(
            self.head
                .forward(norm(&self.norm, hidden, self.in_passes())),
        )
    }

    fn turns(&self, positions: Vec<i64>) -> Turns<B> {
        let (heads, kv, _) = self.heads();
        let positions = ints(positions, &self.device());
        match self.in_passes() {
            true => {
                let (cos, sin) = self.rope.at(positions);
                Turns::OnHost {
                    cos: host::take(cos),
                    sin: host::take(sin),
                }
            }
            false => Turns::OnDevice(self.rope.joint(positions, heads, kv, self.dtype())),
        }
    }

    /// Queries `[tokens, heads, head_dim]`, scaled, keys and values
    /// `[tokens, kv_heads, head_dim]`; the first two rotated.
    fn project(
        &self,
        layer: &Layer<B>,
        hidden: Tensor<B, 2>,
        turns: &Turns<B>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>, Tensor<B, 3>) {
        let (heads, kv, width) = self.heads();
        let tokens = hidden.dims()[0];
        let x = norm(&layer.attention_norm, hidden, self.in_passes());
        let both = layer.queries_keys.forward(x.clone());
        let values = layer.values.forward(x).reshape([tokens, kv, width]);
        let (queries, keys) = match turns {
            Turns::OnDevice(factors) => {
                let both = factors.apply(both.reshape([tokens, heads + kv, width]));
                (both.clone().narrow(1, 0, heads), both.narrow(1, heads, kv))
            }
            Turns::OnHost { cos, sin } => {
                let device = both.device();
                let both = host::take(both);
                let part = |from: usize, count: usize, scale: f32| {
                    let row = (heads + kv) * width;
                    let part = from * width..(from + count) * width;
                    let turned = host::rotate(&both, row, part, cos, sin, width, scale);
                    let shape = [tokens, count, width];
                    Tensor::from_data(TensorData::new(turned, shape), (&device, DType::F32))
                };
                let scale = 1.0 / (width as f32).sqrt();
                (part(0, heads, scale), part(heads, kv, 1.0))
            }
        };
        (queries, keys, values)
    }
}

/// Hides what lies behind each row's new token, f32 `[rows, 1, 1, columns]`.
fn mask<B: Backend>(lengths: &[usize], columns: usize, device: &B::Device) -> Tensor<B, 4> {
    let mut cells = vec![0f32; lengths.len() * columns];
    for (row, &length) in cells.chunks_exact_mut(columns).zip(lengths) {
        row[length + 1..].fill(MASKED);
    }
    let shape = [lengths.len(), 1, 1, columns];
    Tensor::from_data(TensorData::new(cells, shape), (device, DType::F32))
}

/// The causal mask of `new` tokens behind `before`, once for each head of a group, f32
/// `[1, group · new, columns]`.
fn causal_rows<B: Backend>(
    before: usize,
    new: usize,
    group: usize,
    device: &B::Device,
) -> Tensor<B, 3> {
    let columns = before + new;
    let mut cells = vec![0f32; group * new * columns];
    for (i, row) in cells.chunks_exact_mut(columns).enumerate() {
        row[before + i % new + 1..].fill(MASKED);
    }
    let shape = [1, group * new, columns];
    Tensor::from_data(TensorData::new(cells, shape), (device, DType::F32))
}
