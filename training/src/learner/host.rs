//! One part of a batch on its way through the model and back on a CPU, with gradients by hand.

use std::ops::Range;

use burn::tensor::{DType, IndexingUpdateOp, Tensor, backend::Backend};
use sppo_model::host::is_host;
use sppo_model::llama::host_pass::{HostBatch, HostHead, Kept, Sink};
use sppo_model::llama::{Llama, PackedBatch};

use super::logps::Targets;
use crate::config::Recompute;
use crate::tokenise::TokenisedSequence;

/// Whether [`HostPass`] can be used: f32 in the host's memory.
pub(super) fn fits<B: Backend>(model: &Llama<B>) -> bool {
    model.dtype() == DType::F32 && is_host::<B>(&model.device())
}

/// A forward pass with what its backward pass needs.
pub(super) struct HostPass<B: Backend> {
    /// Summed response log-probabilities.
    pub logps: Vec<f64>,
    batch: PackedBatch<B>,
    cells: HostBatch,
    targets: Targets<B>,
    blocks: Vec<Body<B>>,
    last: Tensor<B, 2>,
    head: Option<HostHead<B>>,
}

/// What is kept of a block.
enum Body<B: Backend> {
    All(Kept<B>),
    Input(Tensor<B, 2>),
}

impl<B: Backend> HostPass<B> {
    /// Runs `sequences` through the model.
    pub fn forward(
        model: &Llama<B>,
        recompute: Recompute,
        sequences: &[&TokenisedSequence],
    ) -> Self {
        let device = model.device();
        let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
        let batch = PackedBatch::<B>::new(&ids, &device);
        let targets = Targets::<B>::new(sequences, &batch.places, &device);
        let cells = HostBatch::new(model, &batch);
        let mut blocks = Vec::with_capacity(model.layers.len());
        let mut hidden = model.embed(batch.ids.clone());
        for block in &model.layers {
            let input = hidden.clone();
            let (out, kept) = block.forward_on_host(hidden, &cells);
            blocks.push(match recompute {
                Recompute::None => Body::All(kept),
                Recompute::Layer => Body::Input(input),
            });
            hidden = out;
        }
        let mut pass = Self {
            logps: Vec::new(),
            batch,
            cells,
            targets,
            blocks,
            last: hidden,
            head: None,
        };
        pass.run_head(model);
        pass
    }

    /// Log-probabilities; the head's state is kept where one chunk holds all logits.
    fn run_head(&mut self, model: &Llama<B>) {
        let chunks = self.chunks(model);
        let mut all = Vec::new();
        for range in &chunks {
            let head = self.head_of(model, range);
            all.extend_from_slice(&head.logps);
            if chunks.len() == 1 {
                self.head = Some(head);
            }
        }
        self.logps = self.targets.sum(&all);
    }

    fn chunks(&self, model: &Llama<B>) -> Vec<Range<usize>> {
        self.targets.chunks(model.embed_tokens.dims()[0])
    }

    fn head_of(&self, model: &Llama<B>, range: &Range<usize>) -> HostHead<B> {
        let rows = self.targets.rows.clone().slice([range.clone()]);
        let tokens = self.targets.token_ids[range.clone()].to_vec();
        model.head_on_host(self.last.clone().select(0, rows), tokens)
    }

