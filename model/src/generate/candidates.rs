//! Sampling where the logits stay on the device: only the likeliest tokens of a row and its sums
//! cross to the host; a row whose draw lies behind those is read whole.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::request::{GenerateError, Request};
use super::sampling::{Sampler, SamplingParams, exp};
use super::scores::{Score, score_on_host};
use crate::ops::{Likeliest, ModelOps, is_finite};

/// Tokens of a row that cross to the host. Most nuclei of a trained model are smaller; a device
/// keeps so many beside each other in registers.
pub(super) const COUNT: usize = 32;

/// The logits of a step of all workers, f32 `[rows, vocab]`, where they are best drawn from.
pub(super) enum AllLogits<B: Backend> {
    Host { values: Arc<Vec<f32>>, vocab: usize },
    Device(Tensor<B, 2>),
}

impl<B: ModelOps> AllLogits<B> {
    pub fn new(logits: Tensor<B, 2>, on_device: bool) -> Result<Self, GenerateError> {
        let vocab = logits.dims()[1];
        Ok(match on_device && vocab > 2 * COUNT {
            true => Self::Device(logits),
            false => Self::Host {
                values: Arc::new(read(logits)?),
                vocab,
            },
        })
    }

    /// Those of some rows; `params` may be fewer than these.
    pub fn rows(
        &self,
        rows: Range<usize>,
        params: &[&SamplingParams],
    ) -> Result<StepLogits<B>, GenerateError> {
        Ok(match self {
            Self::Host { values, vocab } => StepLogits::Host(HostRows {
                values: values.clone(),
                rows,
                vocab: *vocab,
            }),
            Self::Device(logits) => {
                let logits = match rows.len() == logits.dims()[0] {
                    true => logits.clone(),
                    false => logits.clone().narrow(0, rows.start, rows.len()),
                };
                let found = Candidates::find(&logits, params)?;
                StepLogits::Device(logits, found)
            }
        })
    }
}

/// The logits of some rows.
pub(super) enum StepLogits<B: Backend> {
    Host(HostRows),
    Device(Tensor<B, 2>, Vec<Candidates>),
}

/// Some rows of logits on the host.
pub(super) struct HostRows {
    values: Arc<Vec<f32>>,
    rows: Range<usize>,
    vocab: usize,
}

impl HostRows {
    /// `[vocab]`.
    fn row(&self, row: usize) -> &[f32] {
        &self.values[(self.rows.start + row) * self.vocab..][..self.vocab]
    }
}

/// The likeliest tokens of one row.
#[derive(Clone)]
pub(super) struct Candidates {
    /// Logits and tokens, likeliest first, ties by token.
    best: Vec<(f32, u32)>,
    /// Σ exp((logit − largest) / temperature) over the row.
    sum: f64,
    /// Σ exp(logit − largest) over the row.
    plain_sum: f64,
}

impl<B: ModelOps> StepLogits<B> {
    /// Takes the logits where they are best drawn from.
    pub fn new(
        logits: Tensor<B, 2>,
        params: &[&SamplingParams],
        on_device: bool,
    ) -> Result<Self, GenerateError> {
        let rows = 0..logits.dims()[0];
        AllLogits::new(logits, on_device)?.rows(rows, params)
    }

    /// The token of `row` at a turn, and its score where asked for; `None` where the logits are not
    /// finite.
    pub fn draw(
        &self,
        row: usize,
        turn: &Turn<'_>,
        sampler: &mut Sampler,
    ) -> Result<Option<Drawn>, GenerateError> {
        let (logits, found) = match self {
            Self::Host(host) => return Ok(turn.draw(host.row(row), sampler)),
            Self::Device(logits, found) => (logits, &found[row]),
        };
        if !found.is_finite() {
            return Ok(None);
        }
        let params = &turn.request.params;
        let known = match params.changes_logits() {
            true => None,
            false => found.sample(params, turn.draw),
        };
        if let Some((logit, token)) = known {
            let score = |likeliest| found.score(logit, likeliest);
            let score = turn.likeliest().map(score);
            return Ok(Some((token as usize, score)));
        }
        let logits = read(logits.clone().narrow(0, row, 1))?;
        Ok(turn.draw(&logits, sampler))
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        match self {
            Self::Host(host) => host.rows.len(),
            Self::Device(logits, _) => logits.dims()[0],
        }
    }

    /// One row, in memory of its own.
    pub fn only(&self, row: usize) -> Self {
        match self {
            Self::Host(host) => Self::Host(HostRows {
                values: Arc::new(host.row(row).to_vec()),
                rows: 0..1,
                vocab: host.vocab,
            }),
            Self::Device(logits, found) => Self::Device(
                logits.clone().narrow(0, row, 1).mul_scalar(1.0),
                vec![found[row].clone()],
            ),
        }
    }

    /// Whether the logits of `row` are finite.
    pub fn is_finite(&self, row: usize) -> bool {
        match self {
            Self::Host(host) => is_finite(host.row(row)),
            Self::Device(_, found) => found[row].is_finite(),
        }
    }
}

/// A token and, where asked for, its score.
pub(super) type Drawn = (usize, Option<Score>);

