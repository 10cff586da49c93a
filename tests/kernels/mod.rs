//! The kernels of GPUs against Flex, values and gradients, at sizes that fit no vector and no tile.

use std::path::Path;

use burn::tensor::{DType, Tensor, TensorData};
use burn_autodiff::Autodiff;
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use sppo_model::llama::{Decoder, Llama, Piece, Prefix};
use sppo_model::ops::{
    AdamW, CachedStep, Heads, Likeliest, ModelOps, Optimizer, PackedAttention, RmsProp, Rotation,
    Sgd, TokenIds, UpdateStep, Updating, cast, to_f32, to_host,
};
use sppo_model::packed_batch::PackedBatch;

type Flex = burn_flex::Flex<f32, i32>;

/// Random numbers, the same for all backends.
struct Random(ChaCha12Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha12Rng::seed_from_u64(seed))
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.0.random_range(-1.0..1.0)).collect()
    }

    fn tensor<B: ModelOps, const D: usize>(
        &mut self,
        shape: [usize; D],
        place: &Place<B>,
    ) -> Tensor<B, D> {
        let data = TensorData::new(self.values(shape.iter().product()), shape);
        let x: Tensor<B, D> = Tensor::from_data(data, (&place.device, DType::F32));
        // Rounded everywhere alike, also where the dtype is wider than that under test.
        match place.rounds {
            true => cast(cast(x, DType::BF16), place.dtype),
            false => cast(x, place.dtype),
        }
    }
}

/// Where and in what a case runs.
struct Place<B: ModelOps> {
    device: B::Device,
    dtype: DType,
    /// Whether inputs are rounded to bf16.
    rounds: bool,
}

fn numbers<B: ModelOps, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    to_host(to_f32(x)).unwrap()
}

/// A case gives the tensors to compare.
trait Case {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>>;
}

/// Runs a case on a backend in `dtype` and on Flex in f32, and compares. Flex is held to f64 in
/// model/src/ops/tests.rs, within 1e-5 of the largest; the rest is the kernel's: sums of thousands of
/// terms in an order of its own, in bf16 a rounding of 2⁻⁹ of each input and result.
fn compare<B: ModelOps>(device: &B::Device, dtype: DType, name: &str, case: &impl Case) {
    let rounds = dtype == DType::BF16;
    compare_within::<B>(device, dtype, name, case, if rounds { 2e-2 } else { 1e-4 });
}

/// The same up to `bound` of a tensor's largest.
fn compare_within<B: ModelOps>(
    device: &B::Device,
    dtype: DType,
    name: &str,
    case: &impl Case,
    bound: f32,
) {
    let rounds = dtype == DType::BF16;
    let place = Place::<Autodiff<B>> {
        device: device.clone(),
        dtype,
        rounds,
    };
    let exact = Place::<Autodiff<Flex>> {
        device: Default::default(),
        dtype: DType::F32,
        rounds,
    };
    let (found, expected) = (case.run::<B>(&place), case.run::<Flex>(&exact));
    assert_eq!(found.len(), expected.len());
    for (which, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{name}, {which}");
        let largest = expected.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let (at, error) = found
            .iter()
            .zip(expected)
            .map(|(a, b)| match (a - b).abs() {
                error if error.is_nan() => f32::INFINITY,
                error => error,
            })
            .enumerate()
            .fold(
                (0, 0.0),
                |most, next| if next.1 > most.1 { next } else { most },
            );
        assert!(
            error <= bound * largest.max(1e-6),
            "{name}, tensor {which}, element {at} of {}: {} is not {}; the largest is {largest}",
            found.len(),
            found[at],
            expected[at]
        );
    }
}

/// The gradients of a weighted sum of `out` by `leaves`, and `out` itself.
macro_rules! with_gradients {
    ($random:expr, $place:expr, $out:expr, $($leaf:expr),*) => {{
        let out = $out;
        let weights = $random.tensor(out.dims(), $place);
        let grads = (out.clone() * weights).sum().backward();
        vec![numbers(out.inner()), $(numbers($leaf.grad(&grads).unwrap())),*]
    }};
}

