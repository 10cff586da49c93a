//! Preference losses of summed response log-probabilities, with their gradients, in f64.
//!
//! SPPO follows arXiv 2405.00675 and its published trainer; the others follow TRL. A batch has few
//! rows, so losses live on the host and the learner only needs d loss / d log-probability.

use crate::config::Loss;
use crate::data::{PairProbabilities, ProbabilityKey};
use crate::preference::sigmoid;

impl Loss {
    /// The probabilities that a row must carry.
    pub fn needed_probabilities(self) -> &'static [ProbabilityKey] {
        match self {
            Self::Sppo => &[ProbabilityKey::Win, ProbabilityKey::Lose],
            Self::SppoSingle => &[ProbabilityKey::Chosen],
            _ => &[],
        }
    }

    /// Whether a row's loss depends on the other rows of its batch.
    pub fn couples_rows(self) -> bool {
        self == Self::KtoPair
    }
}

/// Summed response log-probabilities of a batch, one entry a pair.
#[derive(Clone, Debug, Default)]
pub struct PairLogps {
    /// log π(chosen), in nats.
    pub policy_chosen: Vec<f64>,
    /// log π(rejected), in nats.
    pub policy_rejected: Vec<f64>,
    /// log π_ref(chosen), in nats.
    pub reference_chosen: Vec<f64>,
    /// log π_ref(rejected), in nats.
    pub reference_rejected: Vec<f64>,
    /// Only `sppo` and `sppo_single` read them.
    pub probabilities: Vec<PairProbabilities>,
}

/// A batch's losses and the gradient of their mean.
#[derive(Clone, Debug, Default)]
pub struct LossOutput {
    /// One entry a pair; two (all chosen, then all rejected) for `kto_pair`.
    pub losses: Vec<f64>,
    /// Mean of `losses`.
    pub mean: f64,
    /// d mean / d policy_chosen.
    pub grad_chosen: Vec<f64>,
    /// d mean / d policy_rejected.
    pub grad_rejected: Vec<f64>,
}

impl PairLogps {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.policy_chosen.len()
    }

    /// Whether there are no pairs.
    pub fn is_empty(&self) -> bool {
        self.policy_chosen.is_empty()
    }

    fn deltas(&self) -> (Vec<f64>, Vec<f64>) {
        let minus = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a - b).collect();
        (
            minus(&self.policy_chosen, &self.reference_chosen),
            minus(&self.policy_rejected, &self.reference_rejected),
        )
    }

    /// Mean |Δ − target| of chosen and of rejected; none of losses without targets.
    pub fn target_distances(&self, kind: Loss, beta: f64) -> Option<[f64; 2]> {
        let (chosen, rejected) = self.deltas();
        let mut sums = [0.0, 0.0];
        for i in 0..self.len() {
            let p = self.probabilities.get(i).copied().unwrap_or_default();
            let targets = kind.targets(beta, p)?;
            sums[0] += (chosen[i] - targets[0]).abs();
            sums[1] += (rejected[i] - targets[1]).abs();
        }
        Some(sums.map(|sum| sum / self.len() as f64))
    }

    /// β·Δ of chosen and of rejected: the implicit rewards that are logged.
    pub fn rewards(&self, beta: f64) -> (Vec<f64>, Vec<f64>) {
        let (chosen, rejected) = self.deltas();
        let scale = |deltas: Vec<f64>| deltas.into_iter().map(|d| beta * d).collect();
        (scale(chosen), scale(rejected))
    }

    /// The loss of this batch.
    ///
    /// `sppo`: ½[(Δw − η(p_win(w) − ½))² + (Δl − η(p_win(l) − ½))²] with η = 1/β; `sppo_single`:
    /// the same with targets ±η(`P[w][l]` − ½); `sppo_hard`: targets ±η/2, no factor ½; `dpo`:
    /// −ln σ(β(Δw − Δl)); `hinge`: max(0, 1 − β(Δw − Δl)); `ipo`: (Δw − Δl − η/2)²; `kto_pair`:
    /// 1 − σ(β(Δw − KL_l)) and 1 − σ(β(KL_w − Δl)), each KL a batch mean, not below 0.
    pub fn loss(&self, kind: Loss, beta: f64) -> LossOutput {
        let (chosen, rejected) = self.deltas();
        if kind == Loss::KtoPair {
            return kto_pair(&chosen, &rejected, beta);
        }
        let rows = self.len() as f64;
        let mut output = LossOutput::default();
        for i in 0..self.len() {
            let p = self.probabilities.get(i).copied().unwrap_or_default();
            let row = row_loss(kind, beta, chosen[i], rejected[i], p);
            output.losses.push(row.0);
            output.grad_chosen.push(row.1 / rows);
            output.grad_rejected.push(row.2 / rows);
        }
        output.mean = output.losses.iter().sum::<f64>() / rows;
        output
    }
}