/// What a token is drawn for.
pub(super) struct Turn<'a> {
    pub request: &'a Request,
    /// Tokens drawn before.
    pub response: &'a [u32],
    /// In `[0, 1)`.
    pub draw: f64,
}

impl Turn<'_> {
    /// How many of the likeliest tokens are asked for, where a score is.
    fn likeliest(&self) -> Option<usize> {
        let request = self.request;
        (request.logprobs || request.likeliest > 0).then_some(request.likeliest)
    }

    /// From a whole row `[vocab]`.
    fn draw(&self, logits: &[f32], sampler: &mut Sampler) -> Option<Drawn> {
        if !is_finite(logits) {
            return None;
        }
        let params = &self.request.params;
        let token = match params.changes_logits() {
            false => sampler.sample(logits, params, self.draw),
            true => {
                let mut changed = logits.to_vec();
                params.change(&mut changed, &self.request.prompt, self.response);
                sampler.sample(&changed, params, self.draw)
            }
        };
        let score = |likeliest| score_on_host(logits, token, likeliest);
        Some((token, self.likeliest().map(score)))
    }
}

/// A float tensor on the host.
pub(super) fn read<B: Backend>(logits: Tensor<B, 2>) -> Result<Vec<f32>, GenerateError> {
    let data = logits
        .try_into_data()
        .map_err(|e| GenerateError::Device(e.to_string()))?;
    data.into_vec()
        .map_err(|e| GenerateError::Device(format!("{e:?}")))
}

impl Candidates {
    /// Of every row of `logits` `[rows, vocab]`; `params` may be fewer than the rows.
    pub fn find<B: ModelOps>(
        logits: &Tensor<B, 2>,
        params: &[&SamplingParams],
    ) -> Result<Vec<Self>, GenerateError> {
        let rows = logits.dims()[0];
        let scale = |row: usize| match params.get(row).map_or(0.0, |p| p.temperature) {
            0.0 => 1.0,
            temperature => (1.0 / temperature) as f32,
        };
        let scales = TensorData::new((0..rows).map(scale).collect::<Vec<_>>(), [rows]);
        let scales = Tensor::<B, 1>::from_data(scales, (&logits.device(), DType::F32));
        let Likeliest { floats, tokens } = B::likeliest(logits.clone(), scales, COUNT);
        let floats = read(floats)?;
        let tokens = tokens
            .try_into_data()
            .map_err(|e| GenerateError::Device(e.to_string()))?;
        let tokens: Vec<i64> = tokens.iter::<i64>().collect();
        let found = floats
            .chunks_exact(COUNT + 2)
            .zip(tokens.chunks_exact(COUNT));
        Ok(found
            .map(|(floats, tokens)| {
                let tokens = tokens.iter().map(|&token| token as u32);
                // A kernel fills up with the least value where fewer logits are above −∞.
                let best = floats.iter().copied().zip(tokens);
                let mut best: Vec<(f32, u32)> = best.filter(|found| found.0 > f32::MIN).collect();
                best.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                Self {
                    best,
                    sum: floats[COUNT] as f64,
                    plain_sum: floats[COUNT + 1] as f64,
                }
            })
            .collect())
    }

    /// Whether the row's logits are.
    pub fn is_finite(&self) -> bool {
        // The largest one alone makes 1, unless all are −∞.
        (self.sum + self.plain_sum).is_finite() && self.plain_sum > 0.0
    }

    /// The score of a token with this logit.
    pub fn score(&self, logit: f32, likeliest: usize) -> Score {
        let best = self.best.iter().take(likeliest);
        Score {
            logprob: self.log_probability(logit),
            likeliest: best
                .map(|&(logit, token)| (token, self.log_probability(logit) as f32))
                .collect(),
        }
    }

    /// The logit and token that [`Sampler::sample`] finds at `draw`; `None` where the candidates
    /// do not tell.
    fn sample(&self, params: &SamplingParams, draw: f64) -> Option<(f32, u32)> {
        let (largest, last) = (self.best.first()?.0, self.best.last()?.0);
        // A token that is no candidate may be as likely as the last one, and come before it.
        let known = self.best.iter().copied().take_while(|c| c.0 > last);
        if params.temperature == 0.0 {
            return known.take(1).next();
        }
        let scale = (1.0 / params.temperature) as f32;
        let mut sum = 0.0;
        let weight = |logit: f32| exp((logit - largest) * scale);
        let mut walked: Vec<(f64, (f32, u32))> = known
            .map(|candidate| {
                sum += weight(candidate.0) as f64;
                (sum, candidate)
            })
            .collect();
        let mut kept = self.sum;
        let cut = params.min_p > 0.0;
        if cut {
            let least = params.min_p as f32;
            if weight(last) >= least {
                return None;
            }
            let inside = walked.partition_point(|(_, candidate)| weight(candidate.0) >= least);
            walked.truncate(inside);
            kept = walked.last()?.0;
        }
        if params.top_k > 0 {
            match walked.get(params.top_k - 1) {
                Some((sum, _)) => kept = *sum,
                None if cut => {}
                None => return None,
            }
        }
        if params.top_p < 1.0 {
            let reached = walked.iter().find(|(sum, _)| *sum >= params.top_p * kept)?;
            kept = kept.min(reached.0);
        }
        let found = walked.iter().find(|(sum, _)| *sum > draw * kept)?;
        Some(found.1)
    }

