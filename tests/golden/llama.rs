//! Logits and greedy tokens of a small sharded bf16 checkpoint, against transformers.

use burn::tensor::{DType, backend::Backend};
use sppo_model::checkpoint::Checkpoint;
use std::sync::Arc;

use sppo_model::generate::{Engine, Plan, Request, Sample, SamplingParams, answer_all};
use sppo_model::llama::{Decoder, Llama, LlamaConfig, PackedBatch};

use super::{ids, json, path};

/// The token ids and expected logits of the golden cases.
fn cases() -> Vec<(Vec<u32>, Vec<f32>)> {
    let bytes = std::fs::read(path("llama/expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let reference = Checkpoint::open_file(&path("llama/expected.safetensors")).unwrap();
    let mut cases = Vec::new();
    while let Ok(ids) = tensors.tensor(&format!("ids.{}", cases.len())) {
        let width = ids.data().len() / ids.shape().iter().product::<usize>();
        let ids = ids
            .data()
            .chunks_exact(width)
            .map(|b| b[0] as u32 | (b[1] as u32) << 8);
        let logits = reference
            .load(&format!("logits.{}", cases.len()), DType::F32)
            .unwrap()
            .unwrap();
        cases.push((ids.collect(), logits.to_vec().unwrap()));
    }
    assert!(!cases.is_empty());
    cases
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "at {i}: {a} is not {b}");
    }
}

fn logits<B: Backend>(device: &B::Device) {
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    for (ids, expected) in cases() {
        let batch = PackedBatch::new(&[&ids], device);
        let found: Vec<f32> = model.logits(&batch).into_data().to_vec().unwrap();
        assert_close(&found, &expected, 1e-4);
    }
}

/// All cases packed into one batch of different lengths give what each gives alone.
fn packing_changes_nothing<B: Backend>(device: &B::Device) {
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let cases = cases();
    let sequences: Vec<&[u32]> = cases.iter().map(|c| c.0.as_slice()).collect();
    let batch = PackedBatch::new(&sequences, device);
    let found: Vec<f32> = model.logits(&batch).into_data().to_vec().unwrap();
    let expected: Vec<f32> = cases.iter().flat_map(|c| c.1.clone()).collect();
    assert_close(&found, &expected, 1e-4);
    for (i, (ids, _)) in cases.iter().enumerate() {
        let alone = model.logits(&PackedBatch::new(&[ids], device));
        let alone: Vec<f32> = alone.into_data().to_vec().unwrap();
        let start = batch.starts[i] * (alone.len() / ids.len());
        assert_close(&found[start..start + alone.len()], &alone, 1e-5);
    }
}

fn answers<B: Backend>(
    model: Llama<B>,
    config: &LlamaConfig,
    requests: Vec<Request>,
) -> Vec<Vec<Sample>> {
    let context = config.max_position_embeddings;
    let plan = Plan::new(config, DType::F32, 5, 2, context, None).unwrap();
    let decoder = Arc::new(Decoder::new(model, config));
    answer_all(&mut Engine::new(decoder, plan, None), requests).unwrap()
}

fn greedy_tokens<B: Backend>(device: &B::Device) {
    let (config, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let params = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        max_new_tokens: 24,
        stop_ids: vec![],
        seed: 0,
    };
    let requests: Vec<Request> = cases()
        .into_iter()
        .enumerate()
        .map(|(i, (prompt, _))| Request::new(i.to_string(), prompt, 2, params.clone()))
        .collect();
    let found = answers(model, &config, requests);
    let expected = json("llama/expected.json");
    for (i, samples) in found.iter().enumerate() {
        for sample in samples {
            assert_eq!(sample.tokens, ids(&expected["greedy_24"][i]), "case {i}");
        }
    }
}

/// A sequence that fills the context beside short ones.
fn short_prompts_do_not_drag_a_long_one_past_the_context<B: Backend>(device: &B::Device) {
    let (config, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let context = config.max_position_embeddings;
    let params = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        max_new_tokens: 40,
        stop_ids: vec![],
        seed: 0,
    };
    let lengths = [context - 5, 3, 3, 3, 3, 3];
    let requests: Vec<Request> = lengths
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let prompt = (0..length as u32).map(|t| t % 400).collect();
            Request::new(i.to_string(), prompt, 1, params.clone())
        })
        .collect();
    let found = answers(model, &config, requests);
    let lengths: Vec<usize> = found.iter().map(|s| s[0].tokens.len()).collect();
    assert_eq!(lengths, [5, 40, 40, 40, 40, 40]);
}

crate::on_every_backend!(
    short_prompts_do_not_drag_a_long_one_past_the_context,
    logits,
    packing_changes_nothing,
    greedy_tokens
);
