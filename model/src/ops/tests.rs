//! Every operation against plain tensor operations in f64, and its gradients against those that
//! Burn's autodiff gives in f64.
//!
//! Bounds are relative to the largest entry; "seen" is the most over Flex and NdArray, with AVX-512 and
//! with AVX2.

use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};

use burn::tensor::backend::Backend;

use super::*;
use crate::packed_batch::PackedBatch;

type Flex = burn_flex::Flex<f32, i32>;
type NdArray = burn_ndarray::NdArray<f32, i64, i8>;
/// f64 by dtype: NdArray<f64> would share its device's default dtype with NdArray<f32>.
type Double = Autodiff<Flex>;

/// Numbers within ±1 and their shape, the same each time.
#[derive(Clone)]
struct Numbers<const D: usize>(Vec<f32>, [usize; D]);

fn numbers<const D: usize>(seed: u64, shape: [usize; D]) -> Numbers<D> {
    let mut generator = ChaCha12Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values = (0..count).map(|_| generator.random_range(-1.0f32..1.0));
    Numbers(values.collect(), shape)
}

impl<const D: usize> Numbers<D> {
    fn f32<B: Backend>(&self) -> Tensor<B, D> {
        let data = TensorData::new(self.0.clone(), self.1);
        Tensor::from_data(data, (&Default::default(), DType::F32))
    }

    fn f64(&self) -> Tensor<Double, D> {
        let values: Vec<f64> = self.0.iter().map(|&x| x.into()).collect();
        let data = TensorData::new(values, self.1);
        Tensor::from_data(data, (&Default::default(), DType::F64))
    }
}

fn exact<const D: usize>(x: Tensor<Double, D>) -> Vec<f64> {
    x.into_data().to_vec().unwrap()
}

fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.into_data().to_vec().unwrap()
}

#[track_caller]
fn near(found: &[f32], exact: &[f64], bound: f64) {
    assert_eq!(found.len(), exact.len());
    let largest = exact.iter().fold(0f64, |m, x| m.max(x.abs()));
    let gaps = found
        .iter()
        .zip(exact)
        .map(|(a, b)| (f64::from(*a) - b).abs());
    let gap = gaps.fold(0.0, f64::max);
    if gap > 0.0 && std::env::var_os("SPPO_SHOW_ERRORS").is_some() {
        let at = std::panic::Location::caller();
        println!(
            "error {:.4} of {bound:e} {}:{}",
            gap / largest / bound,
            at.file(),
            at.line()
        );
    }
    assert!(gap <= bound * largest, "{gap:e} of {largest}");
}

/// Output and gradients of an operation with `N` matrices, its output weighted by `weights`.
struct Outcome<const N: usize> {
    out: Vec<f32>,
    gradients: [Vec<f32>; N],
}

/// The same in f64, by autodiff of plain operations.
fn plain<const N: usize, const D: usize>(
    inputs: &[Numbers<2>; N],
    weights: &Numbers<D>,
    run: impl Fn(&[Tensor<Double, 2>; N]) -> Tensor<Double, D>,
) -> (Vec<f64>, [Vec<f64>; N]) {
    let leaves = inputs.each_ref().map(|x| x.f64().require_grad());
    let out = run(&leaves);
    let mut grads = (out.clone() * weights.f64()).sum().backward();
    let gradients = leaves.map(|leaf| {
        let gradient = leaf.grad_remove(&mut grads).unwrap();
        gradient.into_data().to_vec().unwrap()
    });
    (exact(out), gradients)
}

/// By the backend's operation under autodiff.
fn tracked<B: Backend, const N: usize, const D: usize>(
    inputs: &[Numbers<2>; N],
    weights: &Numbers<D>,
    run: impl Fn(&[Tensor<Autodiff<B>, 2>; N]) -> Tensor<Autodiff<B>, D>,
) -> Outcome<N> {
    let leaves = inputs
        .each_ref()
        .map(|x| x.f32::<Autodiff<B>>().require_grad());
    let out = run(&leaves);
    let mut grads = (out.clone() * weights.f32()).sum().backward();
    Outcome {
        out: values(out),
        gradients: leaves.map(|leaf| values(leaf.grad_remove(&mut grads).unwrap())),
    }
}

#[track_caller]
fn compare<const N: usize>(
    found: Outcome<N>,
    (out, gradients): &(Vec<f64>, [Vec<f64>; N]),
    bound: f64,
) {
    near(&found.out, out, bound);
    for (found, exact) in found.gradients.iter().zip(gradients) {
        near(found, exact, bound);
    }
}

/// More rows than one thread takes, of an odd width; and one row.
const SHAPES: [[usize; 2]; 3] = [[300, 67], [1, 33], [7, 1]];

#[test]
fn rms_norm_and_its_gradients() {
    let eps = 1e-5;
    for [rows, width] in SHAPES {
        let inputs = [numbers(1, [rows, width]), numbers(2, [1, width])];
        let weights = numbers(3, [rows, width]);
        let expected = plain(&inputs, &weights, |[x, weight]| {
            let root = ((x.clone() * x.clone()).mean_dim(1) + eps).sqrt();
            x.clone() / root * weight.clone()
        });
        fn run<B: ModelOps>([x, weight]: &[Tensor<B, 2>; 2]) -> Tensor<B, 2> {
            B::rms_norm(x.clone(), weight.clone().squeeze_dim(0), 1e-5)
        }
        // Seen: 3.0e-7. A row of one number has almost no gradient, which is a difference.
        let bound = if width == 1 { 2e-3 } else { 2e-6 };
        compare(
            tracked::<Flex, 2, 2>(&inputs, &weights, run),
            &expected,
            bound,
        );
        compare(
            tracked::<NdArray, 2, 2>(&inputs, &weights, run),
            &expected,
            bound,
        );
        let [x, weight] = &inputs;
        let weight: Tensor<Flex, 1> = weight.f32().squeeze_dim(0);
        let out = norm::rms_norm(x.f32::<Flex>(), weight.clone(), eps);
        let (of_x, of_weight) = norm::rms_norm_backward(weights.f32(), x.f32(), weight, eps, None);
        let found = Outcome {
            out: values(out),
            gradients: [values(of_x), values(of_weight)],
        };
        compare(found, &expected, bound);
    }
}