impl Loss {
    /// What a pair's Δw and Δl are drawn to, in nats: η(p_win − ½) of each response, or its like;
    /// none of losses that ask for a margin only.
    pub fn targets(self, beta: f64, p: PairProbabilities) -> Option<[f64; 2]> {
        let eta = 1.0 / beta;
        // A loss of a probability that is not there is none either.
        let of = |probability: Option<f64>| probability.unwrap_or(f64::NAN);
        match self {
            Self::Sppo => Some([eta * (of(p.win) - 0.5), eta * (of(p.lose) - 0.5)]),
            Self::SppoSingle => Some([eta * (of(p.chosen) - 0.5), eta * (0.5 - of(p.chosen))]),
            Self::SppoHard => Some([0.5 * eta, -0.5 * eta]),
            Self::Dpo | Self::Hinge | Self::Ipo | Self::KtoPair => None,
        }
    }
}

/// One pair's loss and its derivatives by Δw and Δl.
fn row_loss(kind: Loss, beta: f64, w: f64, l: f64, p: PairProbabilities) -> (f64, f64, f64) {
    let eta = 1.0 / beta;
    if let Some([target_w, target_l]) = kind.targets(beta, p) {
        let factor = if kind == Loss::SppoHard { 1.0 } else { 0.5 };
        let (a, b) = (w - target_w, l - target_l);
        return (factor * (a * a + b * b), 2.0 * factor * a, 2.0 * factor * b);
    }
    let contrast = |(value, slope): (f64, f64)| (value, slope, -slope);
    let margin = beta * (w - l);
    match kind {
        Loss::Dpo => {
            // ln(1 + e^−m) without overflow.
            let value = (-margin.abs()).exp().ln_1p() + (-margin).max(0.0);
            contrast((value, -beta * sigmoid(-margin)))
        }
        Loss::Hinge if margin < 1.0 => contrast((1.0 - margin, -beta)),
        Loss::Hinge => (0.0, 0.0, 0.0),
        Loss::Ipo => {
            let gap = w - l - 0.5 * eta;
            contrast((gap * gap, 2.0 * gap))
        }
        // Those with targets are above; the last is handled with its whole batch.
        Loss::Sppo | Loss::SppoSingle | Loss::SppoHard | Loss::KtoPair => {
            (f64::NAN, f64::NAN, f64::NAN)
        }
    }
}