/// The norm of a sum, which goes around the norm, too.
struct NormOfSum(usize, usize);

impl Case for NormOfSum {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(13);
        let [x, residual] = [(); 2].map(|()| {
            let x: Tensor<Autodiff<B>, 2> = random.tensor([self.0, self.1], place);
            x.require_grad()
        });
        let weight = random.tensor([self.1], place).require_grad();
        let (leaves, eps) = ((x.clone(), residual.clone()), 1e-5);
        let (sum, normed) =
            Autodiff::<B>::residual_rms_norm(leaves.0, leaves.1, weight.clone(), eps);
        let out = sum + normed;
        with_gradients!(random, place, out, x, residual, weight)
    }
}

struct Norm(usize, usize);

impl Case for Norm {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(1);
        let x = random.tensor([self.0, self.1], place).require_grad();
        let weight = random.tensor([self.1], place).require_grad();
        let out = Autodiff::<B>::rms_norm(x.clone(), weight.clone(), 1e-5);
        with_gradients!(random, place, out, x, weight)
    }
}

struct Gated(usize, usize);

impl Case for Gated {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(2);
        let gate = (random.tensor([self.0, self.1], place) * 20).require_grad();
        let up = random.tensor([self.0, self.1], place).require_grad();
        let out = Autodiff::<B>::swiglu(gate.clone(), up.clone());
        with_gradients!(random, place, out, gate, up)
    }
}

/// Tokens, heads, width of a head.
struct Turned(usize, usize, usize);

impl Case for Turned {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let (mut random, device) = (Random::new(3), &place.device);
        let frequencies = frequencies(self.2);
        let positions: Vec<u32> = (0..self.0 as u32).map(|i| i * 7 % 1000).collect();
        let x = random.tensor([self.0, self.1 * self.2], place).inner();
        let rotation = Rotation::<B>::new(&frequencies, &positions, place.dtype, device);
        vec![numbers(B::rotate(x, &rotation, 0.25))]
    }
}

fn frequencies(width: usize) -> Vec<f32> {
    let half = width / 2;
    (0..half)
        .map(|i| 1e-4f32.powf(i as f32 / half as f32))
        .collect()
}

/// Rows, hidden, vocabulary.
struct Logps(usize, usize, usize);

impl Case for Logps {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(4);
        let x = (random.tensor([self.0, self.1], place) * 4).require_grad();
        let weight = random.tensor([self.2, self.1], place).require_grad();
        let targets: Vec<u32> = (0..self.0).map(|i| (i * 31 % self.2) as u32).collect();
        let targets = TokenIds::new(&targets, &place.device);
        let targets = TokenIds::from_inner(targets);
        let out = Autodiff::<B>::target_logps(x.clone(), weight.clone(), &targets);
        let weights = to_f32(random.tensor([self.0], place));
        let grads = (out.clone() * weights).sum().backward();
        let (same, measures) =
            Autodiff::<B>::measured_target_logps(x.clone(), weight.clone(), &targets);
        assert_eq!(numbers(same.inner()), numbers(out.clone().inner()));
        // Entropy and mean; which of two nearly equal logits is the larger is rounding's affair.
        let measures = measures.inner().slice([0..self.0, 0..2]);
        vec![
            numbers(out.inner()),
            numbers(measures),
            numbers(x.grad(&grads).unwrap()),
            numbers(weight.grad(&grads).unwrap()),
        ]
    }
}

/// Tokens, hidden, vocabulary.
struct Embedded(usize, usize, usize);

impl Case for Embedded {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(5);
        let weight = random.tensor([self.2, self.1], place).require_grad();
        let ids: Vec<u32> = (0..self.0).map(|i| (i * i % self.2) as u32).collect();
        let ids = TokenIds::from_inner(TokenIds::new(&ids, &place.device));
        let out = Autodiff::<B>::embed(weight.clone(), &ids);
        with_gradients!(random, place, out, weight)
    }
}

struct Attends {
    heads: Heads,
    /// Shared by all sequences.
    prompt: usize,
    responses: Vec<usize>,
}

