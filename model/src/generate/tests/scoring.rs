//! Log-probabilities of prompts and of drawn tokens, and what prompts share.

use std::collections::BTreeSet;

use rand::rngs::ChaCha12Rng;
use rand::{RngExt, SeedableRng};

use super::*;

/// ln p of every token of the vocabulary behind each token, by the plain model in f64.
fn plain(prompt: &[u32]) -> Vec<Vec<f64>> {
    let device = Default::default();
    let (_, model) = Llama::<Flex>::load(&golden(), DType::F32, &device).unwrap();
    let logits = model.logits(&PackedBatch::new(&[prompt]));
    let vocab = logits.dims()[1];
    let logits: Vec<f32> = logits.into_data().to_vec().unwrap();
    let row = |row: &[f32]| {
        let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        row.iter().map(|x| x - sum.ln()).collect()
    };
    logits.chunks_exact(vocab).map(row).collect()
}

fn assert_score(found: &TokenScore, token: u32, likeliest: usize, expected: &[f64]) {
    assert_eq!(found.token, token);
    let gap = |found: f32, token: u32| (f64::from(found) - expected[token as usize]).abs();
    assert!(gap(found.logprob, token) < 1e-4);
    assert_eq!(found.likeliest.len(), likeliest);
    assert!(found.likeliest.is_sorted_by(|a, b| a.1 >= b.1));
    let mut best: Vec<f64> = expected.to_vec();
    best.sort_by(|a, b| b.total_cmp(a));
    for (&(token, logprob), best) in found.likeliest.iter().zip(best) {
        assert!(gap(logprob, token) < 1e-4 && (f64::from(logprob) - best).abs() < 1e-4);
    }
    let among = found.likeliest.iter().find(|(id, _)| *id == token);
    assert!(among.is_none_or(|(_, logprob)| logprob.to_bits() == found.logprob.to_bits()));
}

fn scoring(prompt: Vec<u32>, likeliest: usize, new: usize) -> Request {
    Request {
        likeliest,
        prompt_logprobs: Some(likeliest),
        ..Request::new("p".into(), prompt, 1, params(new, 0))
    }
}

/// All that is heard of the only request of an engine: prompt scores, cached tokens, tokens, end.
struct Heard {
    scores: Vec<TokenScore>,
    cached: usize,
    tokens: Vec<TokenScore>,
    sample: Sample,
}

fn hear<B: ModelOps>(engine: &mut Engine<B>, requests: &[Request]) -> Vec<Heard> {
    let numbers: BTreeMap<RequestId, usize> = requests
        .iter()
        .enumerate()
        .map(|(number, request)| (engine.submit(request.clone()).unwrap(), number))
        .collect();
    let (mut prompts, mut tokens) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
    let mut heard = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let number = numbers[&event.request()];
            match event {
                Event::Prompt { cached, scores, .. } => {
                    assert!(prompts.insert(number, (cached, scores)).is_none());
                }
                Event::Token { token, score, .. } => {
                    assert!(prompts.contains_key(&number), "a token before its prompt");
                    let score = score.unwrap();
                    assert_eq!(score.token, token);
                    tokens.entry(number).or_default().push(score);
                }
                Event::Finished { sample, .. } => {
                    let (cached, scores) = prompts.remove(&number).unwrap();
                    let tokens = tokens.remove(&number).unwrap_or_default();
                    heard.insert(
                        number,
                        Heard {
                            scores,
                            cached,
                            tokens,
                            sample,
                        },
                    );
                }
                Event::Failed { error, .. } => panic!("{error}"),
            }
        }
    }
    heard.into_values().collect()
}

fn scores_are_the_plain_models<B: ModelOps>(writes: Writes) {
    let decoder = decoder::<B>();
    for (length, likeliest, new) in [(1, 1, 1), (2, 0, 0), (40, 20, 1), (300, 1, 3), (512, 5, 0)] {
        let prompt: Vec<u32> = (0..length).map(|i| i * 31 % 400).collect();
        let mut engine =
            Engine::with_writes(decoder.clone(), plan(&decoder.config, 2, 1), None, writes);
        let request = scoring(prompt.clone(), likeliest, new);
        let heard = hear(&mut engine, &[request]).remove(0);
        assert_eq!((heard.sample.tokens.len(), heard.tokens.len()), (new, new));
        let all = [&prompt[..], &heard.sample.tokens].concat();
        let scored: Vec<&TokenScore> = heard.scores.iter().chain(&heard.tokens).collect();
        assert_eq!(scored.len(), all.len() - 1);
        let expected = plain(&all);
        for (i, score) in scored.into_iter().enumerate() {
            assert_score(score, all[i + 1], likeliest, &expected[i]);
        }
    }
}