#[test]
fn the_norm_of_a_sum_and_its_gradients() {
    for [rows, width] in SHAPES {
        let inputs = [1, 2].map(|seed| numbers(seed, [rows, width]));
        let weights = numbers(3, [rows, width]);
        let expected = plain(&inputs, &weights, |[x, residual]| {
            let sum = x.clone() + residual.clone();
            let root = ((sum.clone() * sum.clone()).mean_dim(1) + 1e-5).sqrt();
            sum.clone() / root * 0.5 + sum
        });
        fn run<B: ModelOps>([x, residual]: &[Tensor<B, 2>; 2]) -> Tensor<B, 2> {
            let weight = Tensor::full([x.dims()[1]], 0.5, &x.device());
            let (sum, normed) = B::residual_rms_norm(x.clone(), residual.clone(), weight, 1e-5);
            sum + normed
        }
        compare(
            tracked::<Flex, 2, 2>(&inputs, &weights, run),
            &expected,
            2e-6,
        );
        compare(
            tracked::<NdArray, 2, 2>(&inputs, &weights, run),
            &expected,
            2e-6,
        );
    }
}

#[test]
fn swiglu_and_its_gradients() {
    for [rows, width] in [[300, 67], [1, 33], [7, 1]] {
        let mut inputs = [numbers(1, [rows, width]), numbers(2, [rows, width])];
        // Far out, too, where σ is 0 or 1.
        inputs[0].0.iter_mut().for_each(|x| *x *= 20.0);
        inputs[0].0[0] = -90.0;
        let weights = numbers(3, [rows, width]);
        let expected = plain(&inputs, &weights, |[gate, up]| {
            silu(gate.clone()) * up.clone()
        });
        fn run<B: ModelOps>([gate, up]: &[Tensor<B, 2>; 2]) -> Tensor<B, 2> {
            B::swiglu(gate.clone(), up.clone())
        }
        // Seen: 8.2e-7, of few numbers of which none is large.
        let bound = 3e-6;
        compare(
            tracked::<Flex, 2, 2>(&inputs, &weights, run),
            &expected,
            bound,
        );
        compare(
            tracked::<NdArray, 2, 2>(&inputs, &weights, run),
            &expected,
            bound,
        );
        let [gate, up] = inputs.map(|x| x.f32::<Flex>());
        let found = Outcome {
            out: values(feed_forward::swiglu(gate.clone(), up.clone())),
            gradients: feed_forward::swiglu_backward(weights.f32(), gate, up).map(values),
        };
        compare(found, &expected, bound);
    }
}

#[test]
fn linear_layers_and_their_gradients() {
    for [rows, width] in SHAPES {
        let inputs = [
            numbers(1, [rows, width]),
            numbers(2, [41, width]),
            numbers(3, [1, 41]),
        ];
        let weights = numbers(4, [rows, 41]);
        let expected = plain(&inputs, &weights, |[x, weight, bias]| {
            x.clone().matmul(weight.clone().transpose()) + bias.clone()
        });
        fn run<B: ModelOps>([x, weight, bias]: &[Tensor<B, 2>; 3]) -> Tensor<B, 2> {
            let bias = bias.clone().squeeze_dim(0);
            B::linear_layer(x.clone(), weight.clone(), Some(bias))
        }
        // Seen: 4.9e-7.
        compare(
            tracked::<Flex, 3, 2>(&inputs, &weights, run),
            &expected,
            2e-6,
        );
        compare(
            tracked::<NdArray, 3, 2>(&inputs, &weights, run),
            &expected,
            2e-6,
        );
    }
}

/// Nothing is computed, and nothing kept, for what has no gradient.
#[test]
fn frozen_weights_have_no_gradient() {
    let x = numbers(1, [3, 5]).f32::<Autodiff<Flex>>().require_grad();
    let weight = numbers(2, [4, 5]).f32::<Autodiff<Flex>>();
    let mut grads = Autodiff::<Flex>::linear_layer(x.clone(), weight.clone(), None)
        .sum()
        .backward();
    assert!(x.grad_remove(&mut grads).is_some());
    assert!(weight.grad_remove(&mut grads).is_none());
}

#[test]
fn embeddings_and_their_gradient() {
    let ids = [3, 0, 3, 9, 9, 9, 2];
    let inputs = [numbers(1, [10, 5])];
    let weights = numbers(2, [ids.len(), 5]);
    let indices: Tensor<Double, 1, Int> = ints(ids.map(i64::from).to_vec(), &Default::default());
    let expected = plain(&inputs, &weights, |[x]| {
        x.clone().select(0, indices.clone())
    });
    fn run<B: ModelOps>(x: &Tensor<B, 2>, ids: &[u32]) -> Tensor<B, 2> {
        B::embed(x.clone(), &TokenIds::new(ids, &Default::default()))
    }
    let found = tracked::<Flex, 1, 2>(&inputs, &weights, |[x]| run(x, &ids));
    compare(found, &expected, 1e-7);
    let found = tracked::<NdArray, 1, 2>(&inputs, &weights, |[x]| run(x, &ids));
    compare(found, &expected, 1e-7);
    let ids = TokenIds::<Flex>::new(&ids, &Default::default());
    near(
        &values(embedding::backward(weights.f32(), &ids, 10)),
        &expected.1[0],
        1e-7,
    );
}

