//! The theorem of arXiv 2405.00675 (theorem 4.1): the average policy of self-play approaches the
//! Nash equilibrium, also where preferences go in a circle. One prompt, three answers of a token.

use burn::tensor::DType;
use burn_autodiff::Autodiff;
use serde_json::{Map, Value, json};
use sppo_model::llama::{Llama, LlamaConfig};

use sppo_training::config::{Loss, Recompute};
use sppo_training::data::PairProbabilities;
use sppo_training::learner::Learner;
use sppo_training::loss::PairLogps;
use sppo_training::optimizer::{Optimizer, Sgd};
use sppo_training::tokenise::TokenisedSequence;

type Flex = Autodiff<burn_flex::Flex<f32, i32>>;

/// P[i][j]: how often answer i beats answer j, in a circle; the equilibrium is (0.1, 0.45, 0.45).
const GAME: [[f64; 3]; 3] = [[0.5, 0.95, 0.05], [0.05, 0.5, 0.6], [0.95, 0.4, 0.5]];
const ITERATIONS: usize = 300;
/// Gradient steps of an iteration.
const STEPS: usize = 10;

fn learner(seed: u64) -> Learner<Flex> {
    let fields = json!({
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 5, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "initializer_range": 0.2,
    });
    let Value::Object(fields) = fields else {
        unreachable!("it is an object")
    };
    let fields: Map<String, Value> = fields;
    let config = LlamaConfig::from_map(fields).unwrap();
    let model = Llama::init(&config, seed, &Default::default()).unwrap();
    assert_eq!(model.dtype(), DType::F32);
    let optimizer = Optimizer::Sgd(Sgd { weight_decay: 0.0 });
    Learner::new(model, optimizer, Recompute::None, None)
}

/// The prompt is token 1, the answers are 2, 3 and 4.
fn answer(number: usize) -> TokenisedSequence {
    TokenisedSequence {
        ids: vec![1, 2 + number as u32],
        response_start: 1,
    }
}

fn logps(learner: &Learner<Flex>) -> [f64; 3] {
    let answers = [0, 1, 2].map(answer);
    let found = learner.logps(&answers.each_ref()).unwrap();
    found.try_into().unwrap()
}

/// Probabilities of the answers among themselves.
fn policy(logps: [f64; 3]) -> [f64; 3] {
    let weights = logps.map(f64::exp);
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// P(answer beats the policy).
fn wins(policy: [f64; 3]) -> [f64; 3] {
    GAME.map(|row| row.iter().zip(policy).map(|(p, q)| p * q).sum())
}

/// What the best answer wins against the policy beyond one half; 0 at the equilibrium.
fn exploitability(policy: [f64; 3]) -> f64 {
    wins(policy).into_iter().fold(f64::MIN, f64::max) - 0.5
}

/// The average policy and the last one, behind each iteration.
fn self_play(seed: u64, kind: Loss, beta: f64, rate: f64) -> Vec<[[f64; 3]; 2]> {
    let mut learner = learner(seed);
    // A beginning far from the equilibrium: nearly always rock.
    for _ in 0..40 {
        learner.backward(&[&answer(0)], |_| vec![-1.0]).unwrap();
        learner.step(0.02).unwrap();
    }
    let mut sum = [0.0; 3];
    let mut path = Vec::new();
    for iteration in 1..=ITERATIONS {
        let reference = logps(&learner);
        let now = policy(reference);
        sum = [0, 1, 2].map(|i| sum[i] + now[i]);
        path.push([sum.map(|s| s / iteration as f64), now]);
        let win = wins(now);
        // Every pair of answers once, the winner of the two chosen.
        let pairs = [[0, 1], [1, 2], [2, 0]].map(|[i, j]| match GAME[i][j] > 0.5 {
            true => [i, j],
            false => [j, i],
        });
        let answers = pairs.map(|pair| pair.map(answer));
        let sequences: Vec<&TokenisedSequence> = answers.iter().flatten().collect();
        for _ in 0..STEPS {
            let weights = |policy: &[f64]| {
                let side = |side: usize| policy.iter().skip(side).step_by(2).copied().collect();
                let of = |side: usize| pairs.map(|pair| reference[pair[side]]).to_vec();
                let batch = PairLogps {
                    policy_chosen: side(0),
                    policy_rejected: side(1),
                    reference_chosen: of(0),
                    reference_rejected: of(1),
                    probabilities: pairs
                        .map(|[i, j]| PairProbabilities::new(GAME[i][j], win[i], win[j]))
                        .to_vec(),
                };
                let output = batch.loss(kind, beta);
                let grads = output.grad_chosen.into_iter().zip(output.grad_rejected);
                grads
                    .flat_map(|(chosen, rejected)| [chosen, rejected])
                    .collect()
            };
            learner.backward(&sequences, weights).unwrap();
            learner.step(rate).unwrap();
        }
    }
    path
}

/// `cargo test --test main theorem -- --nocapture` prints the path; scripts/plot_nash.py draws it.
#[test]
fn self_play_approaches_the_equilibrium() {
    println!("seed,iteration,sppo average,sppo last,dpo average");
    let mut reached = Vec::new();
    for seed in 1..=5 {
        let sppo = self_play(seed, Loss::Sppo, 1.0, 0.05);
        // Each answer is chosen once and rejected once: DPO's gradient is zero wherever it stands.
        let dpo = self_play(seed, Loss::Dpo, 0.5, 0.05);
        for (i, (s, d)) in sppo.iter().zip(&dpo).enumerate() {
            let [average, last] = s.map(exploitability);
            let dpo = exploitability(d[0]);
            println!("{seed},{},{average:.4},{last:.4},{dpo:.4}", i + 1);
        }
        let first = exploitability(sppo[0][0]);
        let average = |path: &[[[f64; 3]; 2]]| exploitability(path.last().unwrap()[0]);
        assert!(first > 0.3, "{first}");
        assert!(average(&dpo) > 0.3, "{}", average(&dpo));
        reached.push(average(&sppo));
    }
    // The path goes round the equilibrium, so how near its end is hangs on where it began.
    reached.sort_by(f64::total_cmp);
    assert!(reached[2] < 0.05 && reached[4] < 0.15, "{reached:?}");
}
