//! The learner against f64 (oracle.rs), on both CPU backends.

use std::path::Path;
use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_autodiff::Autodiff;
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use sppo_model::llama::parameters::{
    Group, Kind, ParameterMapper, map_parameters, visit_parameters,
};
use sppo_model::llama::{Llama, LlamaConfig, Lora};
use sppo_model::ops::{to_f32, to_host};
use sppo_model::packed_batch::PackedBatch;

use super::logps::SMALL_CHUNKS;
use super::oracle::{Exact, exact};
use super::pass::Pass;
use super::*;
use crate::cluster::{Arriving, DeviceTransport, SingleProcess, threads};

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

const WEIGHTS: [f64; 5] = [0.7, -1.3, 0.2, 2.0, -0.4];

fn golden<B: Backend>() -> (LlamaConfig, Llama<B>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama");
    Llama::load(&dir, DType::F32, &Default::default()).unwrap()
}

/// A random model of the golden one's shape, otherwise configured.
fn random<B: Backend>(change: impl Fn(&mut LlamaConfig)) -> (LlamaConfig, Llama<B>) {
    let (mut config, _) = golden::<B>();
    config.initializer_range = 0.1;
    change(&mut config);
    let model = Llama::<B>::init(&config, 3, &Default::default()).unwrap();
    (config, disturbed(model, Kind::Bias))
}

/// The same model with noise within ±0.05 in all parameters of one kind, which begin at zero.
fn disturbed<B: Backend>(model: Llama<B>, kind: Kind) -> Llama<B> {
    struct Noise(Vec<Kind>, Kind, ChaCha12Rng);

    impl<B: Backend> ParameterMapper<B> for Noise {
        fn map<const D: usize>(
            &mut self,
            index: usize,
            parameter: Param<Tensor<B, D>>,
        ) -> Param<Tensor<B, D>> {
            if self.0[index] != self.1 {
                return parameter;
            }
            let (shape, device) = (parameter.dims(), parameter.val().device());
            let count = shape.iter().product();
            let values = (0..count).map(|_| self.2.random_range(-0.05f32..0.05));
            let data = TensorData::new(values.collect::<Vec<f32>>(), shape);
            Param::from_tensor(Tensor::from_data(data, (&device, DType::F32)))
        }
    }

    let kinds = model.parameters.all().iter().map(|p| p.kind).collect();
    let mut noise = Noise(kinds, kind, ChaCha12Rng::seed_from_u64(5));
    map_parameters(model, 0, &mut noise)
}

/// Adapters that change something.
fn with_adapters<B: Backend>(
    (config, model): (LlamaConfig, Llama<B>),
    targets: &[&str],
) -> (LlamaConfig, Llama<B>) {
    let lora = Lora {
        rank: 3,
        alpha: 5.0,
        targets: targets.iter().map(|t| t.to_string()).collect(),
        rank_stabilised: false,
    };
    let model = model.with_new_adapters(&config, &lora, 7).unwrap();
    (config, disturbed(model, Kind::AdapterB))
}

fn all_targets() -> Vec<&'static str> {
    sppo_model::llama::lora::targets().collect()
}

/// Log-probabilities, and the gradient of each parameter.
type Outcome = (Vec<f64>, Vec<Option<Vec<f32>>>);

fn by_learner<B: TrainingOps>(model: &Llama<B>, recompute: Recompute) -> Outcome {
    let sequences = sequences();
    let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
    let pass = Pass::forward(model, recompute, &sequences, false).unwrap();
    let count = model.parameters.all().len();
    let (table, device) = (model.parameters.clone(), model.device());
    let mut gradients = Gradients::new(table, &SingleProcess, &device);
    let logps = pass.logps.clone();
    pass.backward(model, &WEIGHTS, &mut gradients);
    let values = |index| Some(gradients.remove(index)?.into_data().to_vec().unwrap());
    (logps, (0..count).map(values).collect())
}