impl Case for Attends {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let (mut random, heads) = (Random::new(6), self.heads);
        let sequences: Vec<Vec<u32>> = self
            .responses
            .iter()
            .enumerate()
            .map(|(number, &tokens)| {
                let prompt = 0..self.prompt as u32;
                let response = (0..tokens as u32).map(|i| (number as u32 + 1) * 100_000 + i);
                prompt.chain(response).collect()
            })
            .collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let batch = PackedBatch::new(&sequences);
        let over = PackedAttention::<B>::new(
            &batch,
            &frequencies(heads.dim),
            heads,
            place.dtype,
            &place.device,
        );
        let over = PackedAttention::from_inner(over);
        let tokens = batch.tokens();
        let mut heads_of =
            |count: usize| (random.tensor([tokens, count * heads.dim], place) * 2).require_grad();
        let (q, k, v) = (
            heads_of(heads.queries),
            heads_of(heads.kv),
            heads_of(heads.kv),
        );
        let out = Autodiff::<B>::packed_attention(q.clone(), k.clone(), v.clone(), &over);
        with_gradients!(random, place, out, q, k, v)
    }
}

/// One token behind each of some cached sequences; on Flex by plain sums.
struct Appends {
    heads: Heads,
    lengths: Vec<u32>,
    capacity: usize,
}

impl Case for Appends {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let (mut random, heads, device) = (Random::new(9), self.heads, &place.device);
        let rows = self.lengths.len();
        let width = |count: usize| [rows, count * heads.dim];
        let mut new = |count| (random.tensor(width(count), place) * 2).inner();
        let new = [new(heads.queries), new(heads.kv), new(heads.kv)];
        let shape = [rows + 1, heads.kv, self.capacity, heads.dim];
        let mut caches = [(); 2].map(|()| random.tensor(shape, place).inner());
        let step = CachedStep {
            heads,
            rotation: Rotation::<B>::new(
                &frequencies(heads.dim),
                &self.lengths,
                place.dtype,
                device,
            ),
            lengths: TokenIds::new(&self.lengths, device),
        };
        let [keys, values] = &mut caches;
        let mixed = match B::append_and_attend(new.clone(), &step, [keys, values]) {
            Some(mixed) => numbers(mixed),
            None => self.plainly(&step, new, &mut caches),
        };
        let caches = caches.map(|cache| numbers(cache.slice([0..rows])));
        [mixed].into_iter().chain(caches).collect()
    }
}

impl Appends {
    fn plainly<B: ModelOps>(
        &self,
        step: &CachedStep<B>,
        [q, k, v]: [Tensor<B, 2>; 3],
        caches: &mut [Tensor<B, 4>; 2],
    ) -> Vec<f32> {
        let heads = self.heads;
        let (dim, device) = (heads.dim, q.device());
        let [q, k] = [q, k].map(|x| numbers(B::rotate(x, &step.rotation, 1.0)));
        let new = [k, numbers(v)];
        let mut cells = caches.clone().map(numbers);
        let mut mixed = Vec::new();
        for (row, &length) in self.lengths.iter().enumerate() {
            let length = length as usize;
            let place =
                |kv: usize, column: usize| ((row * heads.kv + kv) * self.capacity + column) * dim;
            for kv in 0..heads.kv {
                for (cells, new) in cells.iter_mut().zip(&new) {
                    let from = &new[(row * heads.kv + kv) * dim..][..dim];
                    cells[place(kv, length)..][..dim].copy_from_slice(from);
                }
            }
            for head in 0..heads.queries {
                let kv = head / heads.group();
                let query = &q[(row * heads.queries + head) * dim..][..dim];
                let score = |column: usize| {
                    let key = &cells[0][place(kv, column)..][..dim];
                    let product = query.iter().zip(key).map(|(a, b)| f64::from(a * b));
                    (product.sum::<f64>() * heads.scale()).exp()
                };
                let weights: Vec<f64> = (0..=length).map(score).collect();
                let sum: f64 = weights.iter().sum();
                mixed.extend((0..dim).map(|i| {
                    let value = |column| f64::from(cells[1][place(kv, column) + i]);
                    let all = weights.iter().enumerate();
                    (all.map(|(c, weight)| weight * value(c)).sum::<f64>() / sum) as f32
                }));
            }
        }
        for (cache, cells) in caches.iter_mut().zip(cells) {
            let data = TensorData::new(cells, cache.dims());
            *cache = Tensor::from_data(data, (&device, DType::F32));
        }
        mixed
    }
}

