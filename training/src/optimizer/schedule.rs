//! Learning-rate schedules: linear warmup, then constant, linear or cosine decay to 0.

use crate::config;

/// A schedule over a known number of optimizer steps, as in transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// What follows the warmup.
    pub kind: config::ScheduleKind,
    /// Highest rate.
    pub learning_rate: f64,
    /// Steps over which the rate rises from 0; 0 is no warmup.
    pub warmup_steps: usize,
    /// Optimizer steps at whose end the decay is at 0, warmup included.
    pub total_steps: usize,
}

impl Schedule {
    /// The rate of optimizer step `step`, counted from 0; with warmup the first one is 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let done = (step - self.warmup_steps) as f64 / decay_steps as f64;
        let factor = match self.kind {
            config::ScheduleKind::Constant => 1.0,
            config::ScheduleKind::Linear => 1.0 - done,
            config::ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        self.learning_rate * factor.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_starts_at_zero_and_decay_ends_at_zero() {
        for (kind, middle) in [
            (config::ScheduleKind::Linear, 0.5),
            (config::ScheduleKind::Cosine, 0.5),
            (config::ScheduleKind::Constant, 1.0),
        ] {
            let schedule = Schedule {
                kind,
                learning_rate: 2.0,
                warmup_steps: 4,
                total_steps: 12,
            };
            assert_eq!(schedule.rate(0), 0.0);
            assert_eq!(schedule.rate(2), 1.0);
            assert_eq!(schedule.rate(4), 2.0);
            assert!((schedule.rate(8) - 2.0 * middle).abs() < 1e-12);
            if kind != config::ScheduleKind::Constant {
                assert!(schedule.rate(12).abs() < 1e-12);
                assert!(schedule.rate(40) >= 0.0);
            }
        }
    }

    #[test]
    fn without_warmup_the_first_rate_is_full() {
        let schedule = Schedule {
            kind: config::ScheduleKind::Linear,
            learning_rate: 1.0,
            warmup_steps: 0,
            total_steps: 4,
        };
        assert_eq!(schedule.rate(0), 1.0);
        assert_eq!(schedule.rate(1), 0.75);
    }
}