    /// Hands the gradient of Σ wᵢ · logpᵢ to `sink`, block by block from the last to the first.
    pub fn backward(mut self, model: &Llama<B>, weights: &[f64], sink: &mut dyn Sink<B>) {
        let weights = self.targets.spread_values(weights);
        let mut grad = Tensor::zeros_like(&self.last);
        for range in self.chunks(model) {
            let head = match self.head.take() {
                Some(head) => head,
                None => self.head_of(model, &range),
            };
            let part = model.head_backward_on_host(head, &weights[range.clone()], sink);
            let rows = self.targets.rows.clone().slice([range]);
            grad = grad.select_assign(0, rows, part, IndexingUpdateOp::Add);
        }
        for (block, body) in model.layers.iter().zip(self.blocks).rev() {
            let kept = match body {
                Body::All(kept) => kept,
                Body::Input(input) => block.forward_on_host(input, &self.cells).1,
            };
            grad = block.backward_on_host(grad, kept, &self.cells, sink);
        }
        model.embed_backward_on_host(&self.batch, grad, sink);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::path::Path;

    use burn::module::{AutodiffModule, Module, ModuleVisitor, Param, ParamId};
    use burn::tensor::{TensorData, backend::AutodiffBackend};
    use burn_autodiff::Autodiff;
    use rand::rngs::ChaCha12Rng;
    use rand::{RngExt, SeedableRng};
    use sppo_model::llama::Lora;
    use sppo_model::llama::hf::trained_parameters;
    use sppo_model::llama::transformer::Block;
    use sppo_model::nn::Linear;

    use super::super::gradients::{Gather, GradientStore};
    use super::super::logps::SMALL_CHUNKS;
    use super::super::oracle::{Exact, exact};
    use super::super::pass::Pass;
    use super::*;

    type Flex = Autodiff<burn_flex::Flex<f32, i32>>;
    type NdArray = Autodiff<burn_ndarray::NdArray<f32, i64, i8>>;

    /// Pairs that share prompts, of several lengths.
    fn sequences() -> Vec<TokenisedSequence> {
        let sequence = |seed: u32, prompt: usize, response: usize| {
            let of_prompt = (0..prompt as u32).map(|i| (i * 7 + seed / 2) % 400);
            let of_response = (0..response as u32).map(|i| (i * 11 + seed * 3) % 400);
            TokenisedSequence {
                ids: of_prompt.chain(of_response).collect(),
                response_start: prompt,
            }
        };
        [(2, 9, 5), (3, 9, 12), (4, 3, 4), (5, 3, 1), (6, 20, 7)]
            .map(|(seed, prompt, response)| sequence(seed, prompt, response))
            .to_vec()
    }

    #[derive(Default)]
    struct Names(Vec<ParamId>);

    impl<B: Backend> ModuleVisitor<B> for Names {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.id);
        }
    }

    fn values<B: Backend>(
        store: &mut GradientStore<B>,
        ids: &[ParamId],
    ) -> HashMap<ParamId, Vec<f32>> {
        let take = |&id: &ParamId| Some((id, store.remove(id)?.into_data().to_vec().unwrap()));
        ids.iter().filter_map(take).collect()
    }

    /// The same numbers each time, within ±0.05: a backend's own generator is shared by all tests.
    fn noise<B: Backend, const D: usize>(shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
        let mut generator = ChaCha12Rng::seed_from_u64(5);
        let count = shape.iter().product();
        let values = (0..count).map(|_| generator.random_range(-0.05f32..0.05));
        let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
        Tensor::from_data(data, device)
    }

    fn with_biases<B: AutodiffBackend>(mut model: Llama<B>) -> Llama<B> {
        let device = model.device();
        let bias = |linear: &mut Linear<B>| {
            let noise = noise([linear.weight.dims()[0]], &device);
            linear.bias = Some(Param::from_tensor(noise));
        };
        for block in &mut model.layers {
            bias(&mut block.self_attn.q_proj);
            bias(&mut block.self_attn.o_proj);
            bias(&mut block.mlp.down_proj);
        }
        model
    }

    fn agrees<B: AutodiffBackend>(change: impl Fn(Llama<B>) -> Llama<B>) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama");
        let device = B::Device::default();
        let (config, model) = Llama::<B>::load(&dir, DType::F32, &device).unwrap();
        let model = change(model);
        let mut names = Names::default();
        model.visit(&mut names);
        let sequences = sequences();
        let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
        let weights = [0.7, -1.3, 0.2, 2.0, -0.4];
        let trained = trained_parameters(&model).into_iter();
        let trained: HashSet<ParamId> = trained.map(|(id, _)| id).collect();
        let inner = model.valid();
        let by_autodiff = |recompute| {
            let pass = Pass::forward(&model, recompute, &sequences).unwrap();
            let mut store = GradientStore::default();
            let logps = pass.logps.clone();
            let mut gather = Gather {
                trained: &trained,
                store: &mut store,
            };
            pass.backward(&model, &weights, &mut gather);
            (logps, values(&mut store, &names.0))
        };
        let by_hand = |recompute| {
            let pass = HostPass::forward(&inner, recompute, &sequences);
            let mut store = GradientStore::default();
            let logps = pass.logps.clone();
            let mut gather = Gather {
                trained: &trained,
                store: &mut store,
            };
            pass.backward(&inner, &weights, &mut gather);
            (logps, values(&mut store, &names.0))
        };
        let exact = exact(&model.valid(), &config, &sequences, &weights);
        let expected = by_autodiff(Recompute::None);
        assert_eq!(expected.1.len(), trained.len());
        assert!(
            by_autodiff(Recompute::Layer) == expected,
            "recomputing changes bits"
        );
        let found = by_hand(Recompute::None);
        assert_eq!(found.1.len(), trained.len());
        assert!(
            by_hand(Recompute::Layer) == found,
            "recomputing changes bits"
        );
        near(&expected, &exact);
        near(&found, &exact);
        // Logits of five response tokens at a time instead of all.
        SMALL_CHUNKS.set(Some(5));
        for recompute in [Recompute::None, Recompute::Layer] {
            near(&by_autodiff(recompute), &exact);
            near(&by_hand(recompute), &exact);
        }
        SMALL_CHUNKS.set(None);
    }

    type Outcome = (Vec<f64>, HashMap<ParamId, Vec<f32>>);

    /// Both roads were up to 3.5e-6 away from f64 in a summed log-probability and up to 3.0e-6 of
    /// a parameter's largest gradient, with AVX-512 and with AVX2: bounds of three times that.
    fn near(found: &Outcome, exact: &Exact) {
        for (found, exact) in found.0.iter().zip(&exact.logps) {
            assert!((found - exact).abs() < 1e-5, "{found} is not {exact}");
        }
        for (id, found) in &found.1 {
            let exact = &exact.gradients[id];
            let largest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
            assert_eq!(found.len(), exact.len());
            for (found, exact) in found.iter().zip(exact) {
                let gap = (f64::from(*found) - exact).abs();
                assert!(gap <= 1e-5 * largest, "{found} is not {exact} ({largest})");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_autodiff_on_flex() {
        agrees::<Flex>(|model| model);
    }

    #[test]
    fn gradients_are_those_of_autodiff_on_ndarray() {
        agrees::<NdArray>(|model| model);
    }

    #[test]
    fn with_tied_embeddings() {
        agrees::<Flex>(|mut model| {
            model.lm_head = None;
            model
        });
    }

    #[test]
    fn with_biases_too() {
        agrees::<Flex>(with_biases);
    }
    /// Adapters that change something, on every kind of layer or on some.
    fn with_adapters<B: AutodiffBackend>(model: Llama<B>, targets: &[&str]) -> Llama<B> {
        let lora = Lora {
            rank: 3,
            alpha: 5.0,
            targets: targets.iter().map(|t| t.to_string()).collect(),
            rank_stabilised: false,
        };
        let mut model = model.with_new_adapters(&lora, 7).unwrap();
        let device = model.device();
        let disturb = |linear: &mut Linear<B>| {
            if let Some(adapter) = &mut linear.adapter {
                let b = noise(adapter.lora_b.dims(), &device);
                adapter.lora_b = Param::from_tensor(b);
            }
        };
        for block in &mut model.layers {
            let (attention, mlp) = (&mut block.self_attn, &mut block.mlp);
            disturb(&mut attention.q_proj);
            disturb(&mut attention.v_proj);
            disturb(&mut mlp.gate_proj);
            disturb(&mut mlp.down_proj);
        }
        model
    }

    #[test]
    fn with_adapters_on_flex() {
        agrees::<Flex>(|model| with_adapters(with_biases(model), &all_targets()));
        agrees::<Flex>(|model| with_adapters(model, &["down_proj"]));
    }

    #[test]
    fn with_adapters_on_ndarray() {
        agrees::<NdArray>(|model| with_adapters(model, &["q_proj", "v_proj"]));
    }

    /// Notes in which order gradients arrive.
    struct Order(Vec<ParamId>);

    impl<B: Backend> Sink<B> for Order {
        fn wants(&self, _id: ParamId) -> bool {
            true
        }

        fn take(&mut self, id: ParamId, _grad: Tensor<B, 1>) {
            self.0.push(id);
        }
    }

    /// A block's gradients are all there before the block below it is computed.
    #[test]
    fn gradients_arrive_block_by_block() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama");
        let (_, model) = Llama::<Flex>::load(&dir, DType::F32, &Default::default()).unwrap();
        let sequences = sequences();
        let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
        let weights = [1.0; 5];
        let mut by_hand = Order(Vec::new());
        let inner = model.valid();
        let pass = HostPass::forward(&inner, Recompute::Layer, &sequences);
        pass.backward(&inner, &weights, &mut by_hand);
        let mut by_autodiff = Order(Vec::new());
        let pass = Pass::forward(&model, Recompute::Layer, &sequences).unwrap();
        pass.backward(&model, &weights, &mut by_autodiff);
        let place = |id: &ParamId| {
            let of = |block: &Block<Flex>| {
                let mut names = Names::default();
                block.visit(&mut names);
                names.0.contains(id)
            };
            model.layers.iter().position(of)
        };
        for order in [by_hand.0, by_autodiff.0] {
            let blocks: Vec<usize> = order.iter().filter_map(place).collect();
            assert!(blocks.is_sorted_by(|a, b| a >= b), "{blocks:?}");
            assert_eq!(blocks.len(), 9 * model.layers.len());
            // Behind the head's, before the embeddings'.
            assert_eq!(place(&order[0]), None);
            assert_eq!(order.last(), Some(&model.embed_tokens.id));
        }
    }

    fn all_targets() -> Vec<&'static str> {
        sppo_model::llama::lora::targets().collect()
    }
}
