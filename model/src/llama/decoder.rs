//! A Llama prepared for generation: prompts into prefixes, and one token a slot behind them.

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::attention::{Attention, AttentionContext};
use super::block::{Block, Mlp};
use super::config::LlamaConfig;
use super::model::Llama;
use super::slot_cache::{Prefix, SlotCache, rounded_width};
use crate::nn::Linear;
use crate::ops::{CachedStep, Heads, ModelOps, Rotation, TokenIds, Visible, columns_on_host};

/// Tokens of a prompt that run together, cut at multiples of this.
pub const PREFILL_CHUNK: usize = 256;

/// A Llama for generation only. Results differ from [`Llama`]'s by rounding.
#[derive(Debug)]
pub struct Decoder<B: Backend> {
    model: Llama<B>,
    /// The config of the model taken over.
    pub config: LlamaConfig,
}

impl<B: ModelOps> Decoder<B> {
    /// Takes a model over, layer by layer; adapters are added to its weights.
    pub fn new(model: Llama<B>, config: &LlamaConfig) -> Self {
        let mut model = model.merged();
        let layers = model.layers.into_iter().map(for_few_rows);
        model.layers = layers.collect();
        let head = model.lm_head.unwrap_or_else(|| Linear {
            weight: Param::from_tensor(model.embed_tokens.val()),
            bias: None,
            adapter: None,
        });
        model.lm_head = Some(head.for_few_rows());
        Self {
            model,
            config: config.clone(),
        }
    }

    /// The device that the weights live on.
    pub fn device(&self) -> B::Device {
        self.model.device()
    }

    /// The dtype of weights, activations and cache.
    pub fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// Runs the next tokens of a prompt behind those in `prefix` and adds them to it; the last
    /// block's output `[tokens, hidden]`. Where a prompt is cut changes nothing on a CPU.
    pub fn prefill(&self, tokens: &[u32], prefix: &mut Prefix<B>) -> Tensor<B, 2> {
        if let ([token], true) = (tokens, B::ON_HOST) {
            return self.prefill_one(*token, prefix);
        }
        let new = tokens.len();
        let before = length(prefix);
        let positions: Vec<u32> = (before as u32..(before + new) as u32).collect();
        let mut context = PrefillContext {
            prefix,
            rotation: self.rotation(&positions),
            heads: self.heads(),
            visible: Visible::Causal { before, new },
            before,
        };
        self.run(tokens, &mut context)
    }

    /// A row alone would be computed by other routines than several are.
    fn prefill_one(&self, token: u32, prefix: &mut Prefix<B>) -> Tensor<B, 2> {
        let after = length(prefix) + 1;
        let hidden = self.prefill(&[token, token], prefix);
        for (keys, values) in prefix {
            *keys = keys.clone().narrow(2, 0, after);
            *values = values.clone().narrow(1, 0, after);
        }
        hidden.narrow(0, 0, 1)
    }

    /// Logits of the last block's output, f32 `[rows, hidden]` → `[rows, vocab]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        self.model.project(hidden)
    }

    /// Runs one token a row, row `i` behind the `lengths[i]` tokens of slot `i`, and keeps its
    /// keys and values there; logits, f32 `[rows, vocab]`.
    pub fn step(&self, ids: &[u32], lengths: &[usize], cache: &mut SlotCache<B>) -> Tensor<B, 2> {
        let longest = lengths.iter().max().map_or(0, |l| l + 1);
        cache.reserve(longest, &self.device());
        let positions: Vec<u32> = lengths.iter().map(|&l| l as u32).collect();
        let mut context = StepContext {
            cache,
            lengths,
            columns: rounded_width(longest),
            step: CachedStep {
                heads: self.heads(),
                rotation: self.rotation(&positions),
                lengths: TokenIds::new(&positions, &self.device()),
            },
            visible: Visible::Behind(lengths.to_vec()),
        };
        let hidden = self.run(ids, &mut context);
        self.model.project(hidden)
    }

    fn run(&self, ids: &[u32], context: &mut impl AttentionContext<B>) -> Tensor<B, 2> {
        let ids = TokenIds::new(ids, &self.device());
        self.model.blocks(self.model.embed(&ids), context)
    }

    fn heads(&self) -> Heads {
        Heads {
            queries: self.config.num_attention_heads,
            kv: self.config.num_key_value_heads,
            dim: self.config.head_dim,
        }
    }

    fn rotation(&self, positions: &[u32]) -> Rotation<B> {
        Rotation::new(&self.model.rope, positions, self.dtype(), &self.device())
    }
}

