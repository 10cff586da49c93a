//! The operations of a CPU at the shapes of small models, forward and backward: `cargo bench -p sppo-model`.
//!
//! What criterion calls elements are floating-point operations; where it says bytes, the operation is a
//! pass over memory and these are what it must read and write.

use std::hint::black_box;

use burn::tensor::{DType, Tensor, TensorData};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use sppo_model::ops::{
    Heads, ModelOps, Optimizer, PackedAttention, RmsProp, TokenIds, UpdateStep, Updating, Visible,
    cast,
};
use sppo_model::packed_batch::PackedBatch;

type Flex = burn_flex::Flex<f32, i32>;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<Flex, D> {
    let mut generator = ChaCha12Rng::seed_from_u64(1);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| generator.random_range(-1.0..1.0))
        .collect();
    Tensor::from_data(
        TensorData::new(values, shape),
        (&Default::default(), DType::F32),
    )
}

fn group<'a>(
    criterion: &'a mut Criterion,
    name: &str,
    amount: Throughput,
) -> BenchmarkGroup<'a, criterion::measurement::WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(amount).sample_size(10);
    group
}

/// Rows, inputs and outputs: layers and head of 4 x 256, 4 x 512 and 4 x 1024 in training.
const LINEAR: [[usize; 3]; 6] = [
    [2048, 256, 704],
    [1024, 256, 4096],
    [2048, 512, 1408],
    [2048, 1408, 512],
    [2048, 1024, 2816],
    [1024, 512, 32000],
];

fn linear(criterion: &mut Criterion) {
    for [rows, inputs, outputs] in LINEAR {
        let (x, weight) = (random([rows, inputs]), random([outputs, inputs]));
        let grad = random([rows, outputs]);
        let operations = Throughput::Elements(2 * (rows * inputs * outputs) as u64);
        let name = format!("linear {rows} x {inputs} x {outputs}");
        let mut group = group(criterion, &name, operations);
        group.bench_function("forward", |b| {
            b.iter(|| Flex::linear_layer(x.clone(), weight.clone(), None));
        });
        group.bench_function("gradient by weight", |b| {
            b.iter(|| Flex::linear_layer_weight_gradient(grad.clone(), x.clone()));
        });
        group.bench_function("gradient by input", |b| {
            b.iter(|| Flex::linear_layer_input_gradient(grad.clone(), weight.clone()));
        });
    }
}

/// Few rows, as decoding has them; 8 x 512 and SmolLM2-135M with their heads.
fn packed_linear(criterion: &mut Criterion) {
    for [rows, inputs, outputs] in [
        [1, 576, 49152],
        [16, 512, 512],
        [16, 512, 1408],
        [16, 1408, 512],
        [16, 512, 32000],
        [20, 576, 49152],
        [256, 576, 1536],
    ] {
        let (x, weight) = (random([rows, inputs]), random([outputs, inputs]));
        let operations = Throughput::Elements(2 * (rows * inputs * outputs) as u64);
        let name = format!("packed linear {rows} x {inputs} x {outputs}");
        let mut group = group(criterion, &name, operations);
        for (name, dtype) in [("f32", DType::F32), ("bf16", DType::BF16)] {
            let packed = Flex::pack_weight(cast(weight.clone(), dtype)).expect("a CPU packs");
            group.bench_function(name, |b| {
                b.iter(|| Flex::packed_linear_layer(x.clone(), packed.clone(), outputs, None));
            });
        }
    }
}

/// Sequences of one length, 8 heads of 64 that share 4 keys, as in 4 x 512.
fn attention(criterion: &mut Criterion) {
    let heads = Heads {
        queries: 8,
        kv: 4,
        dim: 64,
    };
    let device = Default::default();
    let frequency = |i: usize| 500_000f32.powf(-2.0 * i as f32 / heads.dim as f32);
    let frequencies: Vec<f32> = (0..heads.dim / 2).map(frequency).collect();
    for (sequences, length) in [(16, 128), (4, 512), (2, 2048)] {
        let ids: Vec<u32> = vec![1; length];
        let sequences: Vec<&[u32]> = vec![&ids; sequences];
        let batch = PackedBatch::apart(&sequences);
        let over = PackedAttention::<Flex>::new(&batch, &frequencies, heads, DType::F32, &device);
        let tokens = batch.ids.len();
        let q = random([tokens, heads.queries * heads.dim]);
        let [k, v] = [(); 2].map(|()| random([tokens, heads.kv * heads.dim]));
        // Two products forward and five backward, below the diagonal.
        let pairs = sequences.len() * length * (length + 1) / 2;
        let product = (2 * pairs * heads.queries * heads.dim) as u64;
        let name = format!("attention {} x {length}", sequences.len());
        let mut forward = group(criterion, &name, Throughput::Elements(2 * product));
        forward.bench_function("forward", |b| {
            b.iter(|| Flex::packed_attention_saving(q.clone(), k.clone(), v.clone(), &over));
        });
        forward.throughput(Throughput::Elements(5 * product));
        let (_, attended) = Flex::packed_attention_saving(q.clone(), k, v, &over);
        forward.bench_function("backward", |b| {
            b.iter(|| Flex::packed_attention_backward(q.clone(), attended.clone(), &over));
        });
    }
}