#[test]
fn scores_of_prompts_are_the_plain_models() {
    scores_are_the_plain_models::<Flex>(Writes::Copies);
    scores_are_the_plain_models::<NdArray>(Writes::Copies);
    scores_are_the_plain_models::<Flex>(Writes::Additions);
}

/// Prompts that begin alike in all ways, whole repetitions among them.
fn alike(generator: &mut ChaCha12Rng) -> Vec<Request> {
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    for _ in 0..30 {
        let begin = match prompts.len() {
            0 => Vec::new(),
            all => {
                let other = &prompts[generator.random_range(0..all)];
                let shared = generator.random_range(0..=other.len());
                other[..shared].to_vec()
            }
        };
        let more = generator.random_range(0..120);
        let more = (0..more).map(|_| generator.random_range(0..400));
        let mut prompt: Vec<u32> = begin.into_iter().chain(more).take(490).collect();
        prompt.resize(prompt.len().max(1), 3);
        prompts.push(prompt);
    }
    let request = |prompt: Vec<u32>| {
        let likeliest = generator.random_range(0..4);
        let mut request = scoring(prompt, likeliest, generator.random_range(0..5));
        request.logprobs = true;
        if generator.random_range(0..3) == 0 {
            request.prompt_logprobs = None;
            request.params.max_new_tokens += 1;
        }
        request
    };
    prompts.into_iter().map(request).collect()
}

/// Shared beginnings change nothing, to the bit, whatever the room for them.
fn sharing_changes_nothing<B: ModelOps>() {
    let decoder = decoder::<B>();
    let mut generator = ChaCha12Rng::seed_from_u64(7);
    for (slots, workers, pass, room) in [
        (1, 1, 256, 1 << 30),
        (4, 2, 64, 1 << 30),
        (8, 1, 1024, 1 << 30),
        (3, 1, 256, 300_000),
    ] {
        let requests = alike(&mut generator);
        let one = |request: &Request| {
            let mut engine = Engine::new(decoder.clone(), plan(&decoder.config, 1, 1), None);
            hear(&mut engine, std::slice::from_ref(request)).remove(0)
        };
        let expected: Vec<Heard> = requests.iter().map(one).collect();
        let mut plan = plan(&decoder.config, slots, workers);
        plan.pass = pass;
        let mut engine = Engine::new(decoder.clone(), plan, None).keep_prefixes(room);
        let found = hear(&mut engine, &requests);
        let mut cached = 0;
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.scores, expected.scores);
            assert_eq!(found.tokens, expected.tokens);
            assert_eq!(found.sample, expected.sample);
            cached += found.cached as u64;
        }
        let counts = engine.counts();
        let all: usize = requests.iter().map(|request| request.prompt.len()).sum();
        assert_eq!(counts.computed + counts.cached, all as u64);
        assert_eq!(counts.cached, cached);
        assert!(cached > 0 && counts.running == 0);
        assert!(counts.cache_used <= counts.cache_bytes);
    }
}

#[test]
fn what_prompts_share_changes_nothing() {
    sharing_changes_nothing::<Flex>();
    sharing_changes_nothing::<NdArray>();
}

/// The tokens that 200 short answers to one context take, against those that differ.
#[test]
fn a_context_is_computed_once() {
    let decoder = decoder::<Flex>();
    let context: Vec<u32> = (0..400).map(|i| i * 7 % 391).collect();
    // Half of them repeat others, and begin as others do.
    let answer = |i: u32| vec![i % 7, i % 5, i % 100, 9];
    let requests: Vec<Request> = (0..200)
        .map(|i| scoring([&context[..], &answer(i)].concat(), 1, 1))
        .collect();
    let prompts = requests.iter().map(|request| &request.prompt);
    let prefixes = prompts.flat_map(|prompt| (1..=prompt.len()).map(|end| &prompt[..end]));
    let distinct = prefixes.collect::<BTreeSet<_>>().len() as u64;
    for workers in [1, 2] {
        let plan = plan(&decoder.config, 8, workers);
        let mut engine = Engine::new(decoder.clone(), plan, None).keep_prefixes(1 << 24);
        hear(&mut engine, &requests);
        let computed = engine.counts().computed;
        // Workers that begin at the same time compute the context each.
        let most = distinct + (workers as u64 - 1) * 410;
        assert!(computed <= most, "{computed} for {distinct}");
    }
}
