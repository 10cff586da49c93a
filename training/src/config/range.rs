//! Ranges of numbers: what a key of the configuration or a flag of the command line admits.

use std::fmt;

/// Which numbers are admitted.
#[derive(Clone, Copy)]
pub enum Range {
    /// Whole numbers of at least this many, and no more than anyone could mean.
    AtLeast(u32),
    /// Whole numbers of at least the first, and no more than the second, which few come near.
    UpTo(u32, u32),
    /// Whole numbers from the first to the last.
    Between(u32, u32),
    /// Numbers with a fraction.
    Real {
        /// Whether a number is admitted.
        admits: fn(f64) -> bool,
        /// Which ones are, for messages and documentation.
        says: &'static str,
    },
}

/// The most that a count can be.
pub const MOST: u32 = 10_000_000;

/// A count that may be none.
pub const COUNT_OR_NONE: Range = Range::AtLeast(0);
/// A count of at least one.
pub const COUNT: Range = Range::AtLeast(1);
/// Responses a prompt; every pair of them is compared.
pub const SAMPLES: Range = Range::UpTo(1, 1 << 16);
/// Ranks of adapters.
pub const RANK: Range = Range::Between(1, 1 << 16);
/// Learning rates, temperatures and the like.
pub const POSITIVE: Range = Range::Real {
    admits: |x| x > 0.0,
    says: "a number above 0",
};
/// Numbers of which 1/x is taken.
pub const INVERTIBLE: Range = Range::Real {
    admits: |x| x > 0.0 && x.recip().is_finite(),
    says: "a number above 0",
};
/// Weights and the like.
pub const NOT_NEGATIVE: Range = Range::Real {
    admits: |x| x >= 0.0,
    says: "a number, 0 or more",
};
/// Parts of a whole.
pub const RATIO: Range = Range::Real {
    admits: |x| (0.0..=1.0).contains(&x),
    says: "a number from 0 to 1",
};
/// Probabilities under which something can still happen.
pub const PROBABILITY: Range = Range::Real {
    admits: |x| x > 0.0 && x <= 1.0,
    says: "a number above 0, at most 1",
};
/// Decays of a running mean.
pub const DECAY: Range = Range::Real {
    admits: |x| (0.0..1.0).contains(&x),
    says: "a number from 0 to below 1",
};
/// Seconds that one can wait for: a day at most.
pub const SECONDS: Range = Range::Real {
    admits: |x| x > 0.0 && x <= 86400.0,
    says: "a number above 0, at most 86400",
};

impl Range {
    /// Whether `x` is one of the numbers.
    pub fn admits(self, x: f64) -> bool {
        self.broken_by(x).is_none()
    }

    /// What `x` would have to be, where it is not admitted.
    pub fn broken_by(self, x: f64) -> Option<String> {
        let whole = |least: u32, most: u32| (f64::from(least)..=f64::from(most)).contains(&x);
        match self {
            Self::AtLeast(least) if whole(least, MOST) => None,
            Self::UpTo(least, most) if whole(least, most) => None,
            Self::AtLeast(_) if x > f64::from(MOST) => Some(format!("at most {MOST}")),
            Self::UpTo(_, most) if x > f64::from(most) => Some(format!("at most {most}")),
            Self::AtLeast(least) | Self::UpTo(least, _) => Some(format!("{least} or more")),
            Self::Between(least, most) if whole(least, most) => None,
            Self::Between(least, most) => Some(format!("from {least} to {most}")),
            Self::Real { admits, .. } if admits(x) => None,
            Self::Real { says, .. } => Some(says.into()),
        }
    }
}

/// The whole description, e.g. `a whole number, 1 or more`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) | Self::UpTo(least, _) => {
                write!(f, "a whole number, {least} or more")
            }
            Self::Between(least, most) => write!(f, "a whole number from {least} to {most}"),
            Self::Real { says, .. } => f.write_str(says),
        }
    }
}
