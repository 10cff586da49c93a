//! Logistic regression on probabilities, with an L1 penalty and no intercept, as scikit-learn's
//! liblinear solves it.
//!
//! liblinear stops well before the minimum, and where ten penalties are compared the differences
//! between neighbours can be smaller than what it leaves undone: then its stopping point decides
//! which is chosen, and moves a win rate by some thousandths of a percentage point. So this takes
//! its steps: newGLMNET (Yuan, Ho, Lin 2012, "An improved GLMNET for L1-regularized logistic
//! regression", JMLR 13) with liblinear's constants and its order of the features.

use super::mersenne::Mersenne;

/// A row: its features, the probability of the event, and its weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation<const D: usize> {
    pub x: [f64; D],
    pub probability: f64,
    pub weight: f64,
}

pub(super) fn dot<const D: usize>(a: &[f64; D], b: &[f64; D]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The w that minimises ‖w‖₁ + c·Σ weight·(log-loss of σ(w·x) against the probability), to the
/// tolerance of scikit-learn.
pub(super) fn fit<const D: usize>(rows: &[Observation<D>], c: f64, seed: u32) -> [f64; D] {
    Descent::new(rows, c, seed).run()
}

/// Of the last gradient, as a part of the first.
const TOLERANCE: f64 = 1e-4;
const MOST_STEPS: usize = 100;
const MOST_SWEEPS: usize = 1000;
const MOST_HALVINGS: usize = 20;
/// What a step has to reach of its promise.
const SUFFICIENT: f64 = 0.01;
/// Keeps curvatures above zero.
const RIDGE: f64 = 1e-12;
/// Shorter moves of a coordinate are none, longer ones are cut.
const SHORTEST_MOVE: f64 = 1e-12;
const LONGEST_MOVE: f64 = 10.0;

/// One outcome of a row: that it happens, or that it does not, at the cost of its probability.
struct Case<const D: usize> {
    x: [f64; D],
    happens: bool,
    cost: f64,
    /// exp(w·x).
    odds: f64,
    /// The loss' first and second derivative, as far as they depend on w.
    slope: f64,
    curvature: f64,
    /// x·(the step).
    moved: f64,
}

impl<const D: usize> Case<D> {
    fn new(row: &Observation<D>, happens: bool, c: f64) -> Self {
        let part = match happens {
            true => row.probability,
            false => 1.0 - row.probability,
        };
        let mut case = Self {
            x: row.x,
            happens,
            cost: c * row.weight * part,
            odds: 1.0,
            slope: 0.0,
            curvature: 0.0,
            moved: 0.0,
        };
        case.derive();
        case
    }

    fn derive(&mut self) {
        let other = 1.0 / (1.0 + self.odds);
        self.slope = self.cost * other;
        self.curvature = self.cost * self.odds * other * other;
    }
}

struct Descent<const D: usize> {
    cases: Vec<Case<D>>,
    tolerance: f64,
    w: [f64; D],
    /// Where the step leads.
    aim: [f64; D],
    /// The features as they are gone through; those that stay at zero last.
    order: [usize; D],
    gradient: [f64; D],
    curvature: [f64; D],
    /// The gradient's constant part: sums over what does not happen.
    constant: [f64; D],
    random: Mersenne,
}

/// The largest and the sum of the features' distances from what the minimum asks of them, and how
/// many features are looked at.
struct Violations {
    largest: f64,
    sum: f64,
    active: usize,
}

impl<const D: usize> Descent<D> {
    fn new(rows: &[Observation<D>], c: f64, seed: u32) -> Self {
        let happen = rows.iter().map(|row| Case::new(row, true, c));
        let not = rows.iter().map(|row| Case::new(row, false, c));
        let cases: Vec<Case<D>> = happen.chain(not).filter(|case| case.cost > 0.0).collect();
        let happening = cases.iter().filter(|case| case.happens).count();
        let fewer = happening.min(cases.len() - happening).max(1);
        let mut constant = [0.0; D];
        for case in cases.iter().filter(|case| !case.happens) {
            let sums = constant.iter_mut().zip(&case.x);
            sums.for_each(|(sum, x)| *sum += case.cost * x);
        }
        Self {
            tolerance: TOLERANCE * fewer as f64 / cases.len().max(1) as f64,
            cases,
            w: [0.0; D],
            aim: [0.0; D],
            order: std::array::from_fn(|j| j),
            gradient: [0.0; D],
            curvature: [0.0; D],
            constant,
            random: Mersenne::new(seed),
        }
    }

    fn run(mut self) -> [f64; D] {
        let (mut first, mut part, mut before) = (None, 1.0, f64::INFINITY);
        for _ in 0..MOST_STEPS {
            let found = self.differentiate(before);
            let first = *first.get_or_insert(found.sum);
            if found.sum <= self.tolerance * first {
                break;
            }
            let sweeps = self.approach(found.active, part * first);
            self.step();
            if sweeps == 1 {
                part *= 0.25;
            }
            before = found.largest;
        }
        self.w
    }

    /// Gradient and curvatures at w. Features that are at zero and far from leaving it, by the
    /// violations of the step `before`, are set aside.
    fn differentiate(&mut self, before: f64) -> Violations {
        let slack = before / self.cases.len() as f64;
        let mut found = Violations {
            largest: 0.0,
            sum: 0.0,
            active: D,
        };
        let mut place = 0;
        while place < found.active {
            let j = self.order[place];
            let (mut slopes, mut curvature) = (0.0, RIDGE);
            for case in &self.cases {
                slopes += case.x[j] * case.slope;
                curvature += case.x[j] * case.x[j] * case.curvature;
            }
            self.gradient[j] = self.constant[j] - slopes;
            self.curvature[j] = curvature;
            if stays(self.w[j], self.gradient[j], slack) {
                found.active -= 1;
                self.order.swap(place, found.active);
                continue;
            }
            found.add(violation(self.w[j], self.gradient[j]));
            place += 1;
        }
        found
    }

    /// Moves the aim towards the minimum of the quadratic model, feature by feature, until the
    /// violations are at most `enough`; how many sweeps that took.
    fn approach(&mut self, active: usize, enough: f64) -> usize {
        self.cases.iter_mut().for_each(|case| case.moved = 0.0);
        let (mut before, mut left) = (f64::INFINITY, active);
        for sweep in 1..=MOST_SWEEPS {
            let found = self.sweep(left, before);
            left = found.active;
            if found.sum > enough {
                before = found.largest;
            } else if left == active {
                return sweep;
            } else {
                // What was set aside is looked at again.
                (before, left) = (f64::INFINITY, active);
            }
        }
        MOST_SWEEPS
    }

    /// Goes once through the features, in an order that is drawn.
    fn sweep(&mut self, active: usize, before: f64) -> Violations {
        for j in 0..active {
            let other = j + self.random.below(active - j);
            self.order.swap(j, other);
        }
        let slack = before / self.cases.len() as f64;
        let mut found = Violations {
            largest: 0.0,
            sum: 0.0,
            active,
        };
        let mut place = 0;
        while place < found.active {
            let j = self.order[place];
            let bent: f64 = self
                .cases
                .iter()
                .map(|case| case.x[j] * case.curvature * case.moved)
                .sum();
            let slope = self.gradient[j] + (self.aim[j] - self.w[j]) * RIDGE + bent;
            if stays(self.aim[j], slope, slack) {
                found.active -= 1;
                self.order.swap(place, found.active);
                continue;
            }
            found.add(violation(self.aim[j], slope));
            place += 1;
            let by = best_move(self.aim[j], slope, self.curvature[j]);
            if by.abs() >= SHORTEST_MOVE {
                let by = by.clamp(-LONGEST_MOVE, LONGEST_MOVE);
                self.aim[j] += by;
                self.cases
                    .iter_mut()
                    .for_each(|case| case.moved += case.x[j] * by);
            }
        }
        found
    }

    /// Goes to the aim, or part of the way, halved until the objective falls enough.
    fn step(&mut self) {
        let norm = |w: &[f64; D]| w.iter().map(|w| w.abs()).sum::<f64>();
        let gain: f64 = (0..D)
            .map(|j| self.gradient[j] * (self.aim[j] - self.w[j]))
            .sum();
        let mut promise = gain + norm(&self.aim) - norm(&self.w);
        for _ in 0..MOST_HALVINGS {
            let mut change = norm(&self.aim) - norm(&self.w) - SUFFICIENT * promise;
            for case in &self.cases {
                let factor = case.moved.exp();
                let odds = case.odds * factor;
                change += case.cost * ((1.0 + odds) / (factor + odds)).ln();
                if !case.happens {
                    change += case.cost * case.moved;
                }
            }
            if change <= 0.0 {
                self.w = self.aim;
                for case in &mut self.cases {
                    case.odds *= case.moved.exp();
                    case.derive();
                }
                return;
            }
            let (aim, w) = (self.aim, self.w);
            self.aim = std::array::from_fn(|j| (w[j] + aim[j]) * 0.5);
            promise *= 0.5;
            self.cases.iter_mut().for_each(|case| case.moved *= 0.5);
        }
        let w = self.w;
        self.cases
            .iter_mut()
            .for_each(|case| case.odds = dot(&w, &case.x).exp());
    }
}

impl Violations {
    fn add(&mut self, violation: f64) {
        self.largest = self.largest.max(violation);
        self.sum += violation;
    }
}

/// How far a feature is from a minimum: there its slope is −sign(w), or within ±1 at zero.
fn violation(w: f64, slope: f64) -> f64 {
    match w {
        0.0 => (slope.abs() - 1.0).max(0.0),
        w => (slope + w.signum()).abs(),
    }
}

/// Whether a feature is at zero and its slope within ±1 by more than the slack.
fn stays(w: f64, slope: f64, slack: f64) -> bool {
    w == 0.0 && slope + 1.0 > slack && slope - 1.0 < -slack
}

/// The move of one coordinate to the minimum of the quadratic model with the penalty.
fn best_move(at: f64, slope: f64, curvature: f64) -> f64 {
    if slope + 1.0 < curvature * at {
        -(slope + 1.0) / curvature
    } else if slope - 1.0 > curvature * at {
        -(slope - 1.0) / curvature
    } else {
        -at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preference::sigmoid;

    fn rows() -> Vec<Observation<2>> {
        (0..40)
            .map(|i| {
                let x = (i as f64 - 17.0) / 9.0;
                Observation {
                    x: [x.tanh(), 1.0],
                    probability: sigmoid(0.7 * x.tanh() - 0.4 + (i % 5) as f64 / 4.0),
                    weight: if i % 3 == 0 { 0.1 } else { 1.0 },
                }
            })
            .collect()
    }

    #[test]
    fn it_stops_near_the_minimum() {
        for c in [1e-4, 1e-2, 0.3, 1.0, 50.0, 1e4] {
            let mut there = Descent::new(&rows(), c, 7);
            let first = there.differentiate(f64::INFINITY).sum;
            there.w = fit(&rows(), c, 7);
            for case in &mut there.cases {
                case.odds = dot(&there.w, &case.x).exp();
                case.derive();
            }
            let last = there.differentiate(f64::INFINITY).sum;
            assert!(last <= 1e-4 * first, "{c}: {last} of {first}");
        }
        assert_eq!(fit(&rows(), 1e-4, 7), [0.0, 0.0]);
    }

    #[test]
    fn what_is_separable_stays_finite() {
        let rows = [0.5, 1.0, 2.0].map(|x| Observation {
            x: [x],
            probability: 1.0,
            weight: 1.0,
        });
        let [w] = fit(&rows, 1e4, 1);
        assert!(w > 5.0 && w < 50.0, "{w}");
    }

    #[test]
    fn a_column_of_zeros_gets_no_weight() {
        let mut rows = rows();
        rows.iter_mut().for_each(|row| row.x[0] = 0.0);
        let w = fit(&rows, 10.0, 1);
        assert_eq!(w[0], 0.0);
        assert!(w[1].is_finite() && w[1] != 0.0);
    }
}