/// Tokens of a prefix.
fn length<B: Backend>(prefix: &Prefix<B>) -> usize {
    prefix.first().map_or(0, |layer| layer.1.dims()[1])
}

/// The same block with weights laid out for products of few rows.
fn for_few_rows<B: ModelOps>(block: Block<B>) -> Block<B> {
    let (attention, mlp) = (block.self_attn, block.mlp);
    Block {
        self_attn: Attention {
            q_proj: attention.q_proj.for_few_rows(),
            k_proj: attention.k_proj.for_few_rows(),
            v_proj: attention.v_proj.for_few_rows(),
            o_proj: attention.o_proj.for_few_rows(),
            ..attention
        },
        mlp: Mlp {
            gate_proj: mlp.gate_proj.for_few_rows(),
            up_proj: mlp.up_proj.for_few_rows(),
            down_proj: mlp.down_proj.for_few_rows(),
        },
        ..block
    }
}

/// The next tokens of one prompt behind its first ones.
struct PrefillContext<'a, B: Backend> {
    prefix: &'a mut Prefix<B>,
    /// Its tokens.
    before: usize,
    rotation: Rotation<B>,
    heads: Heads,
    visible: Visible,
}

impl<B: ModelOps> AttentionContext<B> for PrefillContext<'_, B> {
    fn attend(
        &mut self,
        layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let heads = self.heads;
        let new = queries.dims()[0];
        let queries = B::rotate(queries, &self.rotation, heads.scale());
        let keys = B::rotate(keys, &self.rotation, 1.0).permute([1, 2, 0]);
        let values = values.reshape([new, heads.kv, heads.dim]).swap_dims(0, 1);
        let (mut all_keys, mut all_values) = (vec![keys], vec![values]);
        if let Some((old_keys, old_values)) = self.prefix.get(layer) {
            all_keys.insert(0, old_keys.clone());
            all_values.insert(0, old_values.clone());
        }
        let columns = self.before + new;
        if B::ON_HOST {
            let more = columns_on_host(columns) - columns;
            all_keys.extend(zeros(&all_keys[0], 2, more));
            all_values.extend(zeros(&all_values[0], 1, more));
        }
        let (keys, values) = (cat(all_keys, 2), cat(all_values, 1));
        let queries = queries
            .reshape([new, heads.kv, heads.group(), heads.dim])
            .permute([1, 2, 0, 3])
            .reshape([1, heads.kv, heads.group() * new, heads.dim]);
        let all_keys = keys.clone().unsqueeze_dim(0);
        let all_values = values.clone().unsqueeze_dim(0);
        let mixed = B::cached_attention(queries, all_keys, all_values, &self.visible);
        let new_prefix = (keys.narrow(2, 0, columns), values.narrow(1, 0, columns));
        match self.prefix.get_mut(layer) {
            None => self.prefix.push(new_prefix),
            Some(place) => *place = new_prefix,
        }
        mixed
            .reshape([heads.kv, heads.group(), new, heads.dim])
            .permute([2, 0, 1, 3])
            .reshape([new, heads.queries * heads.dim])
    }
}

/// As many as are missing along `dim`, if any.
fn zeros<B: Backend>(like: &Tensor<B, 3>, dim: usize, count: usize) -> Option<Tensor<B, 3>> {
    let mut shape = like.dims();
    shape[dim] = count;
    (count > 0).then(|| Tensor::zeros(shape, (&like.device(), like.dtype())))
}

/// One alone is left as it is.
fn cat<B: Backend>(mut parts: Vec<Tensor<B, 3>>, dim: usize) -> Tensor<B, 3> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, dim),
    }
}