#[test]
fn target_logps_and_their_gradients() {
    let tokens = [5, 0, 5, 30, 17];
    // Logits of up to ±40.
    let mut inputs = [numbers(1, [tokens.len(), 16]), numbers(2, [31, 16])];
    inputs[0].0.iter_mut().for_each(|x| *x *= 10.0);
    let weights = numbers(3, [tokens.len()]);
    let indices = ints::<Double>(tokens.map(i64::from).to_vec(), &Default::default());
    let expected = plain(&inputs, &weights, |[x, weight]| {
        let all = log_softmax(x.clone().matmul(weight.clone().transpose()), 1);
        all.gather(1, indices.clone().unsqueeze_dim(1))
            .squeeze_dim(1)
    });
    fn run<B: ModelOps>([x, weight]: &[Tensor<B, 2>; 2], tokens: &[u32]) -> Tensor<B, 1> {
        let targets = TokenIds::new(tokens, &Default::default());
        B::target_logps(x.clone(), weight.clone(), &targets)
    }
    // Seen: 3.1e-7.
    let found = tracked::<Flex, 2, 1>(&inputs, &weights, |x| run(x, &tokens));
    compare(found, &expected, 2e-6);
    let found = tracked::<NdArray, 2, 1>(&inputs, &weights, |x| run(x, &tokens));
    compare(found, &expected, 2e-6);
    let targets = TokenIds::<Flex>::new(&tokens, &Default::default());
    let [x, weight] = inputs.map(|x| x.f32::<Flex>());
    let (out, probabilities) =
        target_logps::forward(x.clone().matmul(weight.clone().transpose()), &targets);
    let of_logits = target_logps::backward(weights.f32(), probabilities, &targets);
    let found = Outcome {
        out: values(out),
        gradients: [
            values(of_logits.clone().matmul(weight)),
            values(of_logits.transpose().matmul(x)),
        ],
    };
    compare(found, &expected, 2e-6);
}

/// Entropy, mean logit and whether the token is the likeliest, as TRL has them.
#[test]
fn measures_are_those_of_the_distribution() {
    let (rows, hidden, vocab) = (5, 16, 31);
    let tokens = [5, 0, 5, 30, 17];
    let mut inputs = [numbers(1, [rows, hidden]), numbers(2, [vocab, hidden])];
    inputs[0].0.iter_mut().for_each(|x| *x *= 10.0);
    // Of a row of equals the first counts as the likeliest.
    inputs[0].0[hidden..2 * hidden].fill(0.0);
    let logit = |row: usize, token: usize| -> f64 {
        let parts = (0..hidden).map(|i| {
            f64::from(inputs[0].0[row * hidden + i]) * f64::from(inputs[1].0[token * hidden + i])
        });
        parts.sum()
    };
    let mut expected = Vec::new();
    for (row, &token) in tokens.iter().enumerate() {
        let logits: Vec<f64> = (0..vocab).map(|token| logit(row, token)).collect();
        let sum: f64 = logits.iter().map(|z| z.exp()).sum();
        let entropy: f64 = logits.iter().map(|z| -z.exp() / sum * (z - sum.ln())).sum();
        let before = logits[..token as usize]
            .iter()
            .all(|z| *z < logits[token as usize]);
        let likeliest = before && logits.iter().all(|z| *z <= logits[token as usize]);
        let mean = logits.iter().sum::<f64>() / vocab as f64;
        expected.extend([entropy, mean, f64::from(u8::from(likeliest))]);
    }
    assert_eq!(expected[5], 1.0);
    fn run<B: ModelOps>([x, weight]: &[Numbers<2>; 2], tokens: &[u32]) -> [Vec<f32>; 3] {
        let targets = TokenIds::<B>::new(tokens, &Default::default());
        let (x, weight) = (x.f32::<B>(), weight.f32::<B>());
        let plain = B::target_logps(x.clone(), weight.clone(), &targets);
        let (logps, measures) = B::measured_target_logps(x, weight, &targets);
        [values(plain), values(logps), values(measures)]
    }
    for [plain, logps, measures] in [
        run::<Flex>(&inputs, &tokens),
        run::<NdArray>(&inputs, &tokens),
        run::<Autodiff<Flex>>(&inputs, &tokens),
    ] {
        assert_eq!(plain, logps);
        near(&measures, &expected, 2e-6);
    }
    let targets = TokenIds::<Flex>::new(&tokens, &Default::default());
    let [x, weight] = inputs.each_ref().map(|x| x.f32::<Flex>());
    let found = target_logps::measures(x.matmul(weight.transpose()), &targets);
    near(&values(found), &expected, 2e-6);
}

/// Sequences to attend over: several lengths, some with common beginnings.
fn batches() -> Vec<Vec<Vec<u32>>> {
    let sequence = |seed: u32, shared: u32, count: u32| -> Vec<u32> {
        let begin = 0..shared;
        begin
            .chain((shared..count).map(|i| 1000 * seed + i))
            .collect()
    };
    vec![
        vec![vec![7]],
        vec![sequence(1, 0, 9)],
        // One prompt twice, another sequence, and one that is all prefix.
        vec![
            sequence(1, 8, 11),
            sequence(2, 8, 17),
            sequence(3, 0, 5),
            sequence(4, 8, 8),
        ],
        // So different that they attend in padded batches of their own.
        vec![
            sequence(1, 0, 300),
            sequence(2, 0, 20),
            sequence(3, 0, 310),
            sequence(4, 15, 22),
        ],
    ]
}

/// Rows turned to `positions`, plainly in f64.
fn rotated(x: Tensor<Double, 2>, positions: &[u32], frequencies: &[f32]) -> Tensor<Double, 2> {
    let [count, width] = x.dims();
    let half = width / 2;
    let table = |of: fn(f64) -> f64| -> Tensor<Double, 2> {
        let at = |i: usize| {
            let angle = positions[i / width] as f32 * frequencies[i % width % half];
            of(f64::from(angle))
        };
        let values: Vec<f64> = (0..count * width).map(at).collect();
        let data = TensorData::new(values, [count, width]);
        Tensor::from_data(data, (&Default::default(), DType::F64))
    };
    let (first, second) = (
        x.clone().narrow(1, 0, half),
        x.clone().narrow(1, half, half),
    );
    let swapped = Tensor::cat(vec![-second, first], 1);
    x * table(f64::cos) + swapped * table(f64::sin)
}

