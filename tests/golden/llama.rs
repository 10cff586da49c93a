//! Logits and greedy tokens of a small sharded bf16 checkpoint, against transformers.

use burn::tensor::DType;
use sppo_model::checkpoint::Checkpoint;
use std::sync::Arc;

use sppo_model::generate::sampling::{Draws, Sampler};
use sppo_model::generate::{
    CachePlan, Engine, Event, Request, Sample, SamplingParams, TokenScore, answer_all,
};
use sppo_model::llama::{Decoder, Llama, LlamaConfig};
use sppo_model::ops::ModelOps;
use sppo_model::packed_batch::PackedBatch;

use super::{ids, json, path};
use crate::close::assert_all_close;

/// The token ids and expected logits of the golden cases.
pub(crate) fn cases() -> Vec<(Vec<u32>, Vec<f32>)> {
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

#[track_caller]
fn assert_logits(found: &[f32], expected: &[f32], bound: f64) {
    let expected: Vec<f64> = expected.iter().map(|&x| x.into()).collect();
    assert_all_close(found, &expected, bound, "logits");
}

fn logits<B: ModelOps>(device: &B::Device) {
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    for (ids, expected) in cases() {
        let batch = PackedBatch::new(&[&ids]);
        let found: Vec<f32> = model.logits(&batch).into_data().to_vec().unwrap();
        assert_logits(&found, &expected, 1e-4);
    }
}

/// All cases packed into one batch of different lengths give what each gives alone.
fn packing_changes_nothing<B: ModelOps>(device: &B::Device) {
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let cases = cases();
    let sequences: Vec<&[u32]> = cases.iter().map(|c| c.0.as_slice()).collect();
    let batch = PackedBatch::new(&sequences);
    let found: Vec<f32> = model.logits(&batch).into_data().to_vec().unwrap();
    let vocab = found.len() / batch.tokens();
    for ((ids, expected), places) in cases.iter().zip(&batch.places) {
        for (i, expected) in (0..ids.len()).zip(expected.chunks_exact(vocab)) {
            let at = places.at(i) * vocab;
            assert_logits(&found[at..at + vocab], expected, 1e-4);
        }
    }
    each_as_alone(&model, &sequences);
}

/// Prefixes that sequences share are computed once, and change nothing.
fn shared_prefixes_change_nothing<B: ModelOps>(device: &B::Device) {
    let (_, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let whole = cases().iter().map(|c| c.0.clone()).max_by_key(Vec::len);
    let whole = whole.unwrap();
    let (half, third) = (whole.len() / 2, whole.len() / 3);
    let mut other = whole.clone();
    other[half..].reverse();
    let mut third_kind = other[..half + 3].to_vec();
    third_kind[third..].reverse();
    // The same again, a beginning alone, one that branches off a branch, and nothing shared.
    let sequences: [&[u32]; 6] = [
        &whole,
        &other,
        &whole,
        &whole[..half],
        &third_kind,
        &whole[third..],
    ];
    let all: usize = sequences.iter().map(|s| s.len()).sum();
    let saved = half + whole.len() + half + third;
    assert_eq!(PackedBatch::new(&sequences).tokens(), all - saved);
    each_as_alone(&model, &sequences);
}

fn each_as_alone<B: ModelOps>(model: &Llama<B>, sequences: &[&[u32]]) {
    let batch = PackedBatch::new(sequences);
    let found: Vec<f32> = model.logits(&batch).into_data().to_vec().unwrap();
    let vocab = found.len() / batch.tokens();
    for (ids, places) in sequences.iter().zip(&batch.places) {
        let alone = model.logits(&PackedBatch::new(&[ids]));
        let alone: Vec<f32> = alone.into_data().to_vec().unwrap();
        for (i, expected) in alone.chunks_exact(vocab).enumerate() {
            let at = places.at(i) * vocab;
            // Both sides are f32. By five kernel sets of numpy (AVX-512 to SSE2) this model's logits
            // in f32 are within 7.2e-6 of f64; twice that.
            assert_logits(&found[at..at + vocab], expected, 1.5e-5);
        }
    }
}

fn answers<B: ModelOps>(
    model: Llama<B>,
    config: &LlamaConfig,
    requests: Vec<Request>,
) -> Vec<Vec<Sample>> {
    let context = config.max_position_embeddings;
    let plan = CachePlan::new(config, DType::F32, 5, 2, context, 256, None).unwrap();
    let decoder = Arc::new(Decoder::new(model, config));
    answer_all(&mut Engine::new(decoder, plan, None), requests).unwrap()
}

fn greedy_tokens<B: ModelOps>(device: &B::Device) {
    let (config, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let params = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        max_new_tokens: 24,
        stop_ids: vec![],
        seed: 0,
        ..SamplingParams::default()
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

/// Log-probabilities of prompts, alone and behind what another had of them, are the reference's.
fn prompt_scores<B: ModelOps>(device: &B::Device) {
    let (config, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let context = config.max_position_embeddings;
    let plan = CachePlan::new(&config, DType::F32, 2, 1, context, 256, None).unwrap();
    let decoder = Arc::new(Decoder::new(model, &config));
    let mut engine = Engine::new(decoder, plan, None).keep_prefixes(1 << 24);
    for (ids, logits) in cases() {
        let half = ids[..ids.len().div_ceil(2)].to_vec();
        for prompt in [half, ids] {
            let params = SamplingParams {
                max_new_tokens: 0,
                ..SamplingParams::default()
            };
            let request = Request {
                prompt_logprobs: Some(5),
                ..Request::new("p".into(), prompt.clone(), 1, params)
            };
            let scores = scores_of(&mut engine, request);
            assert_eq!(scores.len(), prompt.len() - 1);
            for (at, (score, row)) in scores
                .iter()
                .zip(logits.chunks_exact(config.vocab_size))
                .enumerate()
            {
                let largest = row.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = row.iter().map(|&x| f64::from(x - largest).exp()).sum();
                let expected = |token: u32| f64::from(row[token as usize] - largest) - sum.ln();
                assert_eq!(score.token, prompt[at + 1]);
                let given = [(score.token, score.logprob)];
                for &(token, found) in given.iter().chain(&score.likeliest) {
                    let expected = expected(token);
                    // Both terms are within the bound on logits.
                    assert!(
                        (f64::from(found) - expected).abs() < 2e-4,
                        "{found}, not {expected}"
                    );
                }
                assert!(f64::from(score.likeliest[0].1) >= -sum.ln() - 2e-4);
            }
        }
    }
    assert!(engine.counts().cached > 0);
}

fn scores_of<B: ModelOps>(engine: &mut Engine<B>, request: Request) -> Vec<TokenScore> {
    engine.submit(request).unwrap();
    let mut found = Vec::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Prompt { scores, .. } = event {
                found = scores;
            }
        }
    }
    found
}

/// Draws on every device fall on the tokens that the plain model's logits give on the host.
fn sampled_tokens<B: ModelOps>(device: &B::Device) {
    let (config, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let plain = model.clone();
    let params = SamplingParams {
        temperature: 0.5,
        top_p: 0.8,
        top_k: 0,
        max_new_tokens: 3,
        stop_ids: vec![],
        seed: 4,
        ..SamplingParams::default()
    };
    let cases = cases();
    let request = |(i, (prompt, _)): (usize, &(Vec<u32>, Vec<f32>))| {
        Request::new(i.to_string(), prompt.clone(), 3, params.clone())
    };
    let requests = cases.iter().enumerate().map(request).collect();
    let found = answers(model, &config, requests);
    let (mut same, mut all) = (0, 0);
    for (i, samples) in found.iter().enumerate() {
        for (number, sample) in samples.iter().enumerate() {
            let mut draws = Draws::new(params.seed, &i.to_string(), number);
            let tokens = &sample.tokens;
            for at in 0..tokens.len() {
                let behind = [&cases[i].0[..], &tokens[..at]].concat();
                let logits = plain.logits(&PackedBatch::new(&[&behind]));
                let [rows, vocab] = logits.dims();
                let logits: Vec<f32> = logits.into_data().to_vec().unwrap();
                let logits = &logits[(rows - 1) * vocab..];
                let draw = draws.at(at);
                let sample = |top_p: f64, draw: f64| {
                    let params = SamplingParams {
                        top_p,
                        ..params.clone()
                    };
                    Sampler::default().sample(logits, &params, draw.clamp(0.0, 0.999_999))
                };
                let (expected, found) = (sample(params.top_p, draw), tokens[at] as usize);
                all += 1;
                same += usize::from(expected == found);
                // Logits of each side are within 1e-4 of the reference: at temperature 0.5 sums of
                // weights are within 4e-4 of each other, at the nucleus' edge too, and tokens that
                // are nearer may change places.
                let near = [0.0, -4e-4, 4e-4];
                let tie = (logits[expected] - logits[found]).abs() < 2e-4;
                let mut nudged = near
                    .iter()
                    .flat_map(|of_p| near.map(|by| sample(params.top_p + of_p, draw + by)));
                assert!(
                    tie || nudged.any(|token| token == found),
                    "{found}, not {expected}, at {draw}"
                );
            }
        }
    }
    assert!(all > 20 && same + 4 >= all, "{same} of {all}");
}

/// A sequence that fills the context beside short ones.
fn short_prompts_do_not_drag_a_long_one_past_the_context<B: ModelOps>(device: &B::Device) {
    let (config, model) = Llama::<B>::load(&path("llama"), DType::F32, device).unwrap();
    let context = config.max_position_embeddings;
    let params = SamplingParams {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        max_new_tokens: 40,
        stop_ids: vec![],
        seed: 0,
        ..SamplingParams::default()
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
    shared_prefixes_change_nothing,
    greedy_tokens,
    prompt_scores,
    sampled_tokens
);