/// Of tensors of some sizes, more than one launch takes.
struct Updates(Optimizer, Vec<usize>);

impl Case for Updates {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(7);
        let mut vector = |size| to_f32(random.tensor([size], place)).inner();
        let mut updating: Vec<Updating<B>> = Vec::new();
        for &size in &self.1 {
            updating.push(Updating {
                weights: vector(size),
                grad: vector(size),
                slots: Vec::new(),
            });
        }
        let mut rounded = Vec::new();
        for number in 1..=3 {
            let step = UpdateStep {
                rate: 0.01,
                number,
                gradient_scale: 0.5,
            };
            let updated = B::update(&self.0, step, updating, place.dtype, &mut None);
            rounded = updated.iter().map(|one| one.rounded.clone()).collect();
            let next = updated.into_iter().zip(&self.1);
            updating = next
                .map(|(one, &size)| Updating {
                    weights: one.weights,
                    grad: vector(size),
                    slots: one.slots,
                })
                .collect();
        }
        let mut found = Vec::new();
        for (one, rounded) in updating.into_iter().zip(rounded) {
            found.push(rounded.map_or_else(|| numbers(one.weights.clone()), numbers));
            found.push(numbers(one.weights));
            found.extend(one.slots.into_iter().map(numbers));
        }
        found
    }
}

struct Squares;

impl Case for Squares {
    fn run<B: ModelOps>(&self, place: &Place<Autodiff<B>>) -> Vec<Vec<f32>> {
        let mut random = Random::new(8);
        // More tensors than one launch takes.
        let sizes = [1, 77, 16_384, 40_001, 5].into_iter().cycle().take(21);
        let tensors = sizes.map(|size| to_f32(random.tensor([size], place)).inner() * 1e15);
        let sums = B::sums_of_squares(tensors.collect()).unwrap();
        let sums = sums.into_iter();
        sums.map(|sums| sums.into_iter().map(|sum| (sum * 1e-30) as f32).collect())
            .collect()
    }
}

fn rows_and_elements<B: ModelOps>(device: &B::Device, dtype: DType) {
    for (rows, width) in [(1, 1), (1, 64), (3, 65), (700, 48), (5, 4096), (33, 1030)] {
        let name = format!("{rows} × {width}");
        // Of one number x the gradient is what ε leaves of 1 − x²/(x² + ε): 2⁻²⁴ · x²/ε of it is rounding.
        let bound = match dtype {
            DType::BF16 => 2e-2,
            _ if width == 1 => 1e-2,
            _ => 1e-4,
        };
        let norm = Norm(rows, width);
        compare_within::<B>(device, dtype, &format!("norm of {name}"), &norm, bound);
        compare::<B>(
            device,
            dtype,
            &format!("norm of a sum of {name}"),
            &NormOfSum(rows, width),
        );
        compare::<B>(
            device,
            dtype,
            &format!("SwiGLU of {name}"),
            &Gated(rows, width),
        );
    }
    for (tokens, heads, width) in [(1, 1, 64), (7, 3, 80), (130, 8, 128), (5, 2, 6)] {
        let name = format!("rotation of {tokens}, {heads}, {width}");
        compare::<B>(device, dtype, &name, &Turned(tokens, heads, width));
    }
}

fn tokens<B: ModelOps>(device: &B::Device, dtype: DType) {
    for (rows, hidden, vocab) in [(1, 8, 3), (5, 16, 301), (40, 32, 4096)] {
        let name = format!("{rows}, {hidden}, {vocab}");
        compare::<B>(
            device,
            dtype,
            &format!("logps of {name}"),
            &Logps(rows, hidden, vocab),
        );
        let embedded = Embedded(rows, hidden, vocab);
        compare::<B>(device, dtype, &format!("embeddings of {name}"), &embedded);
    }
}

