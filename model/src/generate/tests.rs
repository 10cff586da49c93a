//! The engine against itself: whatever comes when, every response is what it is alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::DType;
use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::llama::slot_cache::Writes;
use crate::llama::{Decoder, Llama, LlamaConfig};
use crate::ops::ModelOps;
use crate::packed_batch::PackedBatch;
use crate::tokenizer::Tokenizer;

type Flex = burn_flex::Flex<f32, i32>;
type NdArray = burn_ndarray::NdArray<f32, i64, i8>;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden/llama")
}

fn decoder<B: ModelOps>() -> Arc<Decoder<B>> {
    let device = B::Device::default();
    let (config, model) = Llama::<B>::load(&golden(), DType::F32, &device).unwrap();
    Arc::new(Decoder::new(model, &config))
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_dir(&golden()).unwrap())
}

fn plan(config: &LlamaConfig, slots: usize, workers: usize) -> CachePlan {
    let context = config.max_position_embeddings;
    CachePlan::new(config, DType::F32, slots, workers, context, None).unwrap()
}

fn params(max_new_tokens: usize, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: 1.2,
        top_p: 0.95,
        top_k: 0,
        max_new_tokens,
        stop_ids: vec![7, 30],
        seed,
    }
}

/// Requests of many lengths and kinds; some use `a` or `e` as stop strings.
fn requests(generator: &mut ChaCha12Rng, count: usize) -> Vec<Request> {
    let one = |number: usize| {
        let length = match generator.random_range(0..8) {
            0 => generator.random_range(60..70),
            1 => generator.random_range(1..3),
            _ => generator.random_range(3..30),
        };
        let prompt = (0..length)
            .map(|_| generator.random_range(0..400))
            .collect();
        let mut params = params(generator.random_range(1..40), generator.random_range(0..3));
        if generator.random_bool(0.2) {
            params.temperature = 0.0;
        }
        params.top_k = [0, 0, 5][generator.random_range(0..3)];
        let samples = generator.random_range(1..5);
        Request {
            stop: match generator.random_bool(0.3) {
                true => vec!["a".into(), "the".into()],
                false => vec![],
            },
            logprobs: true,
            stream: generator.random_bool(0.3),
            ..Request::new(format!("p{number}"), prompt, samples, params)
        }
    };
    (0..count).map(one).collect()
}

/// Each request alone in an engine of its own.
fn one_by_one<B: ModelOps>(decoder: &Arc<Decoder<B>>, requests: &[Request]) -> Vec<Vec<Sample>> {
    let alone = |request: &Request| {
        let plan = plan(&decoder.config, 1, 1);
        let mut engine = Engine::new(decoder.clone(), plan, Some(tokenizer()));
        answer_all(&mut engine, vec![request.clone()])
            .unwrap()
            .remove(0)
    };
    requests.iter().map(alone).collect()
}

/// To the last bit where caches are laid out for it; else log-probabilities may be rounded.
fn assert_same(found: &Sample, expected: &Sample, writes: Writes) {
    let mut found = found.clone();
    if writes == Writes::Additions {
        for (a, b) in found.logprobs.iter_mut().zip(&expected.logprobs) {
            assert!((*a - b).abs() < 1e-5, "{a} is not {b}");
            *a = *b;
        }
    }
    assert_eq!(&found, expected);
}

/// Requests arrive and are cancelled at random moments; what is finished must be `expected`.
fn any_interleaving<B: ModelOps>(
    decoder: &Arc<Decoder<B>>,
    requests: &[Request],
    expected: &[Vec<Sample>],
    seed: u64,
    writes: Writes,
) {
    let mut random = ChaCha12Rng::seed_from_u64(seed);
    let (slots, workers) = (random.random_range(1..9), random.random_range(1..4));
    let plan = plan(&decoder.config, slots, workers);
    let mut engine = Engine::with_writes(decoder.clone(), plan, Some(tokenizer()), writes);
    let mut order: Vec<usize> = (0..requests.len()).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, random.random_range(0..=i));
    }
    let mut open = BTreeMap::new();
    let mut streamed: BTreeMap<SampleId, String> = BTreeMap::new();
    let mut finished = 0;
    let mut cancelled = 0;
    while !(order.is_empty() && engine.is_idle()) {
        while !order.is_empty() && random.random_bool(0.4) {
            let number = order.pop().unwrap();
            open.insert(engine.submit(requests[number].clone()).unwrap(), number);
        }
        if random.random_bool(0.05)
            && let Some(&id) = open.keys().nth(random.random_range(0..open.len().max(1)))
        {
            engine.cancel(id);
            cancelled += open.remove(&id).map_or(0, |n| requests[n].samples);
        }
        for event in engine.step().unwrap() {
            match event {
                Event::Token { of, text, .. } => {
                    assert!(
                        open.contains_key(&of.request),
                        "heard of a cancelled request"
                    );
                    *streamed.entry(of).or_default() += &text;
                }
                Event::Finished { of, text, sample } => {
                    let number = open[&of.request];
                    assert_same(&sample, &expected[number][of.sample], writes);
                    if let Some(whole) = &sample.text {
                        let heard = streamed.remove(&of).unwrap_or_default() + &text;
                        assert_eq!(&heard, whole);
                    }
                    finished += 1;
                }
            }
        }
    }
    let all: usize = requests.iter().map(|r| r.samples).sum();
    assert!(
        finished <= all && finished + cancelled >= all,
        "{finished} + {cancelled} of {all}"
    );
}

