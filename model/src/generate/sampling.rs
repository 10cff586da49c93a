//! From logits to a token: temperature, top-k, top-p, and a draw that belongs to its place.

use std::collections::BTreeMap;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;
use sha2::{Digest, Sha256};

use crate::ops::{LANES, largest, vectorised};

/// How tokens are chosen. The order is vLLM's: tokens that must wait (`min_tokens`), `logit_bias`,
/// penalties; temperature, min-p, top-k, top-p. A greedy choice comes before the temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f64,
    /// Smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Only the likeliest so many tokens; 0 keeps all.
    pub top_k: usize,
    /// Only tokens that are at least this much as likely as the likeliest one; 0 keeps all.
    pub min_p: f64,
    /// Most tokens of one response.
    pub max_new_tokens: usize,
    /// Fewest tokens of one response: nothing ends it before, the length aside.
    pub min_tokens: usize,
    /// The model's ids that end a response.
    pub stop_ids: Vec<u32>,
    /// Whether `stop_ids` end nothing.
    pub ignore_eos: bool,
    /// Ids of the request that end its response, `ignore_eos` or not.
    pub stop_token_ids: Vec<u32>,
    /// What is added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Taken from the logits of tokens that are in the response.
    pub presence_penalty: f64,
    /// Taken from the logits of tokens as many times as they are in the response.
    pub frequency_penalty: f64,
    /// What divides the logits of tokens that are in the prompt or the response, where they are
    /// above 0, and multiplies them below; 1 changes nothing.
    pub repetition_penalty: f64,
    /// Seed of the random numbers; the same one gives the same responses.
    pub seed: u64,
}

/// The whole distribution, without a stop token or a length.
impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_new_tokens: usize::MAX,
            min_tokens: 0,
            stop_ids: Vec::new(),
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            logit_bias: Vec::new(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Whether logits are changed before a token is drawn of them.
    pub fn changes_logits(&self) -> bool {
        self.min_tokens > 0 || !self.logit_bias.is_empty() || self.looks_back()
    }

    /// Whether what was said before changes them.
    fn looks_back(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }

    /// Changes `logits` `[vocab]` for the token behind `prompt` and `response`. Ids that the model
    /// does not have change nothing.
    pub fn change(&self, logits: &mut [f32], prompt: &[u32], response: &[u32]) {
        let mut set = |token: u32, to: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = to(*logit);
            }
        };
        if response.len() < self.min_tokens {
            let stops = self.stop_ids.iter().chain(&self.stop_token_ids);
            stops.for_each(|&token| set(token, &|_| f32::NEG_INFINITY));
        }
        for &(token, bias) in &self.logit_bias {
            set(token, &|logit| logit + bias);
        }
        if !self.looks_back() {
            return;
        }
        let mut times: BTreeMap<u32, u32> = prompt.iter().map(|&token| (token, 0)).collect();
        for &token in response {
            *times.entry(token).or_default() += 1;
        }
        let repetition = self.repetition_penalty as f32;
        for (token, times) in times {
            let here = f64::from(u8::from(times > 0));
            let less = self.frequency_penalty * f64::from(times) + self.presence_penalty * here;
            set(token, &|logit| {
                let scaled = match logit > 0.0 {
                    true => logit / repetition,
                    false => logit * repetition,
                };
                scaled - less as f32
            });
        }
    }

    /// Whether `token` ends a response.
    pub fn ends(&self, token: u32) -> bool {
        !self.ignore_eos && self.stop_ids.contains(&token) || self.stop_token_ids.contains(&token)
    }
}

/// The random numbers of one response: a function of (seed, prompt id, sample, position) alone.
pub struct Draws {
    generator: ChaCha12Rng,
}

