//! DeBERTa's relative positions: exact near by, in logarithmic buckets farther away.

/// The row of the relative embeddings for distance `d` = query − key (arXiv 2111.09543 and
/// transformers' `make_log_bucket_position`): `buckets` rows on each side of 0.
pub fn bucket(distance: isize, buckets: usize, max_distance: usize) -> usize {
    let middle = (buckets / 2) as isize;
    let far = distance.abs();
    let position = if far <= middle {
        distance
    } else {
        // In f32, where transformers rounds up.
        let ratio =
            (far as f32 / middle as f32).ln() / ((max_distance as f32 - 1.0) / middle as f32).ln();
        let steps = (ratio * (middle as f32 - 1.0)).ceil() as isize + middle;
        steps * distance.signum()
    };
    let row = position + buckets as isize;
    row.clamp(0, 2 * buckets as isize - 1) as usize
}

/// The rows that sequences of one length need: a range of the relative embeddings, and for every
/// distance its place in that range.
#[derive(Clone, Debug)]
pub struct Distances {
    /// First and last row + 1.
    pub rows: std::ops::Range<usize>,
    /// `[2 · length − 1]`: for distance length − 1 − m the row within `rows`.
    pub places: Vec<u32>,
}

impl Distances {
    /// Of sequences of `length` tokens.
    pub fn new(length: usize, buckets: usize, max_distance: usize) -> Self {
        let longest = length as isize - 1;
        let row = |distance| bucket(distance, buckets, max_distance);
        let rows = row(-longest)..row(longest) + 1;
        let places = (-longest..=longest)
            .rev()
            .map(|distance| (row(distance) - rows.start) as u32)
            .collect();
        Distances { rows, places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of transformers 5.23: make_log_bucket_position(d, 256, 512).
    #[test]
    fn buckets_are_those_of_transformers() {
        for (distance, expected) in BUCKETS {
            assert_eq!(bucket(distance, 256, 512), expected, "{distance}");
            // Beyond the last bucket both sides are clamped, and not alike.
            let mirrored = if distance < 512 { 512 - expected } else { 0 };
            assert_eq!(bucket(-distance, 256, 512), mirrored, "-{distance}");
        }
    }

    const BUCKETS: [(isize, usize); 18] = [
        (0, 256),
        (1, 257),
        (5, 261),
        (127, 383),
        (128, 384),
        (129, 385),
        (130, 386),
        (135, 389),
        (150, 399),
        (200, 425),
        (255, 448),
        (256, 448),
        (300, 463),
        (400, 489),
        (500, 510),
        (510, 511),
        (511, 511),
        (2047, 511),
    ];

    #[test]
    fn every_query_sees_its_own_distances() {
        let distances = Distances::new(5, 4, 64);
        for i in 0..5isize {
            for j in 0..5isize {
                let found = distances.places[(4 - (i - j)) as usize] as usize;
                assert_eq!(found, bucket(i - j, 4, 64) - distances.rows.start);
            }
        }
        let one = Distances::new(1, 4, 64);
        assert_eq!((one.rows, one.places), (4..5, vec![0]));
    }
}