fn interleavings<B: ModelOps>(writes: Writes, rounds: u64) {
    let decoder = decoder::<B>();
    let requests = requests(&mut ChaCha12Rng::seed_from_u64(3), 14);
    let expected = one_by_one(&decoder, &requests);
    let ends = expected.iter().flatten().map(|s| s.finish);
    assert!(
        ends.clone().any(|f| f == FinishReason::Stop)
            && ends.clone().any(|f| f == FinishReason::Length)
    );
    for seed in 0..rounds {
        any_interleaving(&decoder, &requests, &expected, seed, writes);
    }
}

#[test]
fn any_interleaving_equals_one_by_one_on_flex() {
    interleavings::<Flex>(Writes::Copies, 8);
}

#[test]
fn any_interleaving_equals_one_by_one_on_ndarray() {
    interleavings::<NdArray>(Writes::Copies, 4);
}

#[test]
fn caches_written_by_additions_give_the_same() {
    interleavings::<Flex>(Writes::Additions, 3);
}

/// Log-probabilities are those of the plain model, whatever the sampling.
#[test]
fn log_probabilities_are_the_models() {
    let decoder = decoder::<Flex>();
    let device = Default::default();
    let (_, model) = Llama::<Flex>::load(&golden(), DType::F32, &device).unwrap();
    let requests = requests(&mut ChaCha12Rng::seed_from_u64(9), 4);
    for (request, samples) in requests.iter().zip(one_by_one(&decoder, &requests)) {
        for sample in samples {
            let all: Vec<u32> = request
                .prompt
                .iter()
                .chain(&sample.tokens)
                .copied()
                .collect();
            let logits = model.logits(&PackedBatch::new(&[&all]));
            let vocab = logits.dims()[1];
            let logits: Vec<f32> = logits.into_data().to_vec().unwrap();
            assert_eq!(sample.logprobs.len(), sample.tokens.len());
            for (i, (&token, &found)) in sample.tokens.iter().zip(&sample.logprobs).enumerate() {
                let row = request.prompt.len() + i - 1;
                let row = &logits[row * vocab..(row + 1) * vocab];
                let expected = sampling::log_probability(row, token as usize);
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}

/// Lengths around the places where prompts are cut into chunks and widths are rounded.
#[test]
fn long_prompts_agree_with_the_plain_model() {
    let device = Default::default();
    let (mut config, model) = Llama::<Flex>::load(&golden(), DType::F32, &device).unwrap();
    // No weight depends on it, and 520 is where the cache's width is rounded a second time.
    config.max_position_embeddings = 1024;
    let decoder = Arc::new(Decoder::new(model.clone(), &config));
    for length in [63, 64, 65, 255, 256, 257, 300, 520] {
        let prompt: Vec<u32> = (0..length as u32).map(|t| t * 7 % 400).collect();
        let mut greedy = params(3, 0);
        greedy.temperature = 0.0;
        greedy.stop_ids.clear();
        let request = Request::new("p".into(), prompt.clone(), 1, greedy);
        let found = one_by_one(&decoder, &[request]).remove(0).remove(0);
        let mut all = prompt;
        for token in found.tokens {
            let logits = model.logits(&PackedBatch::new(&[&all]));
            let [rows, vocab] = logits.dims();
            let logits: Vec<f32> = logits.into_data().to_vec().unwrap();
            let expected = sampling::argmax(&logits[(rows - 1) * vocab..]);
            assert_eq!(token as usize, expected, "behind {} tokens", all.len());
            all.push(token);
        }
    }
}

#[test]
fn a_budget_bounds_the_slots_and_refuses_what_cannot_fit() {
    let decoder = decoder::<Flex>();
    let config = &decoder.config;
    let all = CachePlan::new(config, DType::F32, 8, 2, 100, None).unwrap();
    assert_eq!((all.slots, all.workers), (8, 2));
    let some = CachePlan::new(config, DType::F32, 8, 2, 100, Some(all.bytes - 1)).unwrap();
    assert!(some.slots < 8 && some.bytes < all.bytes);
    let error = CachePlan::new(config, DType::F32, 8, 2, 100, Some(1)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("one sequence of 100 tokens needs") && text.contains("budget is 0 MiB"),
        "{text}"
    );
}

#[test]
fn requests_that_cannot_be_answered() {
    let decoder = decoder::<Flex>();
    let plan = CachePlan::new(&decoder.config, DType::F32, 2, 1, 50, None).unwrap();
    let mut engine = Engine::new(decoder.clone(), plan, None);
    let ok = Request::new("p".into(), vec![1, 2], 1, params(4, 0));
    let mut refused = |change: &dyn Fn(&mut Request), message: &str| {
        let mut request = ok.clone();
        change(&mut request);
        let text = engine.submit(request).unwrap_err().to_string();
        assert!(text.contains(message), "{text}");
    };
    refused(&|r| r.prompt.clear(), "prompt p is empty");
    refused(
        &|r| r.prompt = vec![1; 10_000],
        "leaves no room in the model's context",
    );
    refused(&|r| r.prompt = vec![9999], "holds token 9999");
    refused(
        &|r| r.params.max_new_tokens = 60,
        "needs 62 tokens of cache with its response, but a slot holds 50",
    );
    refused(&|r| r.stop = vec!["x".into()], "need the model's tokenizer");
    let mut engine = Engine::new(decoder, plan, Some(tokenizer()));
    let mut empty = ok.clone();
    empty.stop = vec![String::new()];
    assert!(
        engine
            .submit(empty)
            .unwrap_err()
            .to_string()
            .contains("empty stop string")
    );
    let mut nothing = ok;
    nothing.params.max_new_tokens = 0;
    let found = answer_all(&mut engine, vec![nothing]).unwrap();
    assert!(found[0][0].tokens.is_empty());
}
