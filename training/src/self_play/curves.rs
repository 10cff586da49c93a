//! The curves of a training, as metrics.jsonl and the pairs have them.

use serde_json::Value;

use crate::config::Loss;
use crate::data::PairProbabilities;

/// An optimizer step; NaN where its line has no such number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Mean over its rows.
    pub loss: f64,
    /// Before clipping.
    pub grad_norm: f64,
    /// β·Δ of the chosen responses.
    pub chosen: f64,
    /// β·Δ of the rejected responses.
    pub rejected: f64,
    /// `chosen` − `rejected`.
    pub margin: f64,
    /// Part of the pairs whose chosen response has the higher reward.
    pub accuracy: f64,
    /// Of prompts and responses.
    pub tokens_per_second: f64,
}

impl Step {
    /// A line of metrics.jsonl; `None` for one that is not whole.
    pub fn parse(line: &str) -> Option<Self> {
        let line: Value = serde_json::from_str(line).ok()?;
        let number = |key: &str| line.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
        Some(Self {
            loss: number("loss"),
            grad_norm: number("grad_norm"),
            chosen: number("rewards/chosen"),
            rejected: number("rewards/rejected"),
            margin: number("rewards/margins"),
            accuracy: number("rewards/accuracies"),
            tokens_per_second: number("tokens_per_second"),
        })
    }
}

/// What a loss wants Δ = log π − log π_ref of the chosen and of the rejected response to become, on
/// average over pairs; `None` for losses without such a target, and where no pair says it.
pub(super) fn targets(
    loss: Loss,
    beta: f64,
    pairs: impl IntoIterator<Item = PairProbabilities>,
) -> Option<(f64, f64)> {
    let of_pair = |pair| loss.targets(beta, pair);
    let all = pairs.into_iter().filter_map(of_pair);
    let known = all.filter(|targets| targets.iter().all(|target| target.is_finite()));
    let (count, chosen, rejected) = known.fold((0.0, 0.0, 0.0), |(n, a, b), [chosen, rejected]| {
        (n + 1.0, a + chosen, b + rejected)
    });
    (count > 0.0).then(|| (chosen / count, rejected / count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_whole_is_none() {
        let step = Step::parse("{\"loss\":1.5,\"grad_norm\":null}").unwrap();
        assert!(step.loss == 1.5 && step.grad_norm.is_nan());
        assert!(Step::parse("{\"loss\":2").is_none());
    }

    #[test]
    fn targets_are_those_of_the_losses() {
        let pairs = [
            PairProbabilities::new(0.9, 0.7, 0.2),
            PairProbabilities::new(0.7, 0.8, 0.4),
        ];
        let near = |found: Option<(f64, f64)>, (a, b): (f64, f64)| {
            let found = found.unwrap();
            assert!(
                (found.0 - a).abs() < 1e-12 && (found.1 - b).abs() < 1e-12,
                "{found:?}"
            );
        };
        near(targets(Loss::Sppo, 0.1, pairs), (2.5, -2.0));
        near(targets(Loss::SppoSingle, 0.1, pairs), (3.0, -3.0));
        near(targets(Loss::SppoHard, 0.1, pairs), (5.0, -5.0));
        assert!(targets(Loss::Dpo, 0.1, pairs).is_none());
        assert!(targets(Loss::Sppo, 0.1, [PairProbabilities::default()]).is_none());
    }
}
