//! Log-probabilities of given tokens and of the likeliest ones.

use super::request::TokenScore;
use super::sampling::exp;
use crate::ops::{LANES, largest, vectorised};

/// The log-probability of a token, and those of the likeliest ones at its place.
pub(super) struct Score {
    pub logprob: f64,
    pub likeliest: Vec<(u32, f32)>,
}

impl Score {
    pub fn of(self, token: u32) -> TokenScore {
        TokenScore {
            token,
            logprob: self.logprob as f32,
            likeliest: self.likeliest,
        }
    }
}

/// Of `token` under the softmax of `logits` `[vocab]`.
pub(super) fn score_on_host(logits: &[f32], token: usize, likeliest: usize) -> Score {
    let largest = largest(logits);
    let log_sum = sum_of_exponentials(logits, largest).ln();
    let logprob = |logit: f32| (logit - largest) as f64 - log_sum;
    let best = likeliest_of(logits, likeliest).into_iter();
    Score {
        logprob: logprob(logits[token]),
        likeliest: best
            .map(|(logit, token)| (token, logprob(logit) as f32))
            .collect(),
    }
}

vectorised! {
    /// Σ exp(x − largest), in f64.
    fn sum_of_exponentials(logits: &[f32], largest: f32) -> f64 {
        let (whole, rest) = logits.as_chunks::<LANES>();
        let mut lanes = [0.0f64; LANES];
        for part in whole {
            for (lane, x) in lanes.iter_mut().zip(part) {
                *lane += f64::from(exp(x - largest));
            }
        }
        let rest = rest.iter().map(|x| f64::from(exp(x - largest)));
        lanes.into_iter().chain(rest).sum()
    }
}

/// The `count` largest, ties by place.
fn likeliest_of(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    for (place, &logit) in (0u32..).zip(logits) {
        if best.len() == count && best.last().is_none_or(|last| logit <= last.0) {
            continue;
        }
        let before = best.partition_point(|other| other.0 >= logit);
        best.insert(before, (logit, place));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_ties_by_id() {
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0, 2.0];
        let found = likeliest_of(&logits, 4);
        assert_eq!(found, [(3.0, 1), (3.0, 3), (2.0, 2), (2.0, 5)]);
        assert_eq!(likeliest_of(&logits, 0), []);
        assert_eq!(likeliest_of(&logits, 20).len(), 6);
    }

    #[test]
    fn log_probabilities() {
        let logits = [0.0, (2.0f32).ln(), (5.0f32).ln()];
        let found = score_on_host(&logits, 1, 0).logprob;
        assert!((found - (0.25f64).ln()).abs() < 1e-7);
    }

    #[test]
    fn a_token_has_the_same_bits_alone_and_among_the_likeliest() {
        let logits = [0.1, 0.7, -3.0, 0.7000001];
        for token in 0..4u32 {
            let score = score_on_host(&logits, token as usize, 4).of(token);
            let among = score.likeliest.iter().find(|(id, _)| *id == token).unwrap();
            assert_eq!(among.1.to_bits(), score.logprob.to_bits());
        }
    }
}
