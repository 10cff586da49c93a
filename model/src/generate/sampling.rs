//! From logits to a token: temperature, top-k, top-p, and a draw that belongs to its place.

use rand::RngCore;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use sha2::{Digest, Sha256};

/// How tokens are chosen; the order is transformers': temperature, top-k, top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f64,
    /// Smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Only the likeliest so many tokens; 0 keeps all.
    pub top_k: usize,
    /// Most tokens of one response.
    pub max_new_tokens: usize,
    /// Ids that end a response.
    pub stop_ids: Vec<u32>,
    pub seed: u64,
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
    let mut best = 0;
    for (i, &value) in logits.iter().enumerate() {
        if value > logits[best] {
            best = i;
        }
    }
    best
}

/// The token at `draw` of the distribution that `params` makes of `logits` `[vocab]`.
pub fn sample(logits: &[f32], params: &SamplingParams, draw: f64) -> usize {
    if params.temperature == 0.0 {
        return argmax(logits);
    }
    let candidates = distribution(logits, params);
    let mut rest = draw;
    for &(token, probability) in &candidates {
        rest -= probability;
        if rest < 0.0 {
            return token;
        }
    }
    // Rounding may leave a sliver behind the last candidate.
    candidates.last().map_or(0, |c| c.0)
}

/// Tokens that may be drawn with their probabilities, likeliest first, ties by id.
pub fn distribution(logits: &[f32], params: &SamplingParams) -> Vec<(usize, f64)> {
    let largest = logits[argmax(logits)] as f64;
    let weights: Vec<f64> = logits
        .iter()
        .map(|&x| ((x as f64 - largest) / params.temperature).exp())
        .collect();
    let keep = match params.top_k {
        0 => weights.len(),
        k => k.min(weights.len()),
    };
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let descending = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    // A few hundred candidates nearly always hold the nucleus; sort all only when they do not.
    let mut head = keep.min(256);
    loop {
        if head < order.len() {
            order.select_nth_unstable_by(head, descending);
        }
        order[..head].sort_unstable_by(descending);
        let total: f64 = match keep < weights.len() {
            // Top-k renormalises before top-p cuts.
            true if head == keep => order[..keep].iter().map(|&i| weights[i]).sum(),
            true => f64::INFINITY,
            false => weights.iter().sum(),
        };
        if let Some(cut) = nucleus(&order[..head], &weights, params.top_p * total)
            .or((head == keep).then_some(head))
        {
            let mass: f64 = order[..cut].iter().map(|&i| weights[i]).sum();
            return order[..cut]
                .iter()
                .map(|&i| (i, weights[i] / mass))
                .collect();
        }
        head = keep;
    }
}

/// How many of the sorted candidates reach `mass`, if they do; never with top-p off.
fn nucleus(order: &[usize], weights: &[f64], mass: f64) -> Option<usize> {
    let mut sum = 0.0;
    order
        .iter()
        .position(|&i| {
            sum += weights[i];
            sum >= mass
        })
        .map(|last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f64, top_p: f64, top_k: usize) -> SamplingParams {
        SamplingParams {
            temperature,
            top_p,
            top_k,
            max_new_tokens: 1,
            stop_ids: vec![],
            seed: 0,
        }
    }

    fn ids(candidates: &[(usize, f64)]) -> Vec<usize> {
        candidates.iter().map(|c| c.0).collect()
    }

    #[test]
    fn plain_softmax_without_cuts() {
        let logits = [0.0, (2.0f32).ln(), (5.0f32).ln()];
        let found = distribution(&logits, &params(1.0, 1.0, 0));
        assert_eq!(ids(&found), [2, 1, 0]);
        for ((_, p), q) in found.iter().zip([5.0 / 8.0, 2.0 / 8.0, 1.0 / 8.0]) {
            assert!((p - q).abs() < 1e-7);
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let logits = [0.0, (2.0f32).ln(), (5.0f32).ln()];
        assert_eq!(ids(&distribution(&logits, &params(1.0, 0.6, 0))), [2]);
        assert_eq!(ids(&distribution(&logits, &params(1.0, 0.7, 0))), [2, 1]);
        assert_eq!(ids(&distribution(&logits, &params(1.0, 0.7, 1))), [2]);
    }

    #[test]
    fn a_flat_nucleus_wider_than_the_head_is_exact() {
        let logits = vec![0.0; 1000];
        let found = distribution(&logits, &params(1.0, 0.9, 0));
        assert!((899..=901).contains(&found.len()), "{}", found.len());
        let limited = distribution(&logits, &params(1.0, 0.5, 600));
        assert!((299..=301).contains(&limited.len()), "{}", limited.len());
        let all = distribution(&logits, &params(0.7, 1.0, 0));
        assert!((all.iter().map(|c| c.1).sum::<f64>() - 1.0).abs() < 1e-9);
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
        assert_eq!(sample(&[1.0, 3.0, 3.0], &params(0.0, 1.0, 0), 0.99), 1);
    }
}
