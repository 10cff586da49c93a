//! Training in bf16 with f32 masters, beside the same in f32: the golden pairs on the golden Llama.

use burn::module::Param;
use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use sppo_model::llama::Llama;
use sppo_model::llama::parameters::{ParameterVisitor, visit_parameters};
use sppo_model::ops::ModelOps;
use sppo_model::ops::TrainingOps;
use sppo_model::packed_batch::PackedBatch;
use sppo_training::config::{Loss, Recompute};
use sppo_training::learner::{Learner, ParamState};

use super::learning::pairs;
use super::steps::{Step, reference, rmsprop};
use super::{ids, json, numbers, path};

/// All weights as f32, from the masters where there are some.
struct Weights<'a, B: TrainingOps> {
    learner: &'a Learner<B>,
    values: Vec<f32>,
}

impl<B: TrainingOps> ParameterVisitor<B> for Weights<'_, B> {
    fn visit<const D: usize>(&mut self, index: usize, parameter: &Param<Tensor<B, D>>) {
        let state = self.learner.state()[index].as_ref();
        let master = state.and_then(|state| state.master.clone());
        let data = match master {
            Some(master) => master.into_data(),
            None => parameter.val().inner().cast(DType::F32).into_data(),
        };
        self.values.extend(data.to_vec::<f32>().unwrap());
    }
}

fn weights<B: TrainingOps>(learner: &Learner<B>) -> Vec<f32> {
    let mut weights = Weights {
        learner,
        values: Vec::new(),
    };
    visit_parameters(learner.model(), 0, &mut weights);
    weights.values
}

/// How a training rounds.
#[derive(Clone, Copy, PartialEq)]
enum Rounding {
    F32,
    Bf16,
    /// The updated weights are rounded to bf16 and nothing else is kept.
    Bf16WithoutMasters,
}

/// Losses of the steps, and how each weight changed.
fn run<B: TrainingOps>(
    device: &B::Device,
    rounding: Rounding,
    recompute: Recompute,
    rates: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let dtype = match rounding {
        Rounding::F32 => DType::F32,
        _ => DType::BF16,
    };
    let (_, model) = Llama::<B>::load(&path("llama"), dtype, device).unwrap();
    let pairs = pairs();
    let known = reference(&model, &pairs);
    let mut learner = Learner::new(model, rmsprop(), recompute, None);
    let before = weights(&learner);
    let mut losses = Vec::new();
    for (number, &rate) in rates.iter().enumerate() {
        let step = Step::new(&pairs, &known, number);
        let policy = step.backward(&mut learner, Loss::Sppo, 0.001);
        learner.step(rate).unwrap();
        losses.push(step.logps(&policy).loss(Loss::Sppo, 0.001).mean);
        if rounding == Rounding::Bf16WithoutMasters {
            let state = learner.state().iter().cloned().map(|state| {
                let slots = state?.slots;
                let master = None;
                Some(ParamState { master, slots })
            });
            let state = state.collect();
            learner.restore(learner.steps(), state);
        }
    }
    let after = weights(&learner);
    let change = before.iter().zip(&after);
    let change = change.map(|(a, b)| *b as f64 - *a as f64).collect();
    (losses, change)
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// How far one change of the weights is from another, as a part of the latter.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    let gaps: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    length(&gaps) / length(expected)
}

/// The golden run's losses in bf16 are those of PyTorch in f32 within 0.2 %.
fn the_golden_run_in_bf16<B: ModelOps>(device: &B::Device) {
    let golden = &json("training_runs.json")["runs"][0];
    assert_eq!(golden["loss_type"], "sppo");
    let steps = golden["steps"].as_array().unwrap();
    let rates: Vec<f64> = steps.iter().map(|s| s["lr"].as_f64().unwrap()).collect();
    let expected: Vec<f64> = steps.iter().map(|s| s["loss"].as_f64().unwrap()).collect();
    let (kept, change) = run::<Autodiff<B>>(device, Rounding::Bf16, Recompute::None, &rates);
    let (again, same) = run::<Autodiff<B>>(device, Rounding::Bf16, Recompute::Layer, &rates);
    let most = |found: &[f64]| {
        let gaps = found
            .iter()
            .zip(&expected)
            .map(|(f, e)| (f / e - 1.0).abs());
        gaps.fold(0.0, f64::max)
    };
    println!(
        "bf16 losses differ by up to {:.2e}, layers recomputed {:.2e}",
        most(&kept),
        most(&again)
    );
    println!(
        "changes kept and recomputed differ by {:.2e}",
        distance(&same, &change)
    );
    assert!(most(&kept) < 2e-3 && most(&again) < 2e-3);
}

/// At the published learning rate, masters move as f32 weights do; bf16 weights alone stay.
fn masters_move_at_the_published_rate<B: ModelOps>(device: &B::Device) {
    let rates = [5e-7; 24];
    let of = |rounding| run::<Autodiff<B>>(device, rounding, Recompute::None, &rates).1;
    let expected = of(Rounding::F32);
    let with = distance(&of(Rounding::Bf16), &expected);
    let without = distance(&of(Rounding::Bf16WithoutMasters), &expected);
    println!("distance from f32's change: with masters {with:.3}, without {without:.3}");
    assert!(with < 0.1, "with masters {with}");
    assert!(without > 0.95, "without masters {without}");
}

/// Logits in bf16 are f32's within bf16's rounding.
fn logits_in_bf16<B: ModelOps>(device: &B::Device) {
    let (_, exact) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let (_, rounded) = Llama::<B>::load(&path("llama"), DType::BF16, device).unwrap();
    let row = &json("training_runs.json")["pairs"][0];
    let tokens = ids(&row["prompt_ids"]);
    assert_eq!(numbers(&row["prompt_ids"]).len(), tokens.len());
    let batch = PackedBatch::new(&[&tokens]);
    let values = |model: &Llama<B>| model.logits(&batch).into_data().to_vec::<f32>().unwrap();
    let (exact, rounded) = (values(&exact), values(&rounded));
    let widest = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
    let gaps = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs());
    let most = gaps.fold(0f32, f32::max);
    println!("logits up to {widest:.2} differ by up to {most:.3}");
    assert!(most > 0.0 && most < 0.03 * widest, "{most} of {widest}");
}

crate::on_bf16_backends!(
    the_golden_run_in_bf16,
    masters_move_at_the_published_rate,
    logits_in_bf16,
);