/// Attention sequence by sequence and head by head.
fn plain_attention(
    [q, k, v]: &[Tensor<Double, 2>; 3],
    batch: &PackedBatch,
    frequencies: &[f32],
    heads: Heads,
) -> Tensor<Double, 2> {
    let device = Default::default();
    let mut rows: Vec<Option<Tensor<Double, 2>>> = vec![None; batch.tokens()];
    for places in &batch.places {
        let tokens: Vec<usize> = places.tokens().collect();
        let count = tokens.len();
        let index = ints::<Double>(tokens.iter().map(|&t| t as i64).collect(), &device);
        let positions: Vec<u32> = (0..count as u32).collect();
        let of_head = |x: &Tensor<Double, 2>, head: usize| {
            let x = x.clone().select(0, index.clone());
            x.narrow(1, head * heads.dim, heads.dim)
        };
        let hidden = (0..count * count).map(|i| i % count > i / count);
        let hidden = TensorData::new(hidden.collect::<Vec<bool>>(), [count, count]);
        let hidden = Tensor::from_data(hidden, &device);
        let mixed = (0..heads.queries).map(|head| {
            let kv = head / heads.group();
            let query = rotated(of_head(q, head), &positions, frequencies);
            let key = rotated(of_head(k, kv), &positions, frequencies);
            let scores = query.matmul(key.transpose()) * heads.scale();
            softmax(scores.mask_fill(hidden.clone(), -1e30), 1).matmul(of_head(v, kv))
        });
        let mixed = Tensor::cat(mixed.collect(), 1);
        for (i, &token) in tokens.iter().enumerate() {
            // A shared token's output is the same in each of its sequences; the first one's counts.
            rows[token].get_or_insert_with(|| mixed.clone().narrow(0, i, 1));
        }
    }
    Tensor::cat(rows.into_iter().flatten().collect(), 0)
}

/// Attention's tokens, turned by frequencies of a test's own.
fn attention_over<B: ModelOps>(batch: &PackedBatch, heads: Heads) -> PackedAttention<B> {
    let frequencies = frequencies(heads);
    PackedAttention::new(batch, &frequencies, heads, DType::F32, &Default::default())
}

fn frequencies(heads: Heads) -> Vec<f32> {
    (0..heads.dim / 2).map(|i| 0.7f32.powi(i as i32)).collect()
}

/// Queries, keys and values.
fn attention_inputs(tokens: usize, heads: Heads) -> [Numbers<2>; 3] {
    [
        numbers(1, [tokens, heads.queries * heads.dim]),
        numbers(2, [tokens, heads.kv * heads.dim]),
        numbers(3, [tokens, heads.kv * heads.dim]),
    ]
}

/// Holds every backend's attention over some sequences to the plain one.
fn attends(sequences: &[Vec<u32>], heads: Heads, bound: f64) {
    fn run<B: AutodiffBackend<InnerBackend: ModelOps> + ModelOps>(
        [q, k, v]: &[Tensor<B, 2>; 3],
        over: PackedAttention<B::InnerBackend>,
    ) -> Tensor<B, 2> {
        let over = PackedAttention::from_inner(over);
        B::packed_attention(q.clone(), k.clone(), v.clone(), &over)
    }
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let batch = PackedBatch::new(&sequences);
    let inputs = attention_inputs(batch.tokens(), heads);
    let weights = numbers(4, inputs[0].1);
    let expected = plain(&inputs, &weights, |x| {
        plain_attention(x, &batch, &frequencies(heads), heads)
    });
    let on_flex = attention_over::<Flex>(&batch, heads);
    let found = tracked::<Flex, 3, 2>(&inputs, &weights, |x| run(x, on_flex.clone()));
    compare(found, &expected, bound);
    let on_ndarray = attention_over::<NdArray>(&batch, heads);
    let found = tracked::<NdArray, 3, 2>(&inputs, &weights, |x| run(x, on_ndarray.clone()));
    compare(found, &expected, bound);
    let [q, k, v] = inputs.map(|x| x.f32::<Flex>());
    let (out, attended) = attention::forward(q, k, v, &on_flex);
    let found = Outcome {
        out: values(out),
        gradients: attention::backward(weights.f32(), attended, &on_flex).map(values),
    };
    compare(found, &expected, bound);
}

#[test]
fn packed_attention_and_its_gradients() {
    let shapes = [(4, 2, 8), (3, 3, 2), (6, 1, 10), (1, 1, 64)];
    for (sequences, (queries, kv, dim)) in batches().iter().zip(shapes.into_iter().cycle()) {
        // Seen: 1.1e-6.
        attends(sequences, Heads { queries, kv, dim }, 4e-6);
    }
}

/// Lengths around the host's tiles, groups and widths of heads as models have them; the second of
/// two sequences with a number of tokens in common begins within a tile.
#[test]
fn packed_attention_around_tiles() {
    let sequence = |seed: u32, shared: u32, count: u32| -> Vec<u32> {
        let own = (shared..count).map(|i| 10_000 * seed + i);
        (0..shared).chain(own).collect()
    };
    let cases = [
        (vec![sequence(1, 0, 1), sequence(2, 0, 64)], (8, 1, 64)),
        (vec![sequence(1, 0, 63), sequence(2, 0, 65)], (3, 3, 80)),
        (vec![sequence(1, 64, 129), sequence(2, 64, 66)], (4, 1, 128)),
        (
            vec![sequence(1, 100, 129), sequence(2, 100, 200)],
            (8, 2, 80),
        ),
        (vec![sequence(1, 63, 130), sequence(2, 63, 64)], (8, 1, 128)),
        (vec![sequence(1, 0, 2000)], (2, 1, 64)),
    ];
    for (sequences, (queries, kv, dim)) in cases {
        attends(&sequences, Heads { queries, kv, dim }, 1e-5);
    }
}

