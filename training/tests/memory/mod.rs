//! Peaks of memory, counted at the allocator.

use std::sync::{Arc, Mutex, MutexGuard};

use burn::tensor::{DType, Tensor};

use burn_autodiff::Autodiff;
use serde_json::{Value, json};
use sppo_model::generate::{CachePlan, Engine, Request, SamplingParams};
use sppo_model::llama::{Decoder, Llama, LlamaConfig, Lora};
use sppo_model::ops::{ModelOps, TrainingOps};
use sppo_training::config::Recompute;
use sppo_training::cost::memory::{self, Training};
use sppo_training::cost::{Batch, Sizes};
use sppo_training::learner::Learner;
use sppo_training::optimizer::{Optimizer, RmsProp, Sgd};
use sppo_training::tokenise::TokenisedSequence;

use crate::ALLOCATED;

type Flex = Autodiff<burn_flex::Flex<f32, i32>>;

/// One at a time, or they would count each other's allocations. What each thread keeps for good (gemm
/// has a second cache's worth of bytes in each) is the machine's, not the plan's: two threads, which
/// have it before anything is counted.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    // The pool is there from the second test on.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build_global();
    let product = || {
        let x = Tensor::<burn_flex::Flex<f32, i32>, 2>::ones([128, 128], &Default::default());
        drop(burn_flex::Flex::<f32, i32>::linear_layer(
            x.clone(),
            x,
            None,
        ));
    };
    rayon::broadcast(|_| product());
    product();
    guard
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    hidden: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    kv: usize,
    vocab: usize,
}

fn config(shape: Shape) -> LlamaConfig {
    let fields = json!({
        "model_type": "llama", "hidden_size": shape.hidden, "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv, "vocab_size": shape.vocab,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false,
    });
    let Value::Object(fields) = fields else {
        unreachable!("it is an object")
    };
    LlamaConfig::from_map(fields).unwrap()
}

fn load<B: TrainingOps>(config: &LlamaConfig, dtype: DType, device: &B::Device) -> Llama<B> {
    let model = Llama::<B>::init(config, 1, device).unwrap();
    if dtype == DType::F32 {
        return model;
    }
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), config, dtype, dir.path()).unwrap();
    drop(model);
    Llama::load(dir.path(), dtype, device).unwrap().1
}

fn pairs(count: usize, prompt: usize, response: usize, vocab: usize) -> Vec<TokenisedSequence> {
    let mut sequences = Vec::new();
    for pair in 0..count {
        for side in 0..2usize {
            let ids = (0..prompt + response).map(|i| {
                let seed = if i < prompt {
                    pair
                } else {
                    2 * pair + side + 100
                };
                ((i * 31 + seed * 17) % vocab) as u32
            });
            sequences.push(TokenisedSequence {
                ids: ids.collect(),
                response_start: prompt,
            });
        }
    }
    sequences
}

/// A training to count: as the plan describes it, and how many batches make a step.
struct Case {
    training: Training,
    batches: usize,
}

/// The peak over the second step, in which the optimizer has its state.
fn counted<B: TrainingOps>(case: &Case, sequences: &[TokenisedSequence]) -> u64 {
    let device = B::Device::default();
    let before = ALLOCATED.current_usage();
    let Training {
        config,
        dtype,
        recompute,
        ..
    } = &case.training;
    let mut model = load::<B>(config, *dtype, &device);
    if let Some(lora) = &case.training.lora {
        model = model.with_new_adapters(config, lora, 3).unwrap();
    }
    let optimizer = match case.training.optimizer_slots {
        0 => Optimizer::Sgd(Sgd { weight_decay: 0.0 }),
        _ => Optimizer::RmsProp(RmsProp {
            alpha: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        }),
    };
    let mut learner = Learner::new(model, optimizer, *recompute, None);
    let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
    let mut step = || {
        for _ in 0..case.batches {
            learner
                .backward(&sequences, |logps| vec![1.0; logps.len()])
                .unwrap();
        }
        learner.step(1e-6).unwrap();
    };
    step();
    ALLOCATED.reset_peak_usage();
    step();
    (ALLOCATED.peak_usage() - before) as u64
}

const SHAPE: Shape = Shape {
    hidden: 256,
    ffn: 704,
    layers: 4,
    heads: 8,
    kv: 4,
    vocab: 4096,
};

/// Wider feed-forward layers, no shared keys and values, fewer layers.
const OTHER: Shape = Shape {
    layers: 2,
    kv: 8,
    ffn: 1408,
    ..SHAPE
};

/// Counts trainings of some shapes and compares each with its plan.
fn agrees(
    dtype: DType,
    recompute: Recompute,
    lora: Option<&Lora>,
    shapes: &[Shape],
    rows: &[[usize; 3]],
) {
    let _alone = alone();
    for &shape in shapes {
        let config = config(shape);
        for &[count, prompt, response] in rows {
            for batches in [1, 2] {
                let training = Training {
                    config: config.clone(),
                    dtype,
                    recompute,
                    optimizer_slots: 1,
                    lora: lora.cloned(),
                    accumulates: batches > 1,
                    host: true,
                    card: None,
                    ranks: 1,
                    ordered: true,
                };
                let sequences = pairs(count, prompt, response, shape.vocab);
                let batch = Batch::of(&sequences.iter().collect::<Vec<_>>());
                let planned = training.memory(&batch).peak as f64;
                let found = counted::<Flex>(&Case { training, batches }, &sequences) as f64;
                let what = format!("{dtype:?} {recompute} {shape:?} {count} {prompt} {response}");
                println!("{what} x{batches}: {:.3}", planned / found);
                assert!(
                    (planned / found - 1.0).abs() < 0.15,
                    "{what}, {batches} batches: planned {planned}, counted {found}"
                );
            }
        }
    }
}