/// A summed log-probability in f32 is up to 6.5e-6 away from f64 by numpy's kernel sets, ours were
/// up to 3.5e-6, and up to 3.0e-6 of a parameter's largest gradient, with AVX-512 and with AVX2:
/// bounds of three times that.
#[track_caller]
fn near(found: &Outcome, exact: &Exact) {
    for (found, exact) in found.0.iter().zip(&exact.logps) {
        assert!((found - exact).abs() < 2e-5, "{found} is not {exact}");
    }
    for (index, found) in found.1.iter().enumerate() {
        let Some(found) = found else { continue };
        let exact = &exact.gradients[index];
        let largest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
        assert_eq!(found.len(), exact.len());
        let gaps = found
            .iter()
            .zip(exact)
            .map(|(a, b)| (f64::from(*a) - b).abs());
        let gap = gaps.fold(0.0, f64::max);
        assert!(
            gap <= 1e-5 * largest,
            "parameter {index}: {gap} of {largest}"
        );
    }
}

fn agrees<B: TrainingOps>((config, model): (LlamaConfig, Llama<B>)) {
    let sequences = sequences();
    let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
    let exact = exact(&model.valid(), &config, &sequences, &WEIGHTS);
    let found = by_learner(&model, Recompute::None);
    let given = found.1.iter().map(Option::is_some);
    let trained = model.parameters.all().iter().map(|p| p.trained);
    assert!(
        given.eq(trained),
        "gradients of what is trained, and of nothing else"
    );
    assert!(
        by_learner(&model, Recompute::Layer) == found,
        "recomputing changes bits"
    );
    near(&found, &exact);
    let scored = sequence_logps(&model.valid(), &sequences).unwrap();
    assert_eq!(scored, found.0, "scoring differs from training");
    // Logits of five response tokens at a time instead of all.
    SMALL_CHUNKS.set(Some(5));
    for recompute in [Recompute::None, Recompute::Layer] {
        near(&by_learner(&model, recompute), &exact);
    }
    SMALL_CHUNKS.set(None);
}

#[test]
fn gradients_are_those_of_f64() {
    agrees::<Flex>(golden());
    agrees::<NdArray>(golden());
}

#[test]
fn with_tied_embeddings() {
    let tied = |config: &mut LlamaConfig| config.tie_word_embeddings = true;
    agrees::<Flex>(random(tied));
    agrees::<NdArray>(random(tied));
}

#[test]
fn with_biases() {
    agrees::<Flex>(random(|config| {
        config.attention_bias = true;
        config.mlp_bias = true;
    }));
}

#[test]
fn with_adapters_on_all_layers_or_some() {
    agrees::<Flex>(with_adapters(golden(), &all_targets()));
    agrees::<NdArray>(with_adapters(golden(), &["q_proj", "v_proj"]));
    let biased = random(|config| config.attention_bias = true);
    agrees::<Flex>(with_adapters(biased, &["k_proj", "down_proj"]));
}

/// Asking for what else the logits tell changes nothing, and gives it in one piece as in chunks.
#[test]
fn token_sums_come_from_the_logits_at_hand() {
    let (_, model) = golden::<Flex>();
    let sequences = sequences();
    let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
    let pass = |measure| Pass::forward(&model, Recompute::None, &sequences, measure).unwrap();
    let plain = pass(false);
    assert!(plain.token_sums.is_none());
    let whole = pass(true);
    assert_eq!(plain.logps, whole.logps);
    SMALL_CHUNKS.set(Some(5));
    let parts = pass(true);
    SMALL_CHUNKS.set(None);
    let (whole, parts) = (whole.token_sums.unwrap(), parts.token_sums.unwrap());
    let batch = PackedBatch::new(&sequences.iter().map(|s| &s.ids[..]).collect::<Vec<_>>());
    let logits = to_host(model.valid().logits(&batch)).unwrap();
    let vocab = model.vocab_size();
    for (i, sequence) in sequences.iter().enumerate() {
        let mut expected = TokenSums::default();
        for at in sequence.response_start..sequence.ids.len() {
            let row = &logits[batch.places[i].at(at - 1) * vocab..][..vocab];
            let sum: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
            let surprise = |z: f64| z.exp() / sum * (sum.ln() - z);
            expected.entropy += row.iter().map(|&z| surprise(z.into())).sum::<f64>();
            expected.logits += row.iter().map(|&z| f64::from(z)).sum::<f64>() / vocab as f64;
            let own = row[sequence.ids[at] as usize];
            expected.likeliest += f64::from(u8::from(row.iter().all(|&z| z <= own)));
        }
        for found in [whole[i], parts[i]] {
            assert!(
                (found.entropy - expected.entropy).abs() < 1e-4,
                "{found:?} {expected:?}"
            );
            assert!(
                (found.logits - expected.logits).abs() < 1e-4,
                "{found:?} {expected:?}"
            );
            assert_eq!(found.likeliest, expected.likeliest);
        }
    }
}