/// The same bits on any number of threads, and beside any other sequences.
#[test]
fn attention_is_the_same_on_threads_and_in_company() {
    let heads = Heads {
        queries: 4,
        kv: 2,
        dim: 16,
    };
    let sequence = |seed: u32, count: u32| (0..count).map(|i| 1000 * seed + i).collect();
    let one: Vec<u32> = sequence(1, 333);
    let others: [Vec<u32>; 3] = [sequence(2, 70), sequence(3, 500), sequence(4, 1)];
    fn run<B: ModelOps>(sequences: &[&[u32]], heads: Heads, first: usize) -> [Vec<u32>; 4] {
        let batch = PackedBatch::new(sequences);
        let over = attention_over::<B>(&batch, heads);
        let count = 333;
        // The same for its tokens wherever they lie.
        let place = |x: Numbers<2>| {
            let across = x.1[1];
            let mut all = numbers(9, [batch.tokens(), across]);
            all.0[first * across..(first + count) * across].copy_from_slice(&x.0);
            all.f32::<B>()
        };
        let [q, k, v] = attention_inputs(count, heads).map(place);
        let (out, attended) = B::packed_attention_saving(q, k, v, &over);
        let grad = place(numbers(4, [count, heads.queries * heads.dim]));
        let [q, k, v] = B::packed_attention_backward(grad, attended, &over);
        [out, q, k, v].map(|x| {
            let found = values(x.narrow(0, first, count));
            found.into_iter().map(f32::to_bits).collect()
        })
    }
    let [a, b, c] = others.each_ref().map(Vec::as_slice);
    let alone = run::<Flex>(&[&one], heads, 0);
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().unwrap();
        assert!(alone == pool.install(|| run::<Flex>(&[&one], heads, 0)));
        assert!(alone == pool.install(|| run::<Flex>(&[a, &one, b, c], heads, 70)));
    }
    assert!(alone == run::<NdArray>(&[b, c, &one], heads, 501));
}

#[test]
fn layer_norm_gelu_and_rotation() {
    fn all<B: ModelOps>() -> [Vec<f32>; 4] {
        let (x, y) = (numbers(1, [300, 66]), numbers(2, [300, 66]));
        let (weight, bias) = (numbers(3, [66]), numbers(4, [66]));
        let norm =
            |residual| B::residual_layer_norm(x.f32(), residual, weight.f32(), bias.f32(), 1e-7);
        let frequencies: Vec<f32> = (0..11).map(|i| 0.5f32.powi(i)).collect();
        let positions: Vec<u32> = (0..300).rev().collect();
        let rotation = Rotation::new(&frequencies, &positions, DType::F32, &Default::default());
        [
            values(norm(None)),
            values(norm(Some(y.f32()))),
            values(B::exact_gelu(x.f32() * 5.0)),
            values(B::rotate(x.f32(), &rotation, 0.3)),
        ]
    }
    let (x, y) = (numbers(1, [300, 66]).f64(), numbers(2, [300, 66]).f64());
    let norm = |x: Tensor<Double, 2>| {
        let weight: Tensor<Double, 2> = numbers(3, [66]).f64().unsqueeze();
        let bias: Tensor<Double, 2> = numbers(4, [66]).f64().unsqueeze();
        let centred = x.clone() - x.mean_dim(1);
        let variance = (centred.clone() * centred.clone()).mean_dim(1);
        centred / (variance + 1e-7).sqrt() * weight + bias
    };
    let frequencies: Vec<f32> = (0..11).map(|i| 0.5f32.powi(i)).collect();
    let positions: Vec<u32> = (0..300).rev().collect();
    let heads = (0..3)
        .map(|head| rotated(x.clone().narrow(1, 22 * head, 22), &positions, &frequencies) * 0.3);
    let wide = x.clone() * 5.0;
    let expected = [
        exact(norm(x.clone())),
        exact(norm(x.clone() + y)),
        exact(wide.clone() * ((wide / 2f64.sqrt()).erf() + 1.0) / 2.0),
        exact(Tensor::cat(heads.collect(), 1)),
    ];
    // Seen: 2.1e-7.
    for found in [all::<Flex>(), all::<NdArray>()] {
        for (found, expected) in found.iter().zip(&expected) {
            near(found, expected, 2e-6);
        }
    }
    let rotation = Rotation::<Flex>::new(&frequencies, &positions, DType::F32, &Default::default());
    let x = numbers(1, [300, 66]).f32::<Flex>();
    near(
        &values(rotary::rotate(x.clone(), &rotation, 0.3)),
        &expected[3],
        2e-6,
    );
    let (weight, bias) = (numbers(3, [66]).f32::<Flex>(), numbers(4, [66]).f32());
    let residual = Some(numbers(2, [300, 66]).f32());
    near(
        &values(norm::layer_norm(x, residual, weight, bias, 1e-7)),
        &expected[1],
        2e-6,
    );
}