    fn log_probability(&self, logit: f32) -> f64 {
        let largest = self.best.first().map_or(f32::NAN, |c| c.0);
        (logit - largest) as f64 - self.plain_sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::ChaCha12Rng;
    use rand::{RngExt, SeedableRng};

    type Flex = burn_flex::Flex<f32, i32>;
    type NdArray = burn_ndarray::NdArray<f32, i64, i8>;

    fn logits(generator: &mut ChaCha12Rng, vocab: usize, spread: f32) -> Vec<f32> {
        let mut value = || {
            // Squared twice, so that a few tokens stand out as a trained model's do.
            let x: f32 = generator.random();
            x * x * x * x * spread
        };
        (0..vocab).map(|_| value()).collect()
    }

    /// Candidates give the host's token, or leave the draw to it; how often they do.
    fn agreement<B: ModelOps>(spread: f32, params: &SamplingParams) -> f64 {
        let (rows, vocab) = (3, 500);
        let mut generator = ChaCha12Rng::seed_from_u64(3);
        let values: Vec<Vec<f32>> = (0..rows)
            .map(|_| logits(&mut generator, vocab, spread))
            .collect();
        let data = TensorData::new(values.concat(), [rows, vocab]);
        let tensor = Tensor::<B, 2>::from_data(data, (&B::Device::default(), DType::F32));
        let found = Candidates::find(&tensor, &[params, params, params]).unwrap();
        let mut sampler = Sampler::default();
        let (mut told, mut all) = (0, 0);
        for (candidates, logits) in found.iter().zip(&values) {
            for i in 0..400 {
                let draw = i as f64 / 400.0;
                let expected = sampler.sample(logits, params, draw);
                all += 1;
                let Some((logit, token)) = candidates.sample(params, draw) else {
                    continue;
                };
                told += 1;
                // At an interval's edge the sums' rounding decides: 500 terms in any order give
                // up to 500 · 2⁻²⁴ of the sum.
                let nudged = [-3e-5, 3e-5].map(|by| sampler.sample(logits, params, draw + by));
                let token = token as usize;
                assert!(
                    token == expected || nudged.contains(&token),
                    "{params:?}: {token}, not {expected}, at {draw}"
                );
                let gap =
                    candidates.log_probability(logit) - score_on_host(logits, token, 0).logprob;
                assert!(gap.abs() < 3e-5, "{gap}");
            }
        }
        told as f64 / all as f64
    }

    fn every_setting<B: ModelOps>() {
        let params = |temperature, top_p, top_k| SamplingParams {
            temperature,
            top_p,
            top_k,
            max_new_tokens: 1,
            stop_ids: vec![],
            seed: 0,
            ..SamplingParams::default()
        };
        assert_eq!(agreement::<B>(30.0, &params(0.0, 1.0, 0)), 1.0);
        assert_eq!(agreement::<B>(30.0, &params(0.7, 0.9, 0)), 1.0);
        assert_eq!(agreement::<B>(30.0, &params(1.0, 1.0, 5)), 1.0);
        assert_eq!(agreement::<B>(30.0, &params(1.0, 0.5, 20)), 1.0);
        let min_p = |top_p, top_k, min_p| SamplingParams {
            min_p,
            ..params(1.0, top_p, top_k)
        };
        assert_eq!(agreement::<B>(30.0, &min_p(1.0, 0, 0.1)), 1.0);
        assert_eq!(agreement::<B>(30.0, &min_p(0.7, 3, 0.01)), 1.0);
        assert!(agreement::<B>(0.1, &min_p(1.0, 0, 0.5)) < 0.2);
        assert!(agreement::<B>(30.0, &params(1.0, 1.0, 0)) > 0.9);
        // Flat: nearly all is left to the host, and what is not agrees.
        assert!(agreement::<B>(0.1, &params(1.0, 1.0, 0)) < 0.2);
        assert!(agreement::<B>(0.1, &params(1.0, 0.9, 40)) < 0.2);
    }

    #[test]
    fn candidates_agree_with_the_host_on_flex() {
        every_setting::<Flex>();
    }

    #[test]
    fn candidates_agree_with_the_host_on_ndarray() {
        every_setting::<NdArray>();
    }

    /// Equal logits at the edge of the candidates are not guessed at.
    #[test]
    fn ties_at_the_edge_are_left_to_the_host() {
        let candidates = Candidates {
            best: vec![(2.0, 9), (1.0, 3), (1.0, 5)],
            sum: 10.0,
            plain_sum: 10.0,
        };
        let mut params = SamplingParams {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: 1,
            stop_ids: vec![],
            seed: 0,
            ..SamplingParams::default()
        };
        assert_eq!(candidates.sample(&params, 0.05), Some((2.0, 9)));
        assert_eq!(candidates.sample(&params, 0.12), None);
        params.top_k = 2;
        assert_eq!(candidates.sample(&params, 0.05), None);
    }
}