fn attention<B: ModelOps>(device: &B::Device, dtype: DType) {
    let heads = |queries, kv, dim| Heads { queries, kv, dim };
    let cases = [
        (heads(1, 1, 64), 0, vec![1]),
        (heads(4, 1, 80), 0, vec![1, 2, 3]),
        (heads(8, 8, 16), 5, vec![3, 40, 17]),
        (heads(8, 2, 64), 33, vec![100, 31]),
        (heads(8, 1, 128), 10, vec![20, 30]),
        // Several padded batches.
        (heads(2, 1, 16), 0, vec![1300, 40, 50, 1290]),
        // Two tiles and more.
        (heads(2, 2, 16), 300, vec![600, 1700]),
    ];
    for (heads, prompt, responses) in cases {
        let name = format!("attention of {heads:?}, {prompt} + {responses:?}");
        let case = Attends {
            heads,
            prompt,
            responses,
        };
        compare::<B>(device, dtype, &name, &case);
    }
}

/// Passes with and without a graph agree to the bit: policy and reference of the same weights.
fn passes_agree<B: ModelOps>(device: &B::Device, dtype: DType) {
    let place = Place::<Autodiff<B>> {
        device: device.clone(),
        dtype,
        rounds: dtype == DType::BF16,
    };
    let (mut random, heads) = (
        Random::new(10),
        Heads {
            queries: 4,
            kv: 2,
            dim: 16,
        },
    );
    let ids: Vec<u32> = (0..70).collect();
    let batch = PackedBatch::new(&[&ids]);
    let over = PackedAttention::<B>::new(&batch, &frequencies(16), heads, dtype, device);
    let graph_over = PackedAttention::from_inner(over.clone());
    let targets = TokenIds::<B>::new(&ids, device);
    let graph_targets = TokenIds::from_inner(targets.clone());
    let [q, gate] = [(); 2].map(|()| random.tensor([70, 64], &place));
    let [k, v] = [(); 2].map(|()| random.tensor([70, 32], &place));
    let (norm, weight) = (
        random.tensor([64], &place),
        random.tensor([301, 64], &place),
    );
    let inner = {
        let (q, k, v) = (q.clone().inner(), k.clone().inner(), v.clone().inner());
        let mixed = B::packed_attention(q, k, v, &over);
        let x = B::swiglu(gate.clone().inner(), mixed);
        let (x, _) = B::residual_rms_norm(x.clone(), x, norm.clone().inner(), 1e-5);
        let x = B::rms_norm(x, norm.clone().inner(), 1e-5);
        B::target_logps(x, weight.clone().inner(), &targets)
    };
    let graph = {
        let (q, k, v) = (q.require_grad(), k.require_grad(), v.require_grad());
        let mixed = Autodiff::<B>::packed_attention(q, k, v, &graph_over);
        let x = Autodiff::<B>::swiglu(gate.require_grad(), mixed);
        let norm = norm.require_grad();
        let (x, _) = Autodiff::<B>::residual_rms_norm(x.clone(), x, norm.clone(), 1e-5);
        let x = Autodiff::<B>::rms_norm(x, norm, 1e-5);
        Autodiff::<B>::target_logps(x, weight.require_grad(), &graph_targets)
    };
    assert_eq!(numbers(inner), numbers(graph.inner()));
}

fn appends<B: ModelOps>(device: &B::Device, dtype: DType) {
    let heads = |queries, kv, dim| Heads { queries, kv, dim };
    for (heads, lengths) in [
        (heads(1, 1, 6), vec![0]),
        (heads(4, 2, 16), vec![0, 5, 127, 128, 129]),
        (heads(3, 1, 80), vec![300, 17]),
        (heads(8, 1, 128), vec![63, 512]),
        (heads(4, 4, 64), vec![700]),
    ] {
        let name = format!("{heads:?} behind {lengths:?}");
        let capacity = 704;
        let case = Appends {
            heads,
            lengths,
            capacity,
        };
        compare::<B>(device, dtype, &name, &case);
    }
}

fn optimizers() -> [Optimizer; 3] {
    [
        Optimizer::RmsProp(RmsProp {
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
        }),
        Optimizer::AdamW(AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.1,
        }),
        Optimizer::Sgd(Sgd { weight_decay: 0.1 }),
    ]
}