#[test]
fn cached_attention_sees_what_it_should() {
    for visible in [
        Visible::Causal { before: 3, new: 4 },
        Visible::Behind(vec![0, 5, 2]),
    ] {
        // Two heads of two queries, or of four new ones in two groups.
        let (batch, rows, columns) = match &visible {
            Visible::Causal { .. } => (1, 8, 7),
            Visible::Behind(lengths) => (lengths.len(), 2, 6),
        };
        let q = numbers(1, [batch, 2, rows, 5]);
        let k = numbers(2, [batch, 2, 5, columns]);
        let v = numbers(3, [batch, 2, columns, 5]);
        let hidden = (0..batch * 2 * rows * columns).map(|i| {
            let (row, column) = (i / columns, i % columns);
            let seen = match &visible {
                Visible::Causal { before, new } => before + row % new + 1,
                Visible::Behind(lengths) => lengths[row / (2 * rows)] + 1,
            };
            column >= seen
        });
        let hidden = TensorData::new(hidden.collect::<Vec<bool>>(), [batch, 2, rows, columns]);
        let hidden = Tensor::from_data(hidden, &Default::default());
        let scores = q.f64().matmul(k.f64()).mask_fill(hidden, -1e30);
        let expected = exact(softmax(scores, 3).matmul(v.f64()));
        fn run<B: ModelOps>([q, k, v]: [&Numbers<4>; 3], visible: &Visible) -> Vec<f32> {
            values(B::cached_attention(q.f32(), k.f32(), v.f32(), visible))
        }
        // Seen: 1.3e-7.
        near(&run::<Flex>([&q, &k, &v], &visible), &expected, 1e-6);
        near(&run::<NdArray>([&q, &k, &v], &visible), &expected, 1e-6);
        let found = cached_attention::forward(q.f32::<Flex>(), k.f32(), v.f32(), &visible);
        near(&values(found), &expected, 1e-6);
    }
}

/// Caches with room behind what is seen, which may hold anything.
#[test]
fn attention_in_slots_sees_what_it_should() {
    for (heads, shared, dim, lengths, capacity) in [
        (1, 1, 5, vec![0], 64),
        (2, 3, 16, vec![15, 16, 0, 40], 64),
        (1, 8, 80, vec![130, 3], 192),
    ] {
        let (rows, slots) = (lengths.len(), lengths.len() + 1);
        let q = numbers(1, [rows, heads, shared, dim]);
        let k = numbers(2, [slots, heads, dim, capacity]);
        let v = numbers(3, [slots, heads, capacity, dim]);
        let hidden = (0..rows * heads * shared * capacity).map(|i| {
            let row = i / (heads * shared * capacity);
            i % capacity > lengths[row]
        });
        let shape = [rows, heads, shared, capacity];
        let hidden = TensorData::new(hidden.collect::<Vec<bool>>(), shape);
        let hidden = Tensor::from_data(hidden, &Default::default());
        let [keys, values_of] = [k.f64(), v.f64()].map(|cache| cache.narrow(0, 0, rows));
        let scores = q.f64().matmul(keys).mask_fill(hidden, -1e30);
        let expected = exact(softmax(scores, 3).matmul(values_of));
        let visible = Visible::Behind(lengths.clone());
        let most = lengths.iter().max().unwrap() + 1;
        let (keys, values_of) = (k.f32::<Flex>(), v.f32::<Flex>());
        let run =
            |rows: std::ops::Range<usize>, caches: [Tensor<Flex, 4>; 2], visible: &Visible| {
                let q = q.f32().narrow(0, rows.start, rows.len());
                values(Flex::slot_attention(q, caches, visible, most))
            };
        let found = run(0..rows, [keys.clone(), values_of.clone()], &visible);
        // A score of 80 terms errs by up to 80 · 2⁻²⁴ of their sum, its weight by as much. Seen: 7.2e-7.
        near(&found, &expected, 5e-6);
        // A row alone has the bits that it has in company, whatever lies behind what it sees.
        for (row, length) in lengths.iter().enumerate() {
            let behind = |cache: Tensor<Flex, 4>, dim: usize| {
                let cache = cache.narrow(0, row, 1);
                let seen = cache.clone().narrow(dim, 0, length + 1);
                let mut shape = cache.dims();
                shape[dim] = capacity - length - 1;
                let others = Tensor::full(shape, f32::NAN, &Default::default());
                Tensor::cat(vec![seen, others], dim)
            };
            let caches = [behind(keys.clone(), 3), behind(values_of.clone(), 2)];
            let alone = run(row..row + 1, caches, &Visible::Behind(vec![*length]));
            assert_eq!(
                alone,
                found[row * alone.len()..][..alone.len()],
                "{lengths:?}"
            );
        }
    }
}

/// r072: scores that overflowed to −∞ were hidden by the masked ones beside them.
#[test]
fn scores_that_overflow_are_not_hidden() {
    let numbers = |value: f32, shape: [usize; 4]| {
        Tensor::<Flex, 4>::full(shape, value, (&Default::default(), DType::F32))
    };
    let caches = [numbers(-1e20, [1, 1, 4, 64]), numbers(1.0, [1, 1, 64, 4])];
    let visible = Visible::Behind(vec![2]);
    let found = Flex::slot_attention(numbers(1e20, [1, 1, 1, 4]), caches, &visible, 64);
    assert!(values(found).iter().all(|x| x.is_nan()));
    let ids = [1, 2, 3];
    let device = Default::default();
    let heads = Heads {
        queries: 1,
        kv: 1,
        dim: 4,
    };
    let batch = PackedBatch::new(&[&ids]);
    let over = PackedAttention::<Flex>::new(&batch, &[0.0, 0.0], heads, DType::F32, &device);
    let rows = |value: f32| Tensor::<Flex, 2>::full([3, 4], value, (&device, DType::F32));
    let found = Flex::packed_attention(rows(1e20), rows(-1e20), rows(1.0), &over);
    assert!(values(found).iter().all(|x| x.is_nan()));
    // A whole block of such scores before one that is sound.
    let ids: Vec<u32> = (0..65).collect();
    let batch = PackedBatch::new(&[&ids]);
    let over = PackedAttention::<Flex>::new(&batch, &[0.0, 0.0], heads, DType::F32, &device);
    let rows = |value: f32| Tensor::<Flex, 2>::full([65, 4], value, (&device, DType::F32));
    let places = Tensor::<Flex, 1, Int>::arange(0..65, &device);
    let of_last = |last: f32, others: f32| {
        let is_last = places
            .clone()
            .equal_elem(64)
            .unsqueeze_dim::<2>(1)
            .expand([65, 4]);
        rows(others).mask_fill(is_last, last)
    };
    let found = Flex::packed_attention(rows(1e20), of_last(0.0, -1e20), of_last(5.0, 1.0), &over);
    assert_eq!(values(found)[64 * 4..], [5.0; 4]);
}

