//! The DeBERTa-v3 encoder with disentangled attention (arXiv 2111.09543), and PairRM's head.

use burn::module::{Module, Param};
use burn::tensor::activation::tanh;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::packing::Packed;
use super::positions::Distances;
use crate::nn::{LayerNorm, Linear};
use crate::ops::{DeviceError, ModelOps, RelativePositions, ints, to_f32, to_host};

/// Scores of attention that are held at a time, in elements.
pub const MOST_SCORES: usize = 1 << 26;

/// The encoder and the head that turns three of its hidden states into one logit.
#[derive(Module, Debug)]
pub struct PairRm<B: Backend> {
    /// `[vocab, hidden]`.
    pub(super) word_embeddings: Param<Tensor<B, 2>>,
    pub(super) embeddings_norm: LayerNorm<B>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) head_in: Linear<B>,
    pub(super) head_out: Linear<B>,
    pub(super) heads: usize,
    pub(super) position_buckets: usize,
    pub(super) max_relative_positions: usize,
}

/// One layer: attention and feed-forward, each added to its input and then normed.
#[derive(Module, Debug)]
pub struct Layer<B: Backend> {
    /// Queries, keys and values in one, `[3 · hidden, hidden]`.
    pub(super) qkv: Linear<B>,
    pub(super) attention_out: Linear<B>,
    pub(super) attention_norm: LayerNorm<B>,
    pub(super) intermediate: Linear<B>,
    pub(super) output: Linear<B>,
    pub(super) output_norm: LayerNorm<B>,
    /// Keys of the relative positions `[heads, head, 2 · buckets]`: the same for every text.
    pub(super) position_keys: Tensor<B, 3>,
    /// Their queries.
    pub(super) position_queries: Tensor<B, 3>,
}

/// Sequences of one length that lie next to each other in a batch.
struct Group<B: Backend> {
    first_token: usize,
    sequences: usize,
    length: usize,
    /// The rows of the relative embeddings that it reads.
    rows: std::ops::Range<usize>,
    positions: RelativePositions<B>,
}

impl<B: Backend> PairRm<B> {
    /// The device that the weights live on.
    pub fn device(&self) -> B::Device {
        self.word_embeddings.val().device()
    }

    /// What the weights are held in: "f32" or "bf16".
    pub fn precision(&self) -> &'static str {
        match self.word_embeddings.val().dtype() {
            DType::BF16 => "bf16",
            _ => "f32",
        }
    }
}

impl<B: ModelOps> PairRm<B> {
    /// The logit of each comparison, positive where the left response is the better one.
    ///
    /// Sequences are packed end to end, so that linear layers see no padding, and those of one
    /// length attend together, so that attention sees none either.
    pub fn compare(&self, batch: &[&Packed]) -> Result<Vec<f32>, DeviceError> {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        order.sort_by_key(|&i| batch[i].ids.len());
        let (ids, prefixes) = lay_out(batch, &order);
        let device = self.device();
        let groups = self.groups(batch, &order);
        let prefixes = ints(prefixes, &device);
        let embedded = self.word_embeddings.val().select(0, ints(ids, &device));
        let mut hidden = self.embeddings_norm.forward(embedded);
        for (index, layer) in self.layers.iter().enumerate() {
            let last = index + 1 == self.layers.len();
            let mixed = layer.attend(hidden.clone(), &groups, self.heads);
            // The head reads three tokens a comparison; the last layer need not go on with more.
            let (hidden_in, mixed) = match last {
                true => (
                    hidden.select(0, prefixes.clone()),
                    mixed.select(0, prefixes.clone()),
                ),
                false => (hidden, mixed),
            };
            hidden = layer.feed_forward(hidden_in, mixed);
        }
        let logits = self.head(hidden)?;
        let mut out = vec![0.0; batch.len()];
        for (&i, logit) in order.iter().zip(logits) {
            out[i] = logit;
        }
        Ok(out)
    }

    fn groups(&self, batch: &[&Packed], order: &[usize]) -> Vec<Group<B>> {
        let mut groups: Vec<Group<B>> = Vec::new();
        let mut first_token = 0;
        for &i in order {
            let length = batch[i].ids.len();
            let full = |group: &Group<B>| {
                let scores = (group.sequences + 1) * self.heads * length * length;
                group.length != length || scores > MOST_SCORES
            };
            match groups.last_mut() {
                Some(group) if !full(group) => group.sequences += 1,
                _ => groups.push(self.group(first_token, length)),
            }
            first_token += length;
        }
        groups
    }

