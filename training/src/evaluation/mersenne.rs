//! The Mersenne Twister MT19937 (Matsumoto, Nishimura 1998), from which scikit-learn's liblinear
//! draws the order of the features.

const LENGTH: usize = 624;
const SHIFT: usize = 397;

/// Its state, and how much of it is used up.
pub(super) struct Mersenne {
    state: [u32; LENGTH],
    next: usize,
}

impl Mersenne {
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; LENGTH];
        for i in 1..LENGTH {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: LENGTH,
        }
    }

    fn draw(&mut self) -> u32 {
        if self.next == LENGTH {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    fn refill(&mut self) {
        for i in 0..LENGTH {
            let high = self.state[i] & 0x8000_0000;
            let low = self.state[(i + 1) % LENGTH] & 0x7fff_ffff;
            let both = high | low;
            let twist = if both & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % LENGTH] ^ (both >> 1) ^ twist;
        }
        self.next = 0;
    }

    /// A number below `bound`, each as likely (Lemire 2019).
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u32;
        let least = bound.wrapping_neg() % bound;
        loop {
            let product = u64::from(self.draw()) * u64::from(bound);
            if product as u32 >= least {
                return (product >> 32) as usize;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first and the 10000th number that the C++ standard gives for the seed 5489.
    #[test]
    fn the_numbers_are_those_of_the_standard() {
        let mut random = Mersenne::new(5489);
        assert_eq!(random.draw(), 3_499_211_612);
        let last = (1..10_000).map(|_| random.draw()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn every_number_below_the_bound_comes() {
        let mut random = Mersenne::new(1);
        let mut counts = [0; 3];
        (0..300).for_each(|_| counts[random.below(3)] += 1);
        assert!(counts.iter().all(|count| *count > 60), "{counts:?}");
    }
}
