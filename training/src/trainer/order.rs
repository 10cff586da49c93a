//! Which rows a step takes: a function of (seed, epoch, step) alone, so that resuming needs no
//! generator state.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;

use super::TrainSettings;

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
    let mut order: Vec<usize> = (0..rows).collect();
    if settings.shuffle {
        let mut generator = ChaCha12Rng::seed_from_u64(settings.seed);
        generator.set_stream(epoch as u64);
        order.shuffle(&mut generator);
    }
    order
}