const ROWS: [[usize; 3]; 3] = [[4, 32, 64], [2, 64, 256], [1, 64, 16]];

#[test]
fn plans_of_f32_training() {
    let shapes = [SHAPE, OTHER];
    agrees(DType::F32, Recompute::None, None, &shapes, &ROWS);
}

#[test]
fn plans_of_f32_training_with_layers_recomputed() {
    let shapes = [SHAPE, OTHER];
    agrees(DType::F32, Recompute::Layer, None, &shapes, &ROWS);
}

/// Flex is slow in bf16, so there are fewer of these.
#[test]
fn plans_of_bf16_training() {
    agrees(DType::BF16, Recompute::None, None, &[SHAPE], &ROWS[..1]);
}

#[test]
fn plans_of_bf16_training_with_layers_recomputed() {
    agrees(DType::BF16, Recompute::Layer, None, &[SHAPE], &ROWS[..2]);
    agrees(DType::BF16, Recompute::Layer, None, &[OTHER], &ROWS[..1]);
}

fn lora() -> Lora {
    Lora {
        rank: 8,
        alpha: 16.0,
        targets: sppo_model::llama::lora::targets().map(Into::into).collect(),
        rank_stabilised: false,
    }
}

#[test]
fn plans_of_adapters() {
    let (lora, shapes) = (lora(), [SHAPE, OTHER]);
    agrees(
        DType::F32,
        Recompute::None,
        Some(&lora),
        &shapes,
        &ROWS[..2],
    );
    agrees(
        DType::BF16,
        Recompute::Layer,
        Some(&lora),
        &[SHAPE],
        &ROWS[..1],
    );
}

#[test]
fn plans_of_generation() {
    let _alone = alone();
    let config = config(SHAPE);
    let device = Default::default();
    for (slots, prompt, new) in [(16, 40, 60), (32, 200, 100)] {
        let before = ALLOCATED.current_usage();
        ALLOCATED.reset_peak_usage();
        let model = Llama::<burn_flex::Flex<f32, i32>>::init(&config, 1, &device).unwrap();
        let plan = CachePlan::new(&config, DType::F32, slots, 2, prompt + new, 256, None).unwrap();
        let decoder = Arc::new(Decoder::new(model, &config));
        let mut engine = Engine::new(decoder, plan, None);
        for number in 0..slots {
            let ids = (0..prompt as u32).map(|i| (i * 7 + number as u32) % 4096);
            let params = SamplingParams {
                temperature: 1.0,
                top_p: 1.0,
                top_k: 0,
                max_new_tokens: new,
                stop_ids: Vec::new(),
                seed: 0,
                ..SamplingParams::default()
            };
            let request = Request::new(number.to_string(), ids.collect(), 1, params);
            engine.submit(request).unwrap();
        }
        while !engine.is_idle() {
            engine.step().unwrap();
        }
        let found = (ALLOCATED.peak_usage() - before) as f64;
        let planned = memory::generation(&config, DType::F32, &plan).peak as f64;
        println!("generation {slots} {prompt} {new}: {:.3}", planned / found);
        // The plan holds a whole pass of prompts for each worker beside full caches and one of their
        // tensors twice: a bound, which need not be met at one moment.
        assert!(
            (0.85..1.25).contains(&(planned / found)),
            "{slots} slots: planned {planned}, counted {found}"
        );
    }
}

/// Beyond one chunk of logits, neither more response tokens nor a larger vocabulary take more
/// memory, weights and their gradients aside.
#[test]
fn logits_take_the_same_whatever_their_number() {
    let _alone = alone();
    let peak = |dtype: DType, vocab: usize, rows: usize| {
        let shape = Shape {
            hidden: 16,
            ffn: 32,
            layers: 1,
            heads: 2,
            kv: 1,
            vocab,
        };
        let config = config(shape);
        let training = Training {
            config: config.clone(),
            dtype,
            recompute: Recompute::None,
            optimizer_slots: 0,
            lora: None,
            accumulates: false,
            host: true,
            card: None,
            ranks: 1,
            ordered: true,
        };
        // Short sequences: attention stays small.
        let sequences = pairs(rows / 64, 1, 32, vocab);
        let case = Case {
            training,
            batches: 1,
        };
        // Gradients too, and masters where there are some.
        let weights = Sizes::of(&config, None).weights() * if dtype == DType::F32 { 8 } else { 10 };
        counted::<Flex>(&case, &sequences).saturating_sub(weights)
    };
    let chunk =
        |vocab: usize| (sppo_training::learner::chunk_rows(vocab, false) * vocab * 4) as u64;
    for dtype in [DType::F32, DType::BF16] {
        let one = peak(dtype, 1 << 15, 2048);
        let larger = [(1 << 15, 4096), (1 << 16, 2048)];
        // Flex is slow in bf16.
        let cases = if dtype == DType::F32 { 2 } else { 1 };
        for &(vocab, rows) in &larger[..cases] {
            let found = peak(dtype, vocab, rows);
            let logits = (vocab * rows * 4) as u64;
            assert!(logits > 3 * chunk(vocab), "several chunks");
            println!("{dtype:?} {vocab} x {rows}: {one} -> {found}");
            assert!(found < one + chunk(vocab) / 8, "{one} became {found}");
        }
    }
}