fn updates<B: ModelOps>(device: &B::Device, dtype: DType) {
    for optimizer in optimizers() {
        for sizes in [vec![1], vec![4096], [7, 4096, 1, 300].repeat(5)] {
            let name = format!("{optimizer:?} of {sizes:?}");
            compare::<B>(device, dtype, &name, &Updates(optimizer, sizes));
        }
    }
    compare::<B>(device, dtype, "squares", &Squares);
    updates_tell_what_is_not_finite::<B>(device, dtype);
}

/// A weight that leaves the numbers, wherever it is, is told at once and from then on.
fn updates_tell_what_is_not_finite<B: ModelOps>(device: &B::Device, dtype: DType) {
    let step = UpdateStep {
        rate: 0.01,
        number: 1,
        gradient_scale: 1.0,
    };
    let float = |values: Vec<f32>| {
        let count = values.len();
        Tensor::<B, 1>::from_data(TensorData::new(values, [count]), (device, DType::F32))
    };
    for optimizer in optimizers() {
        for (value, place) in [
            (f32::NAN, 0),
            (f32::INFINITY, 4099),
            (f32::NEG_INFINITY, 7),
            (1e30, 4099),
        ] {
            let mut found = None;
            let mut run = |value: f32| {
                let updating = [3, 4100, 64].map(|size: usize| {
                    let mut grad = vec![0.5; size];
                    if let Some(last) = grad.get_mut(place) {
                        *last = value;
                    }
                    Updating {
                        weights: float(vec![1.0; size]),
                        grad: float(grad),
                        slots: Vec::new(),
                    }
                });
                let updated = B::update(&optimizer, step, updating.into(), dtype, &mut found);
                let finite = updated.into_iter().all(|one| {
                    let mut all: Vec<f32> = one.slots.into_iter().flat_map(numbers).collect();
                    all.extend(numbers(one.weights));
                    all.iter().all(|x| x.is_finite())
                });
                let told = found.clone().map(|found| numbers(found)[0] > 0.0);
                (finite, told.expect("a GPU's kernels look"))
            };
            assert_eq!(run(0.5), (true, false), "{optimizer:?}");
            let (finite, told) = run(value);
            // The square of 1e30 is none of f32's; SGD has no squares.
            assert!(!finite || value == 1e30 && optimizer.slots() == 0);
            assert_eq!(told, !finite, "{optimizer:?}: {value}");
            assert_eq!(run(0.5).1, told, "{optimizer:?}: {value}");
        }
    }
}

/// The largest logits of rows; ties go to the least token.
fn likeliest<B: ModelOps>(device: &B::Device, _: DType) {
    let mut random = Random::new(11);
    for (rows, vocab, count) in [(1, 65, 32), (3, 1000, 32), (2, 70_001, 32), (4, 300, 20)] {
        let values: Vec<f32> = random
            .values(rows * vocab)
            .into_iter()
            .map(|x| (x * 500.0).round())
            .collect();
        let data = TensorData::new(values.clone(), [rows, vocab]);
        let logits = Tensor::<B, 2>::from_data(data, (device, DType::F32));
        let scales: Vec<f32> = (0..rows).map(|row| 0.7 + row as f32).collect();
        let on_device = TensorData::new(scales.clone(), [rows]);
        let on_device = Tensor::<B, 1>::from_data(on_device, (device, DType::F32));
        let Likeliest { floats, tokens } = B::likeliest(logits, on_device, count);
        let tokens = tokens.into_data().convert::<i64>();
        let floats = numbers(floats);
        for ((found, row), scale) in floats
            .chunks(count + 2)
            .zip(values.chunks(vocab))
            .zip(&scales)
        {
            for (found, scale) in found[count..].iter().zip([*scale as f64, 1.0]) {
                let largest = row.iter().copied().fold(f32::MIN, f32::max) as f64;
                let terms = row.iter().map(|&x| ((x as f64 - largest) * scale).exp());
                let expected: f64 = terms.sum();
                // Some hundred terms one after the other and 256 as a tree, in f32.
                let gap = (*found as f64 - expected).abs() / expected;
                assert!(gap < 2e-5, "{found}, not {expected}");
            }
        }
        let best = floats
            .chunks(count + 2)
            .flat_map(|row| row[..count].to_vec());
        let found = best.zip(tokens.to_vec::<i64>().unwrap());
        let expected = values.chunks(vocab).flat_map(|row| {
            let mut order: Vec<(f32, i64)> = row.iter().copied().zip(0..).collect();
            order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            order.truncate(count);
            order
        });
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    }
    // What is not finite reaches both sums, wherever it stands.
    for (bad, place) in [
        (f32::NAN, 0),
        (f32::NAN, 299),
        (f32::INFINITY, 256),
        (f32::NEG_INFINITY, 1),
    ] {
        let mut values = vec![0.25f32; 300];
        values[place] = bad;
        let logits = TensorData::new(values, [1, 300]);
        let logits = Tensor::<B, 2>::from_data(logits, (device, DType::F32));
        let scales = Tensor::<B, 1>::ones([1], (device, DType::F32));
        let sums = numbers(B::likeliest(logits, scales, 20).floats)[20..].to_vec();
        // A token that is never drawn is no fault.
        let expected = bad == f32::NEG_INFINITY;
        assert!(
            sums.iter().all(|sum| sum.is_finite() == expected),
            "{bad} {sums:?}"
        );
    }
}