/// Notes what arrives, and when.
#[derive(Default)]
struct Arrivals(Vec<Result<usize, Group>>);

impl<B: Backend> GradientReceiver<B> for Arrivals {
    fn take(&mut self, index: usize, _grad: Tensor<B, 1>) {
        self.0.push(Ok(index));
    }

    fn done(&mut self, group: Group) {
        self.0.push(Err(group));
    }
}

/// A group's gradients are all there before the next group's come.
#[test]
fn gradients_arrive_group_by_group() {
    let tied = random::<Flex>(|config| config.tie_word_embeddings = true).1;
    let sequences = sequences();
    let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
    for model in [golden::<Flex>().1, tied] {
        for recompute in [Recompute::None, Recompute::Layer] {
            let mut arrivals = Arrivals::default();
            let pass = Pass::forward(&model, recompute, &sequences, false).unwrap();
            pass.backward(&model, &[1.0; 5], &mut arrivals);
            let done: Vec<Group> = arrivals.0.iter().filter_map(|a| a.err()).collect();
            let mut expected = vec![Group::Head];
            expected.extend((0..model.layers.len()).rev().map(Group::Block));
            expected.push(Group::Embeddings);
            assert_eq!(done, expected);
            let all = model.parameters.all();
            let mut closed = Vec::new();
            for arrival in arrivals.0 {
                match arrival {
                    Ok(index) => assert!(!closed.contains(&all[index].group), "{index}"),
                    Err(group) => closed.push(group),
                }
            }
        }
    }
}

/// Weights, and the optimizer's state by place in the table, master first.
type Bits = (Vec<Vec<u32>>, Vec<Vec<Vec<u32>>>);