/// One new token of each of some sequences.
fn decode_attention(criterion: &mut Criterion) {
    for (rows, length) in [(16, 100), (16, 1000), (1, 2000)] {
        let (kv, shared, dim, capacity) = (4, 2, 64, 2048);
        let q = random([rows, kv, shared, dim]);
        let caches = [
            random([rows, kv, dim, capacity]),
            random([rows, kv, capacity, dim]),
        ];
        let visible = Visible::Behind(vec![length - 1; rows]);
        let bytes = Throughput::Bytes((2 * 4 * rows * kv * length * dim) as u64);
        let name = format!("decode attention {rows} behind {length}");
        group(criterion, &name, bytes).bench_function("forward", |b| {
            b.iter(|| Flex::slot_attention(q.clone(), caches.clone(), &visible, capacity));
        });
    }
}

fn rows(criterion: &mut Criterion) {
    let (rows, width) = (2048, 1024);
    let (x, grad) = (random([rows, width]), random([rows, width]));
    let weight = random([width]);
    let passes = |count: usize| Throughput::Bytes((4 * count * rows * width) as u64);
    let mut norm = group(criterion, "RMSNorm 2048 x 1024", passes(2));
    norm.bench_function("forward", |b| {
        b.iter(|| Flex::rms_norm(x.clone(), weight.clone(), 1e-5));
    });
    norm.throughput(passes(3));
    norm.bench_function("backward", |b| {
        b.iter(|| Flex::rms_norm_backward(grad.clone(), x.clone(), weight.clone(), 1e-5, None));
    });
    norm.finish();
    let mut swiglu = group(criterion, "SwiGLU 2048 x 1024", passes(3));
    swiglu.bench_function("forward", |b| {
        b.iter(|| Flex::swiglu(x.clone(), grad.clone()))
    });
    swiglu.throughput(passes(5));
    swiglu.bench_function("backward", |b| {
        b.iter(|| Flex::swiglu_backward(grad.clone(), x.clone(), grad.clone()));
    });
}

fn logps(criterion: &mut Criterion) {
    let (rows, hidden, vocab) = (512, 512, 32000);
    let (x, weight) = (random([rows, hidden]), random([vocab, hidden]));
    let ids: Vec<u32> = (0..rows as u32).collect();
    let targets = TokenIds::<Flex>::new(&ids, &Default::default());
    let operations = Throughput::Elements(2 * (rows * hidden * vocab) as u64);
    let mut forward = group(criterion, "log-probabilities 512 x 512 x 32000", operations);
    forward.bench_function("forward", |b| {
        b.iter(|| Flex::target_logps_saving(x.clone(), weight.clone(), &targets));
    });
    forward.throughput(Throughput::Bytes((4 * 2 * rows * vocab) as u64));
    let (_, saved) = Flex::target_logps_saving(x.clone(), weight.clone(), &targets);
    let grad = random([rows]);
    forward.bench_function("backward, up to the logits", |b| {
        // The saved tensor is changed in place where nobody else has it.
        b.iter_batched(
            || saved.clone().mul_scalar(1.0),
            |saved| Flex::target_logps_backward(grad.clone(), saved, &targets),
            criterion::BatchSize::LargeInput,
        );
    });
}

fn update(criterion: &mut Criterion) {
    let count = 1 << 22;
    let optimizer = Optimizer::RmsProp(RmsProp {
        alpha: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    });
    let step = UpdateStep {
        rate: 1e-6,
        number: 2,
        gradient_scale: 1.0,
    };
    let grad = random([count]);
    // Weight and average in and out, the gradient in.
    let bytes = Throughput::Bytes((4 * 5 * count) as u64);
    let mut group = group(criterion, "update of 4 million weights", bytes);
    group.bench_function("RMSProp", |b| {
        b.iter_batched(
            || Updating {
                weights: random([count]),
                grad: grad.clone(),
                slots: vec![random([count]).abs()],
            },
            |one| {
                black_box(Flex::update(
                    &optimizer,
                    step,
                    vec![one],
                    DType::F32,
                    &mut None,
                ))
            },
            criterion::BatchSize::LargeInput,
        );
    });
    group.throughput(Throughput::Bytes((4 * count) as u64));
    group.bench_function("sum of squares", |b| {
        b.iter(|| Flex::sums_of_squares(vec![grad.clone()]));
    });
}

criterion_group!(
    operations,
    linear,
    packed_linear,
    attention,
    decode_attention,
    rows,
    logps,
    update
);
criterion_main!(operations);