/// As in TRL, gradients flow through the batch means too.
fn kto_pair(chosen: &[f64], rejected: &[f64], beta: f64) -> LossOutput {
    let rows = chosen.len() as f64;
    let mean = |deltas: &[f64]| deltas.iter().sum::<f64>() / rows;
    let (mean_chosen, mean_rejected) = (mean(chosen), mean(rejected));
    let (kl_chosen, kl_rejected) = (mean_chosen.max(0.0), mean_rejected.max(0.0));
    let won: Vec<f64> = chosen
        .iter()
        .map(|d| sigmoid(beta * (d - kl_rejected)))
        .collect();
    let lost: Vec<f64> = rejected
        .iter()
        .map(|d| sigmoid(beta * (kl_chosen - d)))
        .collect();
    let slope = |s: &f64| beta * s * (1.0 - s) / (2.0 * rows);
    // torch's clamp passes the gradient at the bound itself, where the first step stands.
    let through = |mean: f64, values: &[f64]| match mean >= 0.0 {
        true => values.iter().map(slope).sum::<f64>() / rows,
        false => 0.0,
    };
    let (to_chosen, to_rejected) = (through(mean_chosen, &lost), through(mean_rejected, &won));
    let losses: Vec<f64> = won.iter().chain(&lost).map(|s| 1.0 - s).collect();
    LossOutput {
        mean: losses.iter().sum::<f64>() / (2.0 * rows),
        grad_chosen: won.iter().map(|s| -slope(s) - to_chosen).collect(),
        grad_rejected: lost.iter().map(|s| slope(s) + to_rejected).collect(),
        losses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logps() -> PairLogps {
        PairLogps {
            policy_chosen: vec![-10.0, -20.0, -7.5],
            policy_rejected: vec![-12.0, -18.0, -9.0],
            reference_chosen: vec![-11.0, -21.5, -7.0],
            reference_rejected: vec![-11.5, -17.0, -9.5],
            probabilities: vec![PairProbabilities::new(0.9, 0.7, 0.2); 3],
        }
    }

    /// It counted as 0 once, which is a probability like others.
    #[test]
    fn an_absent_probability_gives_no_loss() {
        for (kind, needs_one) in [
            (Loss::Sppo, true),
            (Loss::SppoSingle, true),
            (Loss::Dpo, false),
        ] {
            let mut logps = logps();
            logps.probabilities[1] = PairProbabilities::default();
            let losses = logps.loss(kind, 0.1).losses;
            assert_eq!(
                [0, 1, 2].map(|i| losses[i].is_nan()),
                [false, needs_one, false],
                "{kind:?}"
            );
        }
    }

    #[test]
    fn distances_are_those_of_the_targets() {
        // Δ = 1, 1.5, -0.5 and -0.5, -1, 0.5; targets 10 · (0.7 - 0.5) and 10 · (0.2 - 0.5).
        let found = logps().target_distances(Loss::Sppo, 0.1).unwrap();
        let expected = [(1.0 + 0.5 + 2.5) / 3.0, (2.5 + 2.0 + 3.5) / 3.0];
        for (found, expected) in found.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(logps().target_distances(Loss::Dpo, 0.1), None);
    }

    /// The gradients of every loss against central differences.
    #[test]
    fn gradients_are_derivatives() {
        use Loss::*;
        for kind in [Sppo, SppoSingle, SppoHard, Dpo, Hinge, Ipo, KtoPair] {
            let beta = 0.1;
            let output = logps().loss(kind, beta);
            let h = 1e-5;
            for i in 0..3 {
                let at = |side: usize, shift: f64| {
                    let mut moved = logps();
                    match side {
                        0 => moved.policy_chosen[i] += shift,
                        _ => moved.policy_rejected[i] += shift,
                    }
                    moved.loss(kind, beta).mean
                };
                for (side, grad) in [output.grad_chosen[i], output.grad_rejected[i]]
                    .into_iter()
                    .enumerate()
                {
                    let slope = (at(side, h) - at(side, -h)) / (2.0 * h);
                    assert!(
                        (slope - grad).abs() < 1e-6,
                        "{kind:?} {i} {side}: {slope} {grad}"
                    );
                }
            }
        }
    }

    /// At the start policy and reference agree, so both KL means stand at the clamp's bound.
    #[test]
    fn the_first_kto_step_has_the_gradient_of_the_means() {
        let start = PairLogps {
            policy_chosen: vec![-10.0, -20.0],
            policy_rejected: vec![-12.0, -18.0],
            reference_chosen: vec![-10.0, -20.0],
            reference_rejected: vec![-12.0, -18.0],
            probabilities: Vec::new(),
        };
        let output = start.loss(Loss::KtoPair, 0.4);
        // Each side: its own slope and as much again through the mean of the two.
        assert_eq!(output.grad_chosen, [-0.05, -0.05]);
        assert_eq!(output.grad_rejected, [0.05, 0.05]);
    }

    #[test]
    fn dpo_does_not_overflow() {
        let mut far = logps();
        far.policy_chosen[0] = -1e6;
        let output = far.loss(Loss::Dpo, 1.0);
        assert!(output.mean.is_finite() && output.grad_chosen[0].is_finite());
    }
}