fn bits<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<u32> {
    let values = to_f32(x.reshape([-1])).into_data();
    let values: Vec<f32> = values.to_vec().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

struct Whole(Vec<Vec<u32>>);

impl<B: Backend> sppo_model::llama::parameters::ParameterVisitor<B> for Whole {
    fn visit<const D: usize>(&mut self, _index: usize, parameter: &Param<Tensor<B, D>>) {
        self.0.push(bits(parameter.val()));
    }
}

/// A way from device to device, through the host.
struct ThroughHost(World);

impl<B: sppo_model::ops::ModelOps> DeviceTransport<B> for ThroughHost {
    fn reduce_scatter(&self, flat: Tensor<B, 1>) -> Arriving<B> {
        let (ranks, count) = (self.0.size(), flat.dims()[0]);
        let (own, device) = (count / ranks, flat.device());
        let values = to_host(flat).unwrap();
        let slices = self
            .0
            .all_to_all(values, &vec![own; ranks], &vec![own; ranks]);
        Box::new(move || {
            let mut sum = vec![0.0; own];
            for slice in slices.wait().chunks_exact(own) {
                sum.iter_mut().zip(slice).for_each(|(sum, x)| *sum += x);
            }
            Tensor::from_data(TensorData::new(sum, [own]), (&device, DType::F32))
        })
    }

    fn all_gather(&self, own: Tensor<B, 1>) -> Arriving<B> {
        let (dtype, device) = (own.dtype(), own.device());
        let values = to_host(to_f32(own)).unwrap();
        let counts = vec![values.len(); self.0.size()];
        let all = self.0.all_gather_f32(values, &counts);
        Box::new(move || {
            let all = all.wait();
            let count = all.len();
            let all = TensorData::new(all, [count]);
            Tensor::<B, 1>::from_data(all, (&device, DType::F32)).cast(dtype)
        })
    }
}

/// Three steps of three parts each on `size` ranks that are threads; the last rank idles in a round
/// where there are two or more. Every rank's weights, and the state of all together.
fn trained_by<B: TrainingOps>(
    size: usize,
    model: &(impl Fn() -> Llama<B> + Sync),
    optimizer: Optimizer,
    on_device: bool,
) -> Bits {
    let sequences = sequences();
    let parts: [&[usize]; 3] = [&[0, 1], &[2, 4], &[3]];
    let ranks = threads::run(size, |rank| {
        let world: World = Box::leak(Box::new(rank));
        let learner = Learner::<B>::new(model(), optimizer, Recompute::Layer, Some(0.5));
        let mut learner = learner.across(world);
        if on_device {
            learner.gradients.exchange().transport = Some(Arc::new(ThroughHost(world)));
        }
        let mut sent = 0;
        for _ in 0..3 {
            for round in parts.chunks(size) {
                learner.begin_round(round.len());
                let Some(part) = round.get(world.rank()) else {
                    learner.idle();
                    continue;
                };
                let rows: Vec<_> = part.iter().map(|&row| &sequences[row]).collect();
                let weights = part.iter().map(|&row| WEIGHTS[row]).collect();
                learner.backward(&rows, |_| weights).unwrap();
            }
            assert!(learner.step(1e-3).unwrap().updated);
            sent += learner.take_traffic().bytes;
        }
        assert!(learner.is_finite().unwrap());
        let mut weights = Whole(Vec::new());
        visit_parameters(&learner.valid(), 0, &mut weights);
        let state = learner.state().iter().map(|state| {
            let state = state.iter();
            let tensors = state.flat_map(|state| state.master.iter().chain(&state.slots));
            tensors.map(|t| bits(t.clone())).collect::<Vec<_>>()
        });
        // What is sent: slices of every part that is not one's own, and one's own weights.
        let groups = learner.shards().groups();
        let own: usize = groups.iter().map(|g| g.sizes()[world.rank()]).sum();
        let all: usize = groups.iter().map(ShardedGroup::len).sum();
        let mine = parts.iter().skip(world.rank()).step_by(size).count();
        let dtype = match weights.0.is_empty() {
            true => DType::F32,
            false => learner.valid().embed_tokens.val().dtype(),
        };
        let dtype = match learner.parameters().all()[0].trained {
            true => dtype,
            false => DType::F32,
        };
        let expected = 4 * mine * (all - own) + dtype.size() * own * (size - 1);
        if !on_device {
            assert_eq!(sent, 3 * expected as u64, "rank {} of {size}", world.rank());
        }
        // 64 KiB a group and slot above its share.
        let kept: usize = learner
            .state()
            .iter()
            .flatten()
            .flat_map(|state| state.master.iter().chain(&state.slots))
            .map(|t| 4 * t.dims()[0])
            .sum();
        let slots = optimizer.slots() + usize::from(dtype != DType::F32);
        let share = slots * (4 * all / size + groups.len() * (64 << 10));
        assert!(kept <= share, "{kept} bytes, {share} are its share");
        (weights.0, state.collect::<Vec<_>>())
    });
    let weights = ranks[0].0.clone();
    assert!(ranks.iter().all(|rank| rank.0 == weights), "ranks differ");
    let count = ranks[0].1.len();
    let slots = ranks.iter().flat_map(|rank| &rank.1).map(Vec::len).max();
    let state = (0..count).map(|index| {
        let slot = |slot: usize| {
            let of_rank = ranks.iter().filter_map(|rank| rank.1[index].get(slot));
            of_rank.flatten().copied().collect::<Vec<u32>>()
        };
        (0..slots.unwrap_or(0)).map(slot).collect()
    });
    (weights, state.collect())
}

/// Any number of ranks trains to the same bits, with more ranks than parts too.
#[test]
fn ranks_train_to_the_bits_of_one() {
    let adamw = Optimizer::AdamW(crate::optimizer::AdamW {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.01,
    });
    let rmsprop = Optimizer::RmsProp(crate::optimizer::RmsProp {
        alpha: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    });
    fn same<B: TrainingOps>(optimizer: Optimizer, model: impl Fn() -> Llama<B> + Sync) {
        let one = trained_by(1, &model, optimizer, false);
        for size in [2, 3, 4] {
            let many = trained_by(size, &model, optimizer, false);
            assert!(many == one, "{size} ranks");
        }
        // From device to device one round's parts are added as the owner adds them here; over two
        // rounds the order would be another.
        for size in [3, 4] {
            let many = trained_by(size, &model, optimizer, true);
            assert!(many == one, "{size} ranks, from device to device");
        }
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama");
    let bf16 = || {
        Llama::load(&dir, DType::BF16, &Default::default())
            .unwrap()
            .1
    };
    same::<Flex>(rmsprop, || golden().1);
    same::<NdArray>(adamw, || golden().1);
    same::<Flex>(adamw, bf16);
    same::<Flex>(adamw, || {
        random(|config| config.tie_word_embeddings = true).1
    });
    same::<Flex>(rmsprop, || {
        with_adapters(golden(), &["q_proj", "down_proj"]).1
    });
}