/// Products with packed weights, in f32 and bf16, of any number of rows and outputs.
#[test]
fn packed_linear_layers_are_linear_layers() {
    fn run<B: ModelOps>(dtype: DType) {
        for (inputs, outputs) in [(1, 1), (5, 16), (64, 15), (33, 50), (130, 257), (70, 1100)] {
            let (weight, bias) = (numbers(2, [outputs, inputs]), numbers(3, [outputs]));
            let rounded = cast(weight.f32::<Flex>(), dtype);
            let exact_weight: Vec<f64> =
                values(to_f32(rounded)).into_iter().map(f64::from).collect();
            let packed = B::pack_weight(cast(weight.f32(), dtype)).expect("a CPU packs");
            for rows in [
                1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 17, 20, 24, 25, 64,
            ] {
                let x = numbers(1, [rows, inputs]);
                let exact_weight = TensorData::new(exact_weight.clone(), [outputs, inputs]);
                let exact_weight: Tensor<Double, 2> =
                    Tensor::from_data(exact_weight, (&Default::default(), DType::F64));
                let product = x.f64().matmul(exact_weight.transpose());
                let expected = exact(product + bias.f64().unsqueeze());
                let layer = |x: Tensor<B, 2>| {
                    values(B::packed_linear_layer(
                        x,
                        packed.clone(),
                        outputs,
                        Some(bias.f32()),
                    ))
                };
                let found = layer(x.f32());
                // 130 terms in any order: 130 · 2⁻²⁴.
                near(&found, &expected, 8e-6);
                for row in 0..rows {
                    let alone = layer(x.f32().narrow(0, row, 1));
                    assert_eq!(alone, found[row * outputs..][..outputs], "{rows} rows");
                }
            }
        }
    }
    run::<Flex>(DType::F32);
    run::<NdArray>(DType::F32);
    run::<Flex>(DType::BF16);
}

#[test]
fn permuted_tensors_are_those_of_the_backend() {
    fn run<B: ModelOps>() {
        let same = |found: Tensor<B, 4>, expected: Tensor<B, 4>| {
            assert_eq!(found.dims(), expected.dims());
            assert_eq!(values(found), values(expected));
        };
        for shape in [[3, 2, 5, 4], [1, 7, 1, 16], [2, 0, 3, 4], [4, 3, 2, 0]] {
            let x: Tensor<B, 4> = numbers(1, shape).f32();
            for axes in [[1, 2, 0, 3], [2, 0, 1, 3], [0, 1, 2, 3], [1, 2, 3, 0]] {
                same(B::permuted(x.clone(), axes), x.clone().permute(axes));
                let turned = x.clone().swap_dims(0, 1);
                same(B::permuted(turned.clone(), axes), turned.permute(axes));
            }
        }
        let part: Tensor<B, 4> = numbers(1, [6, 2, 3, 4]).f32();
        let part = part.narrow(0, 2, 3);
        let axes = [1, 0, 2, 3];
        same(B::permuted(part.clone(), axes), part.permute(axes));
    }
    run::<Flex>();
    run::<NdArray>();
}

#[test]
fn relative_attention_weights_are_those_of_the_formula() {
    let (heads, sequences, length, rows, scale) = (2, 3, 5, 4, 0.4);
    let by_distance: Vec<u32> = (0..2 * length as u32 - 1).map(|m| m * 7 % 4).collect();
    let contents = numbers(1, [heads, sequences, length, length]);
    let to = numbers(2, [heads, sequences * length, rows]);
    let from = numbers(3, [heads, sequences * length, rows]);
    let mut expected = Vec::new();
    for matrix in 0..heads * sequences {
        for i in 0..length {
            let score = |j: usize| {
                let place = by_distance[length - 1 - i + j] as usize;
                let content = contents.0[(matrix * length + i) * length + j];
                let to = to.0[(matrix * length + i) * rows + place];
                let from = from.0[(matrix * length + j) * rows + place];
                (f64::from(content) + f64::from(to) + f64::from(from)) * scale
            };
            let all: Vec<f64> = (0..length).map(|j| score(j).exp()).collect();
            let sum: f64 = all.iter().sum();
            expected.extend(all.into_iter().map(|x| x / sum));
        }
    }
    fn positions<B: ModelOps>(by_distance: &[u32]) -> RelativePositions<B> {
        RelativePositions::new(by_distance.to_vec(), 4, DType::F32, &Default::default())
    }
    // Seen: 2.4e-7.
    let places = positions::<Flex>(&by_distance);
    let found =
        Flex::relative_attention_weights(contents.f32(), to.f32(), from.f32(), &places, scale);
    near(&values(found), &expected, 1e-6);
    let found = relative_attention::weights(contents.f32(), to.f32(), from.f32(), &places, scale);
    near(&values(found), &expected, 1e-6);
    let places = positions::<NdArray>(&by_distance);
    let found =
        NdArray::relative_attention_weights(contents.f32(), to.f32(), from.f32(), &places, scale);
    near(&values(found), &expected, 1e-6);
}