/// A slot's first tokens in another, zeros behind them, all else as it was.
fn copied_slots<B: ModelOps>(device: &B::Device, dtype: DType) {
    let place = Place::<Autodiff<B>> {
        device: device.clone(),
        dtype,
        rounds: dtype == DType::BF16,
    };
    let (shape, tokens) = ([3, 2, 64, 6], 17);
    let mut random = Random::new(12);
    let mut caches = [(); 2].map(|()| random.tensor(shape, &place).inner());
    let before = caches.clone().map(|cache| numbers(cache.mul_scalar(1.0)));
    let [keys, values] = &mut caches;
    assert!(B::copy_slot([keys, values], 2, 0, tokens));
    for (cache, mut expected) in caches.into_iter().zip(before) {
        let slot = 2 * 64 * 6;
        for i in 0..slot {
            let copied = expected[2 * slot + i];
            expected[i] = if i % (64 * 6) < tokens * 6 {
                copied
            } else {
                0.0
            };
        }
        assert_eq!(numbers(cache), expected);
    }
}

/// Prompts at the start of slots, zeros behind them, all else as it was.
fn filled_slots<B: ModelOps>(device: &B::Device, dtype: DType) {
    let place = Place::<Autodiff<B>> {
        device: device.clone(),
        dtype,
        rounds: dtype == DType::BF16,
    };
    let (kv, capacity, dim) = (2, 64, 6);
    let mut random = Random::new(13);
    let mut caches = [(); 2].map(|()| random.tensor([5, kv, capacity, dim], &place).inner());
    let rows = [(); 2].map(|()| random.tensor([70, kv, dim], &place).inner());
    let before = caches.clone().map(|cache| numbers(cache.mul_scalar(1.0)));
    // Two of them of the same rows, one of a whole slot.
    let fills: [[usize; 3]; 4] = [[3, 0, 5], [0, 5, 1], [4, 6, 64], [1, 0, 5]];
    let table = fills
        .concat()
        .into_iter()
        .map(|n| n as i64)
        .collect::<Vec<_>>();
    let table = Tensor::from_data(TensorData::new(table, [3 * fills.len()]), device);
    let [keys, values] = &mut caches;
    assert!(B::fill_slots([keys, values], rows.clone(), table));
    for ((cache, mut expected), rows) in caches.into_iter().zip(before).zip(rows.map(numbers)) {
        for [slot, first, tokens] in fills {
            for (head, at) in (0..kv).flat_map(|head| (0..capacity).map(move |at| (head, at))) {
                let to = ((slot * kv + head) * capacity + at) * dim;
                let from = ((first + at) * kv + head) * dim;
                for i in 0..dim {
                    expected[to + i] = if at < tokens { rows[from + i] } else { 0.0 };
                }
            }
        }
        assert_eq!(numbers(cache), expected);
    }
}

