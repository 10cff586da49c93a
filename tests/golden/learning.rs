//! Losses, optimizer and whole training runs, against the official trainer and torch.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use serde_json::Value;
use sppo_model::llama::Llama;
use sppo_model::ops::ModelOps;
use sppo_model::ops::{TrainingOps, UpdateStep, Updating};
use sppo_model::packed_batch::PackedBatch;
use sppo_training::config::{self, Loss, Recompute};
use sppo_training::data::PairProbabilities;
use sppo_training::learner::{Learner, sequence_logps};
use sppo_training::loss::PairLogps;
use sppo_training::optimizer::{Optimizer, RmsProp, Schedule};
use sppo_training::tokenise::TokenisedPair;

use super::steps::{Step, reference, rmsprop};
use super::{ids, json, numbers, path};
use crate::close::{assert_all_close, assert_close};

#[track_caller]
fn assert_relative(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert_close(found, expected, tolerance * expected.abs().max(1e-9), what);
}

fn kind(name: &Value) -> Loss {
    name.as_str().unwrap().parse().unwrap()
}

#[test]
fn losses_and_gradients() {
    for case in json("losses.json").as_array().unwrap() {
        let column = |key: &str| numbers(&case[key]);
        let (win, lose) = (column("chosen_probs_win"), column("chosen_probs_lose"));
        let probabilities = column("chosen_probs").into_iter().zip(win).zip(lose);
        let logps = PairLogps {
            policy_chosen: column("policy_chosen"),
            policy_rejected: column("policy_rejected"),
            reference_chosen: column("ref_chosen"),
            reference_rejected: column("ref_rejected"),
            probabilities: probabilities
                .map(|((chosen, win), lose)| PairProbabilities::new(chosen, win, lose))
                .collect(),
        };
        let beta = case["beta"].as_f64().unwrap();
        let output = logps.loss(kind(&case["kind"]), beta);
        let rewards = logps.rewards(beta);
        for (found, key) in [
            (&output.losses, "losses"),
            (&output.grad_chosen, "grad_chosen"),
            (&output.grad_rejected, "grad_rejected"),
            (&rewards.0, "chosen_rewards"),
            (&rewards.1, "rejected_rewards"),
        ] {
            let expected = column(key);
            assert_eq!(found.len(), expected.len(), "{key}");
            for (f, e) in found.iter().zip(expected) {
                assert_relative(*f, e, 1e-9, &format!("{} {key}", case["kind"]));
            }
        }
        let mean = case["mean"].as_f64().unwrap();
        assert_relative(output.mean, mean, 1e-9, "mean");
    }
}

fn rmsprop_with_linear_schedule<B: ModelOps>(device: &B::Device) {
    for case in json("rmsprop_linear.json").as_array().unwrap() {
        follow_rmsprop::<B>(device, case);
    }
}

fn follow_rmsprop<B: ModelOps>(device: &B::Device, case: &Value) {
    let tensor = |values: &Value| {
        let values: Vec<f32> = numbers(values).iter().map(|&x| x as f32).collect();
        Tensor::<B, 1>::from_floats(values.as_slice(), device)
    };
    let schedule = Schedule {
        kind: config::ScheduleKind::Linear,
        learning_rate: case["lr"].as_f64().unwrap(),
        warmup_steps: case["warmup_steps"].as_u64().unwrap() as usize,
        total_steps: case["total_steps"].as_u64().unwrap() as usize,
    };
    let optimizer = Optimizer::RmsProp(RmsProp {
        alpha: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    });
    let mut weights = tensor(&case["start"]);
    let mut slots = Vec::new();
    for (step, gradient) in case["grads"].as_array().unwrap().iter().enumerate() {
        let rate = schedule.rate(step);
        assert_relative(rate, case["lrs"][step].as_f64().unwrap(), 1e-12, "rate");
        let update = UpdateStep {
            rate,
            number: step + 1,
            gradient_scale: 1.0,
        };
        let updating = Updating {
            weights,
            grad: tensor(gradient),
            slots,
        };
        let found = B::update(&optimizer, update, vec![updating], DType::F32, &mut None).remove(0);
        (weights, slots) = (found.weights, found.slots);
        let found: Vec<f32> = weights.clone().into_data().to_vec().unwrap();
        for (f, e) in found.iter().zip(numbers(&case["weights"][step])) {
            assert_close((*f).into(), e, 2e-6, &format!("step {step}"));
        }
    }
}

