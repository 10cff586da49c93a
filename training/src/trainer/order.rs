//! Which rows a step takes: a function of (seed, epoch, step) alone, so that resuming needs no
//! generator state.

use rand::SeedableRng;
use rand::rngs::ChaCha12Rng;
use rand::seq::SliceRandom;

use super::settings::TrainSettings;

/// The epoch of `step` and the rows of its window.
pub(super) fn window(
    settings: &TrainSettings,
    rows: usize,
    per_epoch: usize,
    step: usize,
) -> (usize, Vec<usize>) {
    let epoch = step / per_epoch;
    let order = epoch_order(settings, rows, epoch);
    let first = (step % per_epoch) * settings.window();
    let last = (first + settings.window()).min(rows);
    (epoch, order[first..last].to_vec())
}

fn epoch_order(settings: &TrainSettings, rows: usize, epoch: usize) -> Vec<usize> {
    match settings.shuffle {
        true => shuffled(settings.seed, rows, epoch),
        false => (0..rows).collect(),
    }
}

fn shuffled(seed: u64, rows: usize, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    let mut generator = ChaCha12Rng::seed_from_u64(seed);
    generator.set_stream(epoch as u64);
    order.shuffle(&mut generator);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A training that one version began is finished by the next in the same order.
    #[test]
    fn epochs_have_the_order_of_version_0_1() {
        assert_eq!(shuffled(42, 12, 0), [8, 11, 3, 2, 1, 5, 10, 7, 4, 0, 9, 6]);
        assert_eq!(shuffled(42, 12, 1), [1, 0, 8, 3, 10, 7, 9, 4, 6, 2, 11, 5]);
        let many = shuffled(7, 100_000, 3);
        assert_eq!(many[..4], [94791, 1852, 32281, 17627]);
        let mixed = |hash: u64, &row: &usize| hash.wrapping_mul(31).wrapping_add(row as u64);
        assert_eq!(many.iter().fold(0, mixed), 12_082_423_513_724_730_916);
    }
}