/// An optimizer in f64, weight by weight.
fn update_exactly(
    optimizer: &Optimizer,
    step: UpdateStep,
    weights: &mut [f64],
    grads: &[f32],
    slots: &mut [Vec<f64>],
) {
    let UpdateStep {
        rate,
        number,
        gradient_scale,
    } = step;
    for (i, (w, g)) in weights.iter_mut().zip(grads).enumerate() {
        let g = f64::from(*g) * gradient_scale;
        match optimizer {
            Optimizer::RmsProp(o) => {
                let g = g + o.weight_decay * *w;
                let v = &mut slots[0][i];
                *v = o.alpha * *v + (1.0 - o.alpha) * g * g;
                *w -= rate * g / (v.sqrt() + o.eps);
            }
            Optimizer::AdamW(o) => {
                slots[0][i] = o.beta1 * slots[0][i] + (1.0 - o.beta1) * g;
                slots[1][i] = o.beta2 * slots[1][i] + (1.0 - o.beta2) * g * g;
                let m = slots[0][i] / (1.0 - o.beta1.powi(number as i32));
                let v = slots[1][i] / (1.0 - o.beta2.powi(number as i32));
                *w -= rate * (o.weight_decay * *w + m / (v.sqrt() + o.eps));
            }
            Optimizer::Sgd(o) => *w -= rate * (g + o.weight_decay * *w),
        }
    }
}

/// Five steps, with weight decay and clipping, over more weights than one thread takes.
#[test]
fn updates_are_those_of_f64() {
    let weight_decay = 0.01;
    let optimizers = [
        Optimizer::RmsProp(RmsProp {
            alpha: 0.999,
            eps: 1e-8,
            weight_decay,
        }),
        Optimizer::AdamW(AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay,
        }),
        Optimizer::Sgd(Sgd { weight_decay }),
    ];
    let values_of = |seed: usize| -> Vec<f32> {
        let value = |i: usize| ((i * 37 + seed * 11) % 1001) as f32 / 500.0 - 1.0;
        (0..40_000).map(value).collect()
    };
    let tensor = |values: &[f32]| Tensor::<Flex, 1>::from_floats(values, &Default::default());
    for optimizer in optimizers {
        let (mut one, mut other) = (tensor(&values_of(1)), tensor(&values_of(1)));
        let (mut slots, mut other_slots) = (Vec::new(), Vec::new());
        let mut exact: Vec<f64> = values_of(1).iter().map(|&x| x.into()).collect();
        let mut exact_slots = vec![vec![0.0; exact.len()]; optimizer.slots()];
        for number in 1..=5 {
            let step = UpdateStep {
                rate: 0.01,
                number,
                gradient_scale: 0.5,
            };
            let grad = values_of(number + 1);
            let updating = |weights, slots| Updating {
                weights,
                grad: tensor(&grad),
                slots,
            };
            let all = vec![updating(one, slots)];
            let mut found = Flex::update(&optimizer, step, all, DType::F32, &mut None);
            let found = found.remove(0);
            (one, slots) = (found.weights, found.slots);
            let all = updating(other, other_slots);
            (other, other_slots) = optimizer::update(&optimizer, step, all);
            update_exactly(&optimizer, step, &mut exact, &grad, &mut exact_slots);
        }
        assert_eq!(
            (slots.len(), other_slots.len()),
            (optimizer.slots(), optimizer.slots())
        );
        for (weights, slots) in [(one, slots), (other, other_slots)] {
            let found = std::iter::once(weights).chain(slots);
            let exact = std::iter::once(&exact).chain(&exact_slots);
            for (found, exact) in found.zip(exact) {
                // Seen: 2.2e-7.
                near(&values(found), exact, 1e-6);
            }
        }
    }
}

#[test]
fn sums_of_squares_do_not_overflow() {
    let rows = [
        vec![3.0, 4.0],
        vec![1e30, 1e30, 1e30],
        vec![0.0],
        vec![f32::NAN, 1.0],
        vec![1.0; 2 * GRAIN + 3],
        vec![1.0; GRAIN],
    ];
    let whole = GRAIN as f64;
    let exact = [
        vec![25.0],
        vec![3e60],
        vec![0.0],
        vec![f64::NAN],
        vec![whole, whole, 3.0],
        vec![whole],
    ];
    let tensors = || {
        let tensor =
            |x: &Vec<f32>| Tensor::<Flex, 1>::from_floats(x.as_slice(), &Default::default());
        rows.iter().map(tensor).collect::<Vec<_>>()
    };
    for found in [
        Flex::sums_of_squares(tensors()).unwrap(),
        optimizer::sums_of_squares(tensors()).unwrap(),
    ] {
        assert_eq!(found.len(), exact.len());
        for (found, exact) in found.iter().zip(&exact) {
            assert_eq!(found.len(), exact.len());
            for (found, exact) in found.iter().zip(exact) {
                assert!(
                    (found - exact).abs() <= 1e-6 * exact || found.is_nan() && exact.is_nan(),
                    "{found} is not {exact}"
                );
            }
        }
    }
    assert!(
        optimizer::sums_of_squares::<Flex>(Vec::new())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_is_not_a_number_stays_so() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut row = [0.5, bad, -1.0, 0.0];
        assert!(math::softmax(&mut row).sum.is_nan());
        assert!(row.iter().all(|x| x.is_nan()), "{row:?}");
        let logps = target_logps::log_softmax_at(&mut [bad, 1.0, 2.0], 3, &[1]);
        assert!(logps[0].is_nan());
    }
}

#[test]
fn exponentials_are_those_of_libm() {
    for i in 0..870 {
        let x = -(i as f32) / 10.0;
        let relative = math::exp(x) / x.exp() - 1.0;
        assert!(relative.abs() < 1e-6, "{x}: {relative}");
    }
    let mut rows = [1.0, 2.0, 9.0, 9.0, 3.0, 3.0, 3.0, 9.0, 5.0, 6.0, 7.0, 8.0];
    math::softmax_used(&mut rows, 4, |row| [2, 3, 0][row]);
    assert_eq!((rows[2], rows[3], rows[7]), (0.0, 0.0, 0.0));
    assert!((rows[0] + rows[1] - 1.0).abs() < 1e-6 && (rows[4] - 1.0 / 3.0).abs() < 1e-6);
    assert_eq!(rows[8..], [0.0; 4]);
}