/// One new token behind each of some sequences in slots.
struct StepContext<'a, B: Backend> {
    cache: &'a mut SlotCache<B>,
    lengths: &'a [usize],
    /// Places of the cache that are read.
    columns: usize,
    step: CachedStep<B>,
    visible: Visible,
}

impl<B: ModelOps> AttentionContext<B> for StepContext<'_, B> {
    fn attend(
        &mut self,
        layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (rows, heads) = (self.lengths.len(), self.step.heads);
        if B::HAS_KERNELS {
            let new = [queries.clone(), keys.clone(), values.clone()];
            let caches = self.cache.layer(layer);
            if let Some(mixed) = B::append_and_attend(new, &self.step, caches) {
                return mixed;
            }
        }
        let queries = B::rotate(queries, &self.step.rotation, heads.scale());
        let queries = queries.reshape([rows, heads.kv, heads.group(), heads.dim]);
        let keys = B::rotate(keys, &self.step.rotation, 1.0);
        let values = values.reshape([rows, heads.kv, heads.dim]);
        self.cache.append(layer, self.lengths, keys, values);
        let (keys, values) = self.cache.read(layer, rows, self.columns);
        let mixed = B::cached_attention(queries, keys, values, &self.visible);
        mixed.reshape([rows, heads.queries * heads.dim])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::ChaCha12Rng;
    use rand::{RngExt, SeedableRng};

    type Flex = burn_flex::Flex<f32, i32>;
    type NdArray = burn_ndarray::NdArray<f32, i64, i8>;

    fn decoder<B: ModelOps>(dtype: DType) -> Decoder<B> {
        let serde_json::Value::Object(fields) = serde_json::json!({
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
            "vocab_size": 300, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": false,
        }) else {
            unreachable!("it is an object")
        };
        let config = LlamaConfig::from_map(fields).unwrap();
        let device = B::Device::default();
        let model = Llama::<B>::init(&config, 1, &device).unwrap();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), &config, dtype, dir.path()).unwrap();
        let (config, model) = Llama::load(dir.path(), dtype, &device).unwrap();
        Decoder::new(model, &config)
    }

    /// Outputs, logits, keys and values of a prompt that runs in pieces.
    fn in_pieces<B: ModelOps>(
        decoder: &Decoder<B>,
        prompt: &[u32],
        cut: Option<usize>,
    ) -> Vec<burn::tensor::TensorData> {
        let chunks = (PREFILL_CHUNK..prompt.len()).step_by(PREFILL_CHUNK);
        let mut ends: Vec<usize> = chunks.chain([prompt.len()]).chain(cut).collect();
        ends.sort_unstable();
        ends.dedup();
        let (mut prefix, mut hidden, mut done) = (Vec::new(), Vec::new(), 0);
        for end in ends {
            hidden.push(decoder.prefill(&prompt[done..end], &mut prefix));
            done = end;
        }
        let hidden = Tensor::cat(hidden, 0);
        let mut all = vec![
            decoder.logits(hidden.clone()).into_data(),
            hidden.into_data(),
        ];
        for (keys, values) in prefix {
            all.extend([keys.into_data(), values.into_data()]);
        }
        all
    }

    fn cuts_change_nothing<B: ModelOps>(dtype: DType) {
        let decoder = decoder::<B>(dtype);
        let mut generator = ChaCha12Rng::seed_from_u64(1);
        for length in [2, 40, 257, 513, 600, 1030, 1400] {
            let prompt = (0..length).map(|_| generator.random_range(0..300));
            let prompt: Vec<u32> = prompt.collect();
            let whole = in_pieces(&decoder, &prompt, None);
            let mut anywhere = || generator.random_range(1..length);
            for cut in [1, length - 1, anywhere(), anywhere()] {
                let found = in_pieces(&decoder, &prompt, Some(cut));
                assert!(found == whole, "{length} tokens cut at {cut}");
            }
        }
    }

    /// What prompts share may be computed once.
    #[test]
    fn prompts_may_be_cut_anywhere() {
        cuts_change_nothing::<Flex>(DType::F32);
        cuts_change_nothing::<NdArray>(DType::F32);
    }

    #[test]
    fn prompts_may_be_cut_anywhere_in_bf16() {
        cuts_change_nothing::<Flex>(DType::BF16);
    }
}
