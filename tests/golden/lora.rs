//! LoRA against PEFT (tests/fixtures/lora), on every backend.

use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_autodiff::Autodiff;
use serde_json::Value;
use sppo_model::llama::lora::{AdapterFolder, Merge};
use sppo_model::llama::{Llama, LlamaConfig, Lora};
use sppo_model::ops::{ModelOps, TrainingOps};
use sppo_model::packed_batch::PackedBatch;
use sppo_training::config::{self, Loss, Recompute};
use sppo_training::learner::{Learner, sequence_logps};
use sppo_training::optimizer::{Optimizer, Schedule, Sgd};

use super::learning::pairs;
use super::steps::{Step, reference, rmsprop};
use super::{ids, numbers, path};
use crate::close::{assert_all_close, assert_close};

/// The folder that PEFT wrote, and what it computes with it.
pub fn adapter() -> PathBuf {
    path("../lora")
}

pub fn expected() -> Value {
    let text = std::fs::read_to_string(adapter().join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn base<B: ModelOps>(dtype: DType, device: &B::Device) -> (LlamaConfig, Llama<B>) {
    Llama::<B>::load(&path("llama"), dtype, device).unwrap()
}

fn with_peft<B: ModelOps>(dtype: DType, dir: &Path, device: &B::Device) -> Llama<B> {
    let (config, model) = base::<B>(dtype, device);
    let folder = AdapterFolder::open(dir, &path("llama"), &config).unwrap();
    model.with_saved_adapters(&folder).unwrap()
}

fn last_logits<B: ModelOps>(model: &Llama<B>) -> Vec<f32> {
    let batch = PackedBatch::new(&[&ids(&expected()["ids"])]);
    let logits = model.logits(&batch);
    let last = logits.dims()[0] - 1;
    logits.narrow(0, last, 1).into_data().to_vec().unwrap()
}

#[track_caller]
fn assert_logits(found: &[f32], expected: &Value, bound: f64) {
    assert_all_close(found, &numbers(expected), bound, "logits");
}

fn everywhere(rank: usize) -> Lora {
    let targets = sppo_model::llama::lora::targets();
    Lora {
        rank,
        alpha: 8.0,
        targets: targets.map(String::from).collect(),
        rank_stabilised: false,
    }
}

/// A new adapter's B is zero: logits and log-probabilities stay as they are, on a CPU to the bit.
/// A device may fuse the additions of zeros with what stands beside them, and round otherwise.
fn new_adapters_change_nothing<B: ModelOps>(device: &B::Device) {
    let (config, model) = base::<B>(DType::F32, device);
    let with = model
        .clone()
        .with_new_adapters(&config, &everywhere(3), 1)
        .unwrap();
    let allowed = if B::ON_HOST { 0.0 } else { 1e-5 };
    for (found, expected) in last_logits(&with).into_iter().zip(last_logits(&model)) {
        assert_close(found.into(), expected.into(), allowed, "logits");
    }
    let pairs = pairs();
    let sequences: Vec<_> = pairs.iter().map(|p| &p.chosen).collect();
    let logps = |model: &Llama<B>| sequence_logps(model, &sequences).unwrap();
    let rows = logps(&with).into_iter().zip(logps(&model)).zip(&sequences);
    for ((found, expected), sequence) in rows {
        let bound = allowed * sequence.response().len() as f64;
        assert_close(found, expected, bound, "log-probability");
    }
}

fn logits_are_those_of_peft<B: ModelOps>(device: &B::Device) {
    let expected = expected();
    let model = with_peft::<B>(DType::F32, &adapter(), device);
    assert_logits(&last_logits(&model), &expected["logits"], 1e-4);
    let merged = model.clone().merged();
    assert_logits(&last_logits(&merged), &expected["logits"], 1e-4);
    let pairs = pairs();
    let sequences: Vec<_> = pairs.iter().map(|p| &p.rejected).collect();
    let logps = |model: &Llama<B>| sequence_logps(model, &sequences).unwrap();
    for ((one, other), sequence) in logps(&merged).iter().zip(logps(&model)).zip(&sequences) {
        let bound = 1e-5 * sequence.response().len() as f64;
        assert_close(*one, other, bound, "merged and beside");
    }
}

/// Merged folders, from every way that PEFT writes the same tensors down.
fn merged_folders_are_whole_models<B: ModelOps>(device: &B::Device) {
    let expected = expected();
    for (key, value, logits) in [
        ("r", Value::from(4), "logits"),
        ("use_rslora", Value::from(true), "logits_rslora"),
        ("target_modules", Value::from(".*_proj"), "logits"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let name = "adapter_model.safetensors";
        std::fs::copy(adapter().join(name), dir.path().join(name)).unwrap();
        let settings = std::fs::read_to_string(adapter().join("adapter_config.json")).unwrap();
        let mut settings: Value = serde_json::from_str(&settings).unwrap();
        settings[key] = value;
        std::fs::write(dir.path().join("adapter_config.json"), settings.to_string()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let merge = Merge::open(&path("llama"), dir.path()).unwrap();
        let merged = merge
            .write::<B>(out.path(), Some(DType::F32), device)
            .unwrap();
        assert_close(merged.kept, 1.0, 1e-5, "what is kept");
        let (_, model) = Llama::<B>::load(out.path(), DType::F32, device).unwrap();
        assert_logits(&last_logits(&model), &expected[logits], 1e-4);
    }
}

/// Every parameter's values, adapters and others apart.
#[derive(Default)]
struct Parameters {
    path: Vec<String>,
    adapters: Vec<Vec<f32>>,
    others: Vec<Vec<f32>>,
}

impl<B: Backend> ModuleVisitor<B> for Parameters {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let data = param.val().into_data().convert_dtype(DType::F32);
        let values = data.to_vec().unwrap();
        match self.path.iter().any(|name| name == "adapter") {
            true => self.adapters.push(values),
            false => self.others.push(values),
        }
    }
}

impl Parameters {
    fn of<B: ModelOps>(model: &Llama<B>) -> Self {
        let mut found = Self::default();
        model.visit(&mut found);
        found
    }
}

/// Follows PEFT's training of its own adapter, step by step; gives the trained model.
fn follow<B: TrainingOps>(
    dtype: DType,
    recompute: Recompute,
    tolerance: f64,
    device: &B::Device,
) -> Llama<B::InnerBackend> {
    let run = &expected()["run"];
    let (pairs, beta) = (pairs(), run["beta"].as_f64().unwrap());
    // The reference is the base with the adapter off.
    let reference = reference(&base::<B>(DType::F32, device).1, &pairs);
    let model = with_peft::<B>(dtype, &adapter(), device);
    let before = Parameters::of(&model);
    let mut learner = Learner::new(model, rmsprop(), recompute, None);
    let steps = run["steps"].as_array().unwrap();
    let schedule = Schedule {
        kind: config::ScheduleKind::Linear,
        learning_rate: run["learning_rate"].as_f64().unwrap(),
        warmup_steps: 1,
        total_steps: steps.len(),
    };
    for (i, step) in steps.iter().enumerate() {
        let batch = Step::new(&pairs, &reference, i);
        let policy = batch.backward(&mut learner, Loss::Sppo, beta);
        let report = learner.step(schedule.rate(i)).unwrap();
        let loss = batch.logps(&policy).loss(Loss::Sppo, beta).mean;
        for (found, key) in [(loss, "loss"), (report.grad_norm, "grad_norm")] {
            let expected = step[key].as_f64().unwrap();
            let gap = (found / expected - 1.0).abs();
            assert!(
                gap < tolerance,
                "{key} of step {i}: {found} is not {expected}"
            );
        }
        let logps = [
            numbers(&step["chosen_logps"]),
            numbers(&step["rejected_logps"]),
        ]
        .concat();
        for (found, expected) in policy.iter().zip(logps) {
            let gap = (found - expected).abs() / expected.abs();
            assert!(gap < tolerance, "step {i}: {found} is not {expected}");
        }
    }
    // Only the adapters moved, all of them, and nothing else has a state.
    let after = Parameters::of(learner.model());
    assert!(after.others == before.others);
    assert!(
        after
            .adapters
            .iter()
            .zip(&before.adapters)
            .all(|(a, b)| a != b)
    );
    let state = || learner.state().iter().flatten();
    assert_eq!(state().count(), after.adapters.len());
    assert!(state().all(|s| s.master.is_none() && s.slots.len() == 1));
    learner.valid()
}

fn training_follows_peft<B: ModelOps>(device: &B::Device) {
    let model = follow::<Autodiff<B>>(DType::F32, Recompute::None, 1e-4, device);
    assert_logits(
        &last_logits(&model),
        &expected()["run"]["final_logits"],
        5e-3,
    );
}

/// ∂/∂A = scale · Bᵀ · ∂/∂W and ∂/∂B = scale · ∂/∂W · Aᵀ, where ∂/∂W is that of full training of
/// the merged model.
fn gradients_follow_the_chain_rule<B: ModelOps>(device: &B::Device) {
    let (pairs, beta) = (pairs(), 0.1);
    let reference = reference(&base::<Autodiff<B>>(DType::F32, device).1, &pairs);
    let model = with_peft::<Autodiff<B>>(DType::F32, &adapter(), device);
    // One step of plain descent at rate 1 takes the gradient off the weights.
    let descend = |model: Llama<Autodiff<B>>| {
        let sgd = Optimizer::Sgd(Sgd { weight_decay: 0.0 });
        let mut learner = Learner::new(model, sgd, Recompute::None, None);
        Step::new(&pairs, &reference, 0).backward(&mut learner, Loss::Sppo, beta);
        learner.step(1.0).unwrap();
        learner.valid()
    };
    let merged = model.clone().merged();
    let (whole, beside) = (descend(merged.clone()), descend(model.clone()));
    let inner = |t: Tensor<Autodiff<B>, 2>| t.inner();
    for i in 0..model.layers.len() {
        let mlp = &model.layers[i].mlp.up_proj;
        let adapter = mlp.adapter.as_ref().unwrap();
        let (a, b) = (inner(adapter.lora_a.val()), inner(adapter.lora_b.val()));
        let before = inner(merged.layers[i].mlp.up_proj.weight.val());
        let of_weight = before - whole.layers[i].mlp.up_proj.weight.val();
        let after = beside.layers[i].mlp.up_proj.adapter.as_ref().unwrap();
        let of_a = a.clone() - after.lora_a.val();
        let of_b = b.clone() - after.lora_b.val();
        let wanted_a = b.transpose().matmul(of_weight.clone()) * adapter.scale;
        let wanted_b = of_weight.matmul(a.transpose()) * adapter.scale;
        for (found, wanted) in [(of_a, wanted_a), (of_b, wanted_b)] {
            let largest: f32 = wanted.clone().abs().max().into_data().to_vec().unwrap()[0];
            let gap: f32 = (found - wanted).abs().max().into_data().to_vec().unwrap()[0];
            assert!(largest > 0.0);
            assert_close((gap / largest).into(), 0.0, 1e-3, "chain rule");
        }
    }
}

crate::on_every_backend!(
    new_adapters_change_nothing,
    logits_are_those_of_peft,
    merged_folders_are_whole_models,
    training_follows_peft,
    gradients_follow_the_chain_rule,
);

/// Adapters of a bf16 model, which goes through autodiff: f32 beside it, frozen and recomputed.
#[cfg(feature = "flex")]
mod bf16 {
    use super::*;

    type Flex = Autodiff<burn_flex::Flex<f32, i32>>;

    #[test]
    fn training_follows_peft_nearly() {
        let device = Default::default();
        let kept = follow::<Flex>(DType::BF16, Recompute::None, 0.02, &device);
        let again = follow::<Flex>(DType::BF16, Recompute::Layer, 0.02, &device);
        assert_eq!(kept.dtype(), DType::BF16);
        assert!(Parameters::of(&kept).adapters == Parameters::of(&again).adapters);
    }

    #[test]
    fn new_adapters_change_no_bit() {
        let device = Default::default();
        let (config, model) = base::<Flex>(DType::BF16, &device);
        let with = model.clone();
        let with = with.with_new_adapters(&config, &everywhere(5), 1).unwrap();
        assert!(last_logits(&with) == last_logits(&model));
    }
}
