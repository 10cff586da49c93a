//! A Llama prepared for generation: prompts into prefixes, and one token a slot behind them.

use std::ops::Range;

use burn::module::Param;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::attention::{Attention, AttentionContext};
use super::block::{Block, Mlp};
use super::config::LlamaConfig;
use super::model::Llama;
use super::prefill::{Layout, Made, Piece, PrefillContext};
use super::slot_cache::{SlotCache, rounded_width};
use crate::nn::{Linear, RmsNorm};
use crate::ops::{CachedStep, Heads, ModelOps, Rotation, TokenIds, Visible, cast};

/// Tokens of prompts that go through the model in one pass. On a device more are needed for its
/// products to be worth their weights' reading; on a CPU, sequences under way wait for a worker's pass.
pub const fn prefill_tokens(on_host: bool) -> usize {
    match on_host {
        true => 256,
        false => 1024,
    }
}

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
        let dtype = activations_dtype(B::ON_HOST, model.dtype());
        let layers = model
            .layers
            .into_iter()
            .map(|block| for_few_rows(block, dtype));
        model.layers = layers.collect();
        let head = model.lm_head.unwrap_or_else(|| Linear {
            weight: Param::from_tensor(model.embed_tokens.val()),
            bias: None,
            packed: None,
            adapter: None,
        });
        model.lm_head = Some(head.for_few_rows());
        model.embed_tokens = in_dtype(model.embed_tokens, dtype);
        model.norm = norm_in_dtype(model.norm, dtype);
        Self {
            model,
            config: config.clone(),
        }
    }

    /// The device that the weights live on.
    pub fn device(&self) -> B::Device {
        self.model.device()
    }

    /// The dtype of activations and cache.
    pub fn dtype(&self) -> DType {
        self.model.dtype()
    }

    /// Runs the next tokens of some prompts in one pass, each behind those in its prefix, and adds
    /// them there; the last block's output `[rows, hidden]`, and the rows of each piece.
    ///
    /// On a CPU neither where a prompt is cut nor what else is in the pass changes anything.
    pub fn prefill(&self, pieces: &mut [Piece<'_, B>]) -> (Tensor<B, 2>, Vec<Range<usize>>) {
        let layout = Layout::new(pieces);
        let fresh = layout.fresh(pieces);
        let before = pieces.iter_mut().map(|piece| {
            let before: Box<dyn Iterator<Item = _>> =
                Box::new(std::mem::take(piece.prefix).into_layers());
            before
        });
        let mut context = PrefillContext {
            before: before.collect(),
            rotation: self.rotation(&layout.positions),
            heads: self.heads(),
            fresh: fresh.map(|batch| self.model.attention_over(&batch)),
            made: Made::new(&layout),
            layout: &layout,
        };
        let hidden = self.run(&layout.ids, &mut context);
        context.made.give(&layout, pieces);
        (hidden, layout.rows())
    }

    /// Logits of the last block's output, f32 `[rows, hidden]` → `[rows, vocab]`.
    pub fn logits(&self, hidden: Tensor<B, 2>) -> Tensor<B, 2> {
        if B::ON_HOST && hidden.dims()[0] == 1 {
            // A row alone would be computed by other routines than several are.
            let two = Tensor::cat(vec![hidden.clone(), hidden], 0);
            return self.model.project(two).narrow(0, 0, 1);
        }
        self.model.project(hidden)
    }

    /// Runs one token a row, row `i` behind the `lengths[i]` tokens of slot `i`, and keeps its
    /// keys and values there; the last block's output `[rows, hidden]`.
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
        self.run(ids, &mut context)
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

/// The dtype of a decoder's activations and cache, for weights of a dtype. A host computes in f32, and
/// its products read bf16 weights as they are.
pub const fn activations_dtype(on_host: bool, weights: DType) -> DType {
    match on_host {
        true => DType::F32,
        false => weights,
    }
}

fn in_dtype<B: ModelOps, const D: usize>(
    weight: Param<Tensor<B, D>>,
    dtype: DType,
) -> Param<Tensor<B, D>> {
    Param::from_tensor(cast(weight.val(), dtype))
}

fn norm_in_dtype<B: ModelOps>(norm: RmsNorm<B>, dtype: DType) -> RmsNorm<B> {
    RmsNorm {
        weight: in_dtype(norm.weight, dtype),
        ..norm
    }
}

/// The same block with weights laid out for products of few rows, its norms in a dtype.
fn for_few_rows<B: ModelOps>(block: Block<B>, dtype: DType) -> Block<B> {
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
        input_layernorm: norm_in_dtype(block.input_layernorm, dtype),
        post_attention_layernorm: norm_in_dtype(block.post_attention_layernorm, dtype),
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
        let caches = self.cache.read(layer);
        let mixed = B::slot_attention(queries, caches, &self.visible, self.columns);
        mixed.reshape([rows, heads.queries * heads.dim])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use rand::rngs::ChaCha12Rng;
    use rand::{RngExt, SeedableRng};

    use super::super::prefix::Prefix;
    use super::*;

    type Flex = burn_flex::Flex<f32, i32>;
    type NdArray = burn_ndarray::NdArray<f32, i64, i8>;

    fn decoder<B: ModelOps>(dtype: DType) -> Decoder<B> {
        let serde_json::Value::Object(fields) = serde_json::json!({
            "model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
            "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
            "vocab_size": 300, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "tie_word_embeddings": false,
            // r073: bf16 biases beside f32 activations were a panic.
            "attention_bias": true, "mlp_bias": true,
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

    /// Outputs, logits, keys and values of prompts, the next pieces of which run together: of each
    /// prompt up to the next of its cuts.
    fn together<B: ModelOps>(
        decoder: &Decoder<B>,
        prompts: &[(&[u32], Vec<usize>)],
    ) -> Vec<Vec<TensorData>> {
        let mut prefixes = vec![Prefix::default(); prompts.len()];
        let mut outputs = vec![Vec::new(); prompts.len()];
        loop {
            let (mut pieces, mut numbers) = (Vec::new(), Vec::new());
            for (number, prefix) in prefixes.iter_mut().enumerate() {
                let ((prompt, cuts), done) = (&prompts[number], prefix.tokens());
                let end = cuts.iter().copied().filter(|&cut| cut > done).min();
                let tokens = &prompt[done..end.unwrap_or(prompt.len())];
                if !tokens.is_empty() {
                    numbers.push(number);
                    pieces.push(Piece { tokens, prefix });
                }
            }
            if pieces.is_empty() {
                break;
            }
            let (hidden, rows) = decoder.prefill(&mut pieces);
            for (number, rows) in numbers.into_iter().zip(rows) {
                outputs[number].push(hidden.clone().narrow(0, rows.start, rows.len()));
            }
        }
        let all = outputs.into_iter().zip(prefixes);
        let all = all.map(|(hidden, prefix)| {
            let hidden = Tensor::cat(hidden, 0);
            let mut all = vec![
                decoder.logits(hidden.clone()).into_data(),
                hidden.into_data(),
            ];
            for layer in 0..decoder.config.num_hidden_layers {
                all.extend(prefix.layer(layer).map(Tensor::into_data));
            }
            all
        });
        all.collect()
    }

    fn prompts(generator: &mut ChaCha12Rng, lengths: &[usize]) -> Vec<Vec<u32>> {
        let mut prompt = |&length: &usize| {
            let tokens = (0..length).map(|_| generator.random_range(0..300));
            tokens.collect::<Vec<u32>>()
        };
        lengths.iter().map(&mut prompt).collect()
    }

    fn cuts_change_nothing<B: ModelOps>(dtype: DType) {
        let decoder = decoder::<B>(dtype);
        let mut generator = ChaCha12Rng::seed_from_u64(1);
        for length in [2, 40, 257, 513, 600, 1030, 1400] {
            let prompt = prompts(&mut generator, &[length]).remove(0);
            let chunks: Vec<usize> = (256..length).step_by(256).collect();
            let whole = together(&decoder, &[(&prompt, chunks.clone())]);
            let mut anywhere = || generator.random_range(1..length);
            for cut in [1, length - 1, anywhere(), anywhere()] {
                let cuts = [&chunks[..], &[cut]].concat();
                let found = together(&decoder, &[(&prompt, cuts)]);
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

    /// Prompts of one token and of many, whole and behind their first tokens.
    fn company_changes_nothing_on<B: ModelOps>(dtype: DType) {
        let decoder = decoder::<B>(dtype);
        let mut generator = ChaCha12Rng::seed_from_u64(2);
        for lengths in [
            &[1, 1][..],
            &[7, 1, 64],
            &[1, 3, 5, 33, 100, 1, 256, 17],
            &[300, 2, 511, 90],
        ] {
            let prompts = prompts(&mut generator, lengths);
            let mut cut = |prompt: &Vec<u32>| match generator.random_range(0..2) {
                1 if prompt.len() > 1 => vec![generator.random_range(1..prompt.len())],
                _ => vec![],
            };
            let prompts: Vec<(&[u32], Vec<usize>)> =
                prompts.iter().map(|p| (&p[..], cut(p))).collect();
            let found = together(&decoder, &prompts);
            for (prompt, found) in prompts.iter().zip(found) {
                let alone = together(&decoder, &[(prompt.0, vec![])]).remove(0);
                assert!(found == alone, "{} of {lengths:?}", prompt.0.len());
            }
        }
    }

    #[test]
    fn company_changes_nothing() {
        company_changes_nothing_on::<Flex>(DType::F32);
        company_changes_nothing_on::<NdArray>(DType::F32);
        company_changes_nothing_on::<Flex>(DType::BF16);
    }
}