    fn group(&self, first_token: usize, length: usize) -> Group<B> {
        let distances = Distances::new(length, self.position_buckets, self.max_relative_positions);
        let (count, device) = (distances.rows.len(), self.device());
        let dtype = self.word_embeddings.val().dtype();
        Group {
            first_token,
            sequences: 1,
            length,
            rows: distances.rows,
            positions: RelativePositions::new(distances.places, count, dtype, &device),
        }
    }

    /// g([h_s; h_1]) − g([h_s; h_2]) from hidden states `[3 · comparisons, hidden]`.
    ///
    /// Both candidates go through the head as rows of one matrix: as two chains of operations they
    /// were fused wrongly on wgpu (Burn 0.21).
    fn head(&self, hidden: Tensor<B, 2>) -> Result<Vec<f32>, DeviceError> {
        let count = hidden.dims()[0] / 3;
        let device = hidden.device();
        let rows = |of_left: usize, of_right: usize| {
            let sides = [of_left, of_right].into_iter();
            let rows = sides.flat_map(|state| (0..count).map(move |i| (3 * i + state) as i64));
            hidden.clone().select(0, ints(rows.collect(), &device))
        };
        let both = Tensor::cat(vec![rows(0, 0), rows(1, 2)], 1);
        let scores = self.head_out.forward(tanh(self.head_in.forward(both)));
        let scores = to_host(to_f32(scores))?;
        let (left, right) = scores.split_at(count);
        Ok(left.iter().zip(right).map(|(l, r)| l - r).collect())
    }
}

/// Token ids of the sequences in order, and where their prefixes stand.
fn lay_out(batch: &[&Packed], order: &[usize]) -> (Vec<i64>, Vec<i64>) {
    let (mut ids, mut prefixes) = (Vec::new(), Vec::new());
    for &i in order {
        let first = ids.len();
        prefixes.extend(batch[i].prefixes.iter().map(|at| (first + at) as i64));
        ids.extend(batch[i].ids.iter().map(|&id| i64::from(id)));
    }
    (ids, prefixes)
}

impl<B: ModelOps> Layer<B> {
    /// Self-attention of every group, before its projection, `[tokens, hidden]`.
    fn attend(&self, hidden: Tensor<B, 2>, groups: &[Group<B>], heads: usize) -> Tensor<B, 2> {
        let qkv = self.qkv.forward(hidden);
        let mixed = groups.iter().map(|group| {
            let tokens = group.sequences * group.length;
            let part = qkv.clone().narrow(0, group.first_token, tokens);
            self.attend_group(part, group, heads)
        });
        let mut mixed: Vec<_> = mixed.collect();
        match mixed.len() {
            1 => mixed.remove(0),
            _ => Tensor::cat(mixed, 0),
        }
    }

    /// score_ij = (q_i·k_j + q_i·K(i − j) + k_j·Q(i − j)) / √(3 · head).
    fn attend_group(&self, qkv: Tensor<B, 2>, group: &Group<B>, heads: usize) -> Tensor<B, 2> {
        let [tokens, width] = qkv.dims();
        let (hidden, head) = (width / 3, width / 3 / heads);
        let (sequences, length) = (group.sequences, group.length);
        // [heads, tokens, head]
        let part = |i: usize| {
            let part = qkv.clone().narrow(1, i * hidden, hidden);
            part.reshape([tokens, heads, head]).swap_dims(0, 1)
        };
        let (q, k, v) = (part(0), part(1), part(2));
        let rows = group.rows.clone();
        let of_rows = |table: &Tensor<B, 3>| table.clone().narrow(2, rows.start, rows.len());
        // [heads, tokens, rows]
        let to_positions = q.clone().matmul(of_rows(&self.position_keys));
        let from_positions = k.clone().matmul(of_rows(&self.position_queries));
        let split = |x: Tensor<B, 3>| x.reshape([heads, sequences, length, head]);
        let scores = split(q).matmul(split(k).swap_dims(2, 3));
        // Three terms make a score.
        let scale = 1.0 / (3.0 * head as f64).sqrt();
        let weights = B::relative_attention_weights(
            scores,
            to_positions,
            from_positions,
            &group.positions,
            scale,
        );
        weights
            .matmul(split(v))
            .reshape([heads, tokens, head])
            .swap_dims(0, 1)
            .reshape([tokens, hidden])
    }

    /// The rest of the layer behind attention.
    fn feed_forward(&self, hidden: Tensor<B, 2>, mixed: Tensor<B, 2>) -> Tensor<B, 2> {
        let attended = self.attention_out.forward(mixed);
        let hidden = self.attention_norm.add(hidden, attended);
        let inner = B::exact_gelu(self.intermediate.forward(hidden.clone()));
        self.output_norm.add(hidden, self.output.forward(inner))
    }
}