/// Outputs of the next tokens of some prompts in one pass.
fn pass<B: ModelOps>(
    decoder: &Decoder<B>,
    prefixes: &mut [Prefix<B>],
    tokens: &[(usize, &[u32])],
) -> Vec<Vec<f32>> {
    let mut pieces: Vec<Piece<'_, B>> = Vec::new();
    for (number, prefix) in prefixes.iter_mut().enumerate() {
        if let Some(&(_, tokens)) = tokens.iter().find(|(n, _)| *n == number) {
            pieces.push(Piece { tokens, prefix });
        }
    }
    let (hidden, rows) = decoder.prefill(&mut pieces);
    let rows = rows.into_iter();
    rows.map(|rows| numbers(hidden.clone().narrow(0, rows.start, rows.len())))
        .collect()
}

/// Prompts of one token and of many in one pass give what each gives alone on Flex.
fn prompts_together<B: ModelOps>(device: &B::Device, dtype: DType) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/llama");
    let prompts = [1u32, 40, 7, 1, 129, 64].map(|length| {
        let tokens = (0..length).map(|i| (i * 31 + length) % 400);
        tokens.collect::<Vec<u32>>()
    });
    let (config, model) = Llama::<Flex>::load(&golden, DType::F32, &Default::default()).unwrap();
    let decoder = Decoder::new(model, &config);
    let alone = prompts.iter().map(|prompt| {
        let mut prefix = [Prefix::default()];
        pass(&decoder, &mut prefix, &[(0, prompt)]).remove(0)
    });
    let alone: Vec<Vec<f32>> = alone.collect();
    let (config, model) = Llama::<B>::load(&golden, dtype, device).unwrap();
    let decoder = Decoder::new(model, &config);
    let mut prefixes = vec![Prefix::default(); prompts.len()];
    // The long one in two passes, of which the second brings two others.
    let all = |n: usize| (n, &prompts[n][..]);
    let (begin, rest) = prompts[4].split_at(100);
    let first = [all(0), all(1), all(2), (4, begin)];
    let mut first = pass(&decoder, &mut prefixes, &first);
    let second = [all(3), (4, rest), all(5)];
    let mut second = pass(&decoder, &mut prefixes, &second);
    let long = [first.remove(3), second.remove(1)].concat();
    let last = second.remove(1);
    let found = first.into_iter().chain([second.remove(0), long, last]);
    let bound = if dtype == DType::BF16 { 0.1 } else { 1e-4 };
    for (found, expected) in found.zip(alone) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= bound * largest, "{a} is not {b}");
        }
    }
    for (prefix, prompt) in prefixes.iter().zip(&prompts) {
        assert_eq!(prefix.tokens(), prompt.len());
    }
}

macro_rules! cases {
    ($Backend:ty, $dtype:expr, $(#[$ignored:meta])?) => {
        type Backend = $Backend;

        #[test]
        $(#[$ignored])?
        fn rows_and_elements() {
            super::rows_and_elements::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn tokens() {
            super::tokens::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn attention() {
            super::attention::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn appends() {
            super::appends::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn passes_agree() {
            super::passes_agree::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn likeliest() {
            super::likeliest::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn copied_slots() {
            super::copied_slots::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn filled_slots() {
            super::filled_slots::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn prompts_together() {
            super::prompts_together::<Backend>(&Default::default(), $dtype);
        }

        #[test]
        $(#[$ignored])?
        fn updates() {
            super::updates::<Backend>(&Default::default(), $dtype);
        }
    };
}

#[cfg(feature = "wgpu")]
mod wgpu {
    cases!(burn_wgpu::Wgpu<f32, i32, u32>, burn::tensor::DType::F32,);
}

#[cfg(feature = "cuda")]
mod cuda {
    cases!(burn_cuda::Cuda<f32, i32>, burn::tensor::DType::F32, #[ignore = "needs a GPU"]);
}

#[cfg(feature = "cuda")]
mod cuda_bf16 {
    cases!(burn_cuda::Cuda<f32, i32>, burn::tensor::DType::BF16, #[ignore = "needs a GPU"]);
}
