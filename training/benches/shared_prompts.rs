//! What computing a pair's prompt once saves on rows shaped like UltraFeedback's, and what padding
//! costs: `cargo bench -p sppo-training`.
//!
//! Both ways run by turns in one process; the plain way's pairs differ in their first token, so
//! that nothing is shared.

use std::time::Instant;

use burn_autodiff::Autodiff;
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use sppo_model::llama::{Llama, LlamaConfig};
use sppo_training::config::Recompute;
use sppo_training::cost::{Batch, flops, published};
use sppo_training::learner::Learner;
use sppo_training::optimizer::{Optimizer, Sgd};
use sppo_training::tokenise::TokenisedSequence;

type Flex = Autodiff<burn_flex::Flex<f32, i32>>;

const PAIRS: usize = 8;
const BATCHES: usize = 6;
const VOCAB: u32 = 4096;

/// A length with this median and a long tail, at most 512 tokens.
fn length(generator: &mut ChaCha12Rng, median: f64) -> usize {
    let (a, b): (f64, f64) = (1.0 - generator.random::<f64>(), generator.random());
    let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    ((median * (0.7 * normal).exp()) as usize).clamp(8, 512)
}

/// Sequences of `PAIRS` pairs.
fn batch(generator: &mut ChaCha12Rng, shared: bool) -> Vec<TokenisedSequence> {
    let mut sequences = Vec::new();
    for _ in 0..PAIRS {
        let prompt = length(generator, 150.0);
        let mut ids: Vec<u32> = (0..prompt)
            .map(|_| generator.random_range(1..VOCAB))
            .collect();
        for side in 0..2 {
            let response = length(generator, 300.0);
            if side == 1 && !shared {
                ids[0] = 0;
            }
            let answer = (0..response).map(|_| generator.random_range(1..VOCAB));
            sequences.push(TokenisedSequence {
                ids: ids.iter().copied().chain(answer).collect(),
                response_start: prompt,
            });
        }
    }
    sequences
}

fn main() {
    let fields = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 704,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": VOCAB, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let config = LlamaConfig::from_map(fields.as_object().cloned().unwrap_or_default());
    let config = config.expect("the shape is valid");
    let model = Llama::<Flex>::init(&config, 1, &Default::default()).expect("it fits");
    let optimizer = Optimizer::Sgd(Sgd { weight_decay: 0.0 });
    let mut learner = Learner::new(model, optimizer, Recompute::None, None);
    let large = published("meta-llama/Meta-Llama-3-8B").expect("it is known");
    // Seconds, tokens computed, operations of an 8B model, cells and cells without padding.
    let mut sums = [[0.0f64; 5]; 2];
    for number in 0..=BATCHES {
        for shared in [true, false] {
            let mut generator = ChaCha12Rng::seed_from_u64(number as u64);
            let sequences = batch(&mut generator, shared);
            let sequences: Vec<&TokenisedSequence> = sequences.iter().collect();
            let begun = Instant::now();
            let done = learner.backward(&sequences, |logps| vec![1.0; logps.len()]);
            done.expect("a CPU does not fail");
            let seconds = begun.elapsed().as_secs_f64();
            learner.discard_gradients();
            // The first batch warms up.
            if number == 0 {
                continue;
            }
            let size = Batch::of(&sequences);
            let exact: usize = sequences.iter().map(|s| s.ids.len().pow(2)).sum();
            let found = [
                seconds,
                size.packed.tokens as f64,
                flops::training(&large, None, &size),
                size.packed.scores as f64,
                exact as f64,
            ];
            let sums = &mut sums[usize::from(!shared)];
            sums.iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
        }
    }
    let [shared, plain] = sums;
    let saved = |i: usize| 100.0 * (1.0 - shared[i] / plain[i]);
    println!(
        "tokens computed: {} instead of {} ({:.1} % fewer)",
        shared[1],
        plain[1],
        saved(1)
    );
    println!(
        "time on this CPU: {:.2} s instead of {:.2} s ({:.1} % less)",
        shared[0],
        plain[0],
        saved(0)
    );
    println!("operations of Llama-3-8B: {:.1} % fewer", saved(2));
    println!(
        "attention scores: {:.2} x those without padding",
        shared[3] / shared[4]
    );
}