impl Draws {
    /// The draws of sample number `sample` of prompt `id`.
    pub fn new(seed: u64, id: &str, sample: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"sppo draw v1\0");
        hash.update(seed.to_le_bytes());
        hash.update((sample as u64).to_le_bytes());
        hash.update(id.as_bytes());
        Self {
            generator: ChaCha12Rng::from_seed(hash.finalize().into()),
        }
    }

    /// A number in `[0, 1)` for the token at `position` of the response.
    pub fn at(&mut self, position: usize) -> f64 {
        self.generator.set_word_pos(position as u128 * 2);
        (self.generator.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The index of the largest logit, the first on ties.
pub fn argmax(logits: &[f32]) -> usize {
    let largest = largest(logits);
    logits.iter().position(|x| *x == largest).unwrap_or(0)
}

/// eˣ for x ≤ 0, within 2 units of the last place; plain arithmetic, so that a loop over it is
/// vectorised and every machine gives the same bits. Below e⁻⁸⁷ it is 0.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // 1.5 · 2²³: adding it rounds to a whole number and leaves that in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.max(-87.0);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    // Taylor's series; |r| ≤ ln 2 / 2, so what is left out is below 1e-8.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -87.0 { 0.0 } else { p * power }
}

/// Draws tokens; keeps its working memory from one draw to the next.
#[derive(Default)]
pub struct Sampler {
    weights: Vec<f32>,
    buckets: Buckets,
}

impl Sampler {
    /// The token at `draw` in `[0, 1)` of the distribution that `params` makes of `logits`
    /// `[vocab]`: the candidates, likeliest first and ties by id, share the interval by their
    /// probabilities.
    pub fn sample(&mut self, logits: &[f32], params: &SamplingParams, draw: f64) -> usize {
        if params.temperature == 0.0 {
            return argmax(logits);
        }
        let largest = largest(logits);
        let scale = (1.0 / params.temperature) as f32;
        self.weights.resize(logits.len(), 0.0);
        exponentials(&mut self.weights, logits, largest, scale);
        if params.min_p > 0.0 {
            let least = params.min_p as f32;
            let unlikely = self.weights.iter_mut().filter(|weight| **weight < least);
            unlikely.for_each(|weight| *weight = 0.0);
        }
        self.buckets.count(&self.weights);
        let mut kept = self.buckets.total();
        if params.top_k > 0 && params.top_k < logits.len() {
            let last = Bound::Rank(params.top_k);
            kept = self.buckets.reach(&self.weights, last).sum;
        }
        if params.top_p < 1.0 {
            let last = Bound::Sum(params.top_p * kept);
            kept = kept.min(self.buckets.reach(&self.weights, last).sum);
        }
        let found = self.buckets.reach(&self.weights, Bound::Above(draw * kept));
        found.token
    }
}

vectorised! {
    /// Of logits below the largest, times `scale`.
    fn exponentials(weights: &mut [f32], logits: &[f32], largest: f32, scale: f32) {
        for (weight, x) in weights.iter_mut().zip(logits) {
            *weight = exp((x - largest) * scale);
        }
    }
}

/// Where a walk from the likeliest token down ends.
#[derive(Clone, Copy)]
enum Bound {
    /// At the n-th token.
    Rank(usize),
    /// Where the sum of weights is this or more.
    Sum(f64),
    /// Where the sum of weights is more than this.
    Above(f64),
}

/// The token where a walk ended and the sum of weights up to it.
struct Reached {
    token: usize,
    sum: f64,
}

vectorised! {
    /// The places of a bucket's weights.
    fn inside_of(bucket: usize, weights: &[f32], inside: &mut Vec<u32>) {
        for (part, weights) in (0u32..).step_by(LANES).zip(weights.chunks(LANES)) {
            // Most parts have none, which is told by one comparison of vectors.
            let any = |any, weight: &f32| any | (Buckets::of(*weight) == bucket);
            if weights.iter().fold(false, any) {
                let places = (part..).zip(weights);
                let found = places.filter(|(_, weight)| Buckets::of(**weight) == bucket);
                inside.extend(found.map(|(place, _)| place));
            }
        }
    }
}

/// Weights in `[0, 1]` by size: a walk in descending order looks at one bucket's tokens only,
/// where sorting would look at all.
#[derive(Default)]
struct Buckets {
    sums: Vec<f64>,
    counts: Vec<u32>,
    /// The same of every fourth weight: one sum would wait for itself where many weights are alike.
    parts: Vec<([f64; 4], [u32; 4])>,
    inside: Vec<u32>,
}

impl Buckets {
    /// Bits of a weight that do not matter for its bucket: 6 of the mantissa do.
    const SHIFT: u32 = 17;
    /// Weights below 2⁻³² share the lowest bucket.
    const LOWEST: u32 = (127 - 32) << 6;
    const COUNT: usize = (32 << 6) + 1;

    #[inline(always)]
    fn of(weight: f32) -> usize {
        (weight.to_bits() >> Self::SHIFT).saturating_sub(Self::LOWEST) as usize
    }

    fn count(&mut self, weights: &[f32]) {
        self.parts.clear();
        self.parts.resize(Self::COUNT, Default::default());
        for weights in weights.chunks(4) {
            for (place, &weight) in weights.iter().enumerate() {
                let (sums, counts) = &mut self.parts[Self::of(weight)];
                sums[place] += f64::from(weight);
                counts[place] += 1;
            }
        }
        self.sums.clear();
        self.counts.clear();
        for (sums, counts) in &self.parts {
            self.sums.push(sums.iter().sum());
            self.counts.push(counts.iter().sum());
        }
    }

    fn total(&self) -> f64 {
        self.sums.iter().rev().sum()
    }

    /// Walks down to `bound`, or to the last token where rounding left a sliver behind it.
    fn reach(&mut self, weights: &[f32], bound: Bound) -> Reached {
        let over = |sum: f64, rank: usize| match bound {
            Bound::Rank(n) => rank >= n,
            Bound::Sum(least) => sum >= least,
            Bound::Above(least) => sum > least,
        };
        let (mut sum, mut rank, mut lowest) = (0.0, 0, (Self::COUNT, 0.0, 0));
        for bucket in (0..Self::COUNT).rev() {
            if self.counts[bucket] == 0 {
                continue;
            }
            let after = (sum + self.sums[bucket], rank + self.counts[bucket] as usize);
            lowest = (bucket, sum, rank);
            if over(after.0, after.1) {
                break;
            }
            (sum, rank) = after;
        }
        let (bucket, mut sum, mut rank) = lowest;
        self.inside.clear();
        inside_of(bucket, weights, &mut self.inside);
        let weight = |i: u32| weights[i as usize];
        self.inside
            .sort_unstable_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
        let mut token = 0;
        for &i in &self.inside {
            token = i as usize;
            sum += weight(i) as f64;
            rank += 1;
            if over(sum, rank) {
                break;
            }
        }
        Reached { token, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    fn params(temperature: f64, top_p: f64, top_k: usize) -> SamplingParams {
        SamplingParams {
            temperature,
            top_p,
            top_k,
            max_new_tokens: 1,
            stop_ids: vec![],
            seed: 0,
            ..SamplingParams::default()
        }
    }

    /// The definition, by sorting, in f64: candidates with their probabilities, likeliest first.
    fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<(usize, f64)> {
        let weight = |x: f32| ((x - logits[argmax(logits)]) as f64 / params.temperature).exp();
        let mut all: Vec<(usize, f64)> = logits.iter().map(|&x| weight(x)).enumerate().collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.retain(|c| c.1 >= params.min_p);
        if params.top_k > 0 {
            all.truncate(params.top_k);
        }
        let total: f64 = all.iter().map(|c| c.1).sum();
        let mut sum = 0.0;
        let last = all.iter().position(|c| {
            sum += c.1;
            sum >= params.top_p * total
        });
        all.truncate(last.map_or(all.len(), |i| i + 1));
        let kept: f64 = all.iter().map(|c| c.1).sum();
        all.into_iter().map(|(i, w)| (i, w / kept)).collect()
    }

    /// Whether a nucleus ends so near to a token's weight that rounding decides which is its last.
    fn ends_at_an_edge(logits: &[f32], params: &SamplingParams) -> bool {
        let whole = SamplingParams {
            top_p: 1.0,
            ..params.clone()
        };
        let mut sum = 0.0;
        distribution(logits, &whole).into_iter().any(|(_, p)| {
            sum += p;
            (sum - params.top_p).abs() < 1e-6
        })
    }

    /// Every candidate gets its share of the interval, to 1e-6, and nothing else is drawn.
    fn assert_exact(logits: &[f32], params: &SamplingParams) {
        let mut sampler = Sampler::default();
        let mut below = 0.0;
        for (token, probability) in distribution(logits, params) {
            for (place, edge) in [(0.0, 2e-6), (1.0, -2e-6)] {
                if probability > 1e-5 {
                    let draw = below + place * probability + edge;
                    let found = sampler.sample(logits, params, draw);
                    // In f32 two weights may tie that differ in f64; then the id decides.
                    let apart = (logits[found] - logits[token]).abs();
                    assert!(
                        apart < 1e-6 * params.temperature as f32,
                        "{params:?}: {found} instead of {token} at {draw}"
                    );
                }
            }
            below += probability;
        }
    }

    proptest! {
        #[test]
        fn the_distribution_is_the_defined_one(
            values in prop_oneof![Just(1), Just(2), Just(50), Just(3000)]
                .prop_flat_map(|vocab| vec(-0.5f32..0.5, vocab)),
            spread in select(vec![0.0, 0.1, 1.0, 5.0, 30.0]),
            temperature in 0.3..2.0f64,
            (top_p, top_k) in select(vec![(1.0, 0), (0.9, 0), (0.5, 10), (1.0, 3), (0.01, 0)]),
            min_p in select(vec![0.0, 0.0, 0.05, 0.6, 1.0]),
        ) {
            // A flat nucleus ends where rounding says.
            prop_assume!(spread > 0.0 || top_p == 1.0);
            let logits: Vec<f32> = values.iter().map(|x| x * spread).collect();
            // Where f32 and f64 see a token on other sides of the edge, both are right.
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |x: f32| ((x - largest) as f64 / temperature).exp();
            prop_assume!(min_p == 0.0 || min_p == 1.0 || logits.iter().all(|&x| (weight(x) / min_p - 1.0).abs() > 1e-5));
            let params = SamplingParams { min_p, ..params(temperature, top_p, top_k) };
            prop_assume!(top_p == 1.0 || !ends_at_an_edge(&logits, &params));
            assert_exact(&logits, &params);
        }
    }

    #[test]
    fn exponentials_are_exact_to_the_last_places() {
        for i in 0..=8_700 {
            let x = -(i as f32) / 100.0;
            let relative = exp(x) as f64 / (x as f64).exp() - 1.0;
            assert!(relative.abs() < 2.5e-7, "{x}: {relative}");
        }
        assert_eq!(
            (exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
    }

    /// What vLLM does, in its order: tokens that must wait, bias, repetition, frequency, presence.
    #[test]
    fn logits_are_changed_as_vllm_does() {
        let params = SamplingParams {
            stop_ids: vec![0],
            stop_token_ids: vec![1, 99],
            min_tokens: 3,
            logit_bias: vec![(2, 1.5), (3, -100.0), (77, 1.0)],
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 2.0,
            ..SamplingParams::default()
        };
        assert!(params.changes_logits());
        let logits = [1.0, 1.0, 1.0, 1.0, 4.0, -4.0, 4.0, -4.0];
        let mut found = logits;
        // 2 and 5 are in the prompt, 6 once and 7 twice in the response.
        params.change(&mut found, &[2, 5, 2, 500], &[6, 7, 7]);
        let waited = [1.0, 1.0];
        let expected = [1.25, -99.0, 4.0, -8.0, 2.0 - 0.75, -8.0 - 1.0];
        assert_eq!(found, *[&waited[..], &expected[..]].concat());
        let mut found = logits;
        params.change(&mut found, &[], &[6, 7]);
        assert_eq!(found[..2], [f32::NEG_INFINITY; 2]);
        assert!(!SamplingParams::default().changes_logits());
    }

    #[test]
    fn end_tokens_can_be_ignored_and_those_of_the_request_not() {
        let mut params = SamplingParams {
            stop_ids: vec![1],
            stop_token_ids: vec![2],
            ..SamplingParams::default()
        };
        assert!(params.ends(1) && params.ends(2) && !params.ends(3));
        params.ignore_eos = true;
        assert!(!params.ends(1) && params.ends(2));
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let logits = [0.0, (2.0f32).ln(), (5.0f32).ln()];
        let last = |p, k| Sampler::default().sample(&logits, &params(1.0, p, k), 0.999_999);
        assert_eq!(last(1.0, 0), 0);
        assert_eq!(last(0.6, 0), 2);
        assert_eq!(last(0.7, 0), 1);
        assert_eq!(last(0.7, 1), 2);
    }

    /// Outputs begun by one version are finished by the next.
    #[test]
    fn draws_are_those_of_version_0_1() {
        let mut draws = Draws::new(42, "p-1", 3);
        let found = [0, 1, 5, 100_000].map(|position| draws.at(position));
        assert_eq!(
            found,
            [
                0.40959680884829797,
                0.14009303916477944,
                0.603780146946113,
                0.9450506402250013
            ]
        );
    }

    #[test]
    fn draws_belong_to_their_place() {
        let mut a = Draws::new(1, "p", 0);
        let (first, fifth) = (a.at(0), a.at(5));
        let mut b = Draws::new(1, "p", 0);
        assert_eq!(b.at(5), fifth);
        assert_eq!(b.at(0), first);
        assert_ne!(Draws::new(1, "p", 1).at(0), first);
        assert_ne!(Draws::new(2, "p", 0).at(0), first);
        assert_ne!(Draws::new(1, "q", 0).at(0), first);
    }

    #[test]
    fn zero_temperature_takes_the_first_maximum() {
        assert_eq!(
            Sampler::default().sample(&[1.0, 3.0, 3.0], &params(0.0, 1.0, 0), 0.99),
            1
        );
    }
}