pub fn pairs() -> Vec<TokenisedPair> {
    let rows = json("training_runs.json");
    let pair = |row: &Value| {
        let probability = |key: &str| row[key].as_f64().unwrap();
        TokenisedPair::from_ids(
            &ids(&row["prompt_ids"]),
            &ids(&row["chosen_ids"]),
            &ids(&row["rejected_ids"]),
            PairProbabilities::new(
                probability("chosen_probs"),
                probability("chosen_probs_win"),
                probability("chosen_probs_lose"),
            ),
            512,
        )
        .unwrap()
    };
    rows["pairs"].as_array().unwrap().iter().map(pair).collect()
}

/// Trains the golden checkpoint as `run` says and compares every step and the last logits.
fn follow<B: TrainingOps>(device: &B::Device, run: &Value, recompute: Recompute) {
    let pairs = pairs();
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let reference = reference(&model, &pairs);
    let clip = run["max_grad_norm"].as_f64();
    let mut learner = Learner::new(model, rmsprop(), recompute, clip);
    let (loss, beta) = (kind(&run["loss_type"]), run["beta"].as_f64().unwrap());
    let schedule = Schedule {
        kind: config::ScheduleKind::Linear,
        learning_rate: run["learning_rate"].as_f64().unwrap(),
        warmup_steps: run["warmup_steps"].as_u64().unwrap() as usize,
        total_steps: 8,
    };
    for (step, expected) in run["steps"].as_array().unwrap().iter().enumerate() {
        let rows: Vec<usize> = (0..4).map(|i| (step * 4 + i) % 16).collect();
        let batch = Step::new(&pairs, &reference, step);
        let policy = batch.backward(&mut learner, loss, beta);
        let report = learner.step(schedule.rate(step)).unwrap();
        let what = format!("{} step {step}", run["loss_type"]);
        let mean = batch.logps(&policy).loss(loss, beta).mean;
        assert_relative(mean, expected["loss"].as_f64().unwrap(), 2e-3, &what);
        let norm = expected["grad_norm"].as_f64().unwrap();
        assert_relative(report.grad_norm, norm, 2e-3, &what);
        for (at, (key, known)) in [("chosen_logps", &reference), ("rejected_logps", &reference)]
            .into_iter()
            .enumerate()
        {
            let golden = numbers(&expected[key]);
            let golden_reference = numbers(&expected[format!("reference_{key}")]);
            for i in 0..4 {
                assert_relative(policy[at * 4 + i], golden[i], 1e-3, &what);
                assert_relative(known[rows[i]][at], golden_reference[i], 1e-5, &what);
            }
        }
    }
    let logits = learner
        .valid()
        .logits(&PackedBatch::new(&[&pairs[0].chosen.ids]));
    let [rows, width] = logits.dims();
    let last = logits.slice([rows - 1..rows, 0..width]);
    let found: Vec<f32> = last.into_data().to_vec().unwrap();
    let expected = numbers(&run["final_last_logits_of_first_chosen"]);
    assert_all_close(&found, &expected, 5e-3, "last logits");
}

fn training_runs<B: ModelOps>(device: &B::Device) {
    for run in json("training_runs.json")["runs"].as_array().unwrap() {
        follow::<Autodiff<B>>(device, run, Recompute::None);
    }
}

fn training_with_layers_recomputed<B: ModelOps>(device: &B::Device) {
    let runs = json("training_runs.json");
    follow::<Autodiff<B>>(device, &runs["runs"][0], Recompute::Layer);
}

/// Summed log-probabilities of each golden sequence: alone, and all in one batch.
fn batching_changes_no_logp<B: ModelOps>(device: &B::Device) {
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let pairs = pairs();
    let sequences: Vec<_> = pairs.iter().map(|p| &p.chosen).collect();
    let together = sequence_logps(&model, &sequences).unwrap();
    for (sequence, expected) in sequences.iter().zip(together) {
        let alone = sequence_logps(&model, &[sequence]).unwrap()[0];
        let bound = 1e-5 * sequence.response().len() as f64;
        assert_close(alone, expected, bound, "alone and together");
    }
}

crate::on_every_backend!(
    rmsprop_with_linear_schedule,
    training_runs,
    training_with_layers_recomputed,
    batching_changes_no_logp,
);
