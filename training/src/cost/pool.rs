//! What CubeCL's memory pool takes from a GPU's driver (`SubSlices`, its choice for CUDA).
//!
//! A tensor lies in a page of the first class that takes its size. Pages are never given back, so a
//! class has as many as its fullest moment asked for. The classes depend on the card's memory: the
//! largest page is a quarter of it.

/// What addresses are a multiple of.
const ALIGNED: u64 = 512;

/// Pages below this are not divided further.
const SMALLEST: u64 = 32 << 20;

/// Tensors of one size that are there at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of one of them.
    pub bytes: u64,
    /// How many.
    pub count: u64,
}

/// What is on the card at some moment.
#[derive(Clone, Debug, Default)]
pub struct Moment(Vec<Piece>);

impl Moment {
    /// The same with `count` tensors more, of `bytes` each; at most a petabyte, so that sums of absurd
    /// sizes stay within 64 bits.
    pub fn with(mut self, bytes: f64, count: u64) -> Self {
        let bytes = bytes.min(1e15) as u64;
        if bytes > 0 && count > 0 {
            self.0.push(Piece { bytes, count });
        }
        self
    }

    /// The same with all of another one.
    pub fn and(mut self, other: &Moment) -> Self {
        self.0.extend_from_slice(&other.0);
        self
    }

    /// The same with all of another one so many times.
    pub fn and_times(mut self, other: &Moment, times: u64) -> Self {
        let times = |piece: &Piece| Piece {
            count: piece.count * times,
            ..*piece
        };
        self.0.extend(other.0.iter().map(times));
        self
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let bytes = |piece: &Piece| piece.bytes.saturating_mul(piece.count);
        self.0.iter().map(bytes).fold(0, u64::saturating_add)
    }
}

/// Pages of one size.
#[derive(Clone, Copy, Debug)]
struct Class {
    page: u64,
    /// The largest tensor that it always takes.
    most: u64,
}

impl Class {
    /// A tensor that nearly fills a page is taken, too.
    fn takes(&self, bytes: u64) -> bool {
        bytes <= self.most || (bytes <= self.page && (self.page - bytes) * 5 < self.page)
    }

    /// Pages that hold all `pieces`, the largest first.
    fn pages(&self, mut pieces: Vec<Piece>) -> u64 {
        pieces.sort_unstable_by_key(|piece| std::cmp::Reverse(piece.bytes));
        // Bytes that are free in so many pages.
        let mut pages: Vec<(u64, u64)> = Vec::new();
        for Piece { bytes, count } in pieces {
            let bytes = bytes.next_multiple_of(ALIGNED);
            let mut left = count;
            let mut after = Vec::with_capacity(pages.len() + 2);
            // As many pages more as are needed, if those before take none.
            let fresh = (self.page, u64::MAX);
            for (free, number) in pages.drain(..).chain([fresh]) {
                let each = free / bytes;
                let full = left.checked_div(each).map_or(0, |full| full.min(number));
                let rest = if full < number {
                    (left - full * each).min(each)
                } else {
                    0
                };
                let begun = u64::from(rest > 0);
                left -= full * each + rest;
                after.push((free.saturating_sub(each * bytes), full));
                after.push((free - rest * bytes, begun));
                if number < u64::MAX {
                    after.push((free, number - full - begun));
                }
            }
            after.retain(|(_, number)| *number > 0);
            pages = after;
        }
        pages.iter().map(|(_, number)| number).sum()
    }
}

/// Bytes that a card of `memory` bytes gives to a program with these moments.
pub fn reserved(memory: u64, moments: &[Moment]) -> u64 {
    let classes = classes(memory);
    let of_class = |number: usize, class: &Class| {
        let is_first = |bytes: u64| classes.iter().position(|class| class.takes(bytes));
        let pages = moments.iter().map(|moment| {
            let pieces = moment.0.iter().copied();
            class.pages(
                pieces
                    .filter(|piece| is_first(piece.bytes) == Some(number))
                    .collect(),
            )
        });
        pages.max().unwrap_or(0).saturating_mul(class.page)
    };
    let sum = classes
        .iter()
        .enumerate()
        .map(|(number, class)| of_class(number, class))
        .fold(0, u64::saturating_add);
    // What no page takes does not fit into the card; it counts as it is.
    let too_large = |moment: &Moment| {
        let pieces = moment.0.iter().copied();
        let large = pieces.filter(|piece| !classes.iter().any(|class| class.takes(piece.bytes)));
        Moment(large.collect()).bytes()
    };
    sum.saturating_add(moments.iter().map(too_large).max().unwrap_or(0))
}

/// From the smallest pages to the largest.
fn classes(memory: u64) -> Vec<Class> {
    let largest = memory / 4;
    let whole = largest / ALIGNED * ALIGNED;
    let mut classes = vec![Class {
        page: whole,
        most: whole,
    }];
    let (mut page, mut share) = (largest, 2);
    while page >= SMALLEST {
        page = (page / 4).next_multiple_of(ALIGNED);
        classes.push(Class {
            page,
            most: page / share,
        });
        share *= 2;
    }
    classes.reverse();
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The pages of a card of 140 GiB, as the driver's trace has them.
    #[test]
    fn pages_of_a_card() {
        let classes = classes(140 << 30);
        let pages: Vec<f64> = classes.iter().map(|c| c.page as f64 / MIB as f64).collect();
        assert_eq!(pages, [8.75, 35.0, 140.0, 560.0, 2240.0, 8960.0, 35840.0]);
        let first = |mib: u64| classes.iter().find(|c| c.takes(mib * MIB)).unwrap().page / MIB;
        // Below its share of a page, or within a fifth of a whole page.
        for (size, page) in [(8, 8), (16, 560), (64, 560), (112, 2240), (224, 2240)] {
            assert_eq!(first(size), page, "{size}");
        }
        assert_eq!(
            (first(29), first(113), first(2004), first(1002)),
            (35, 140, 2240, 8960)
        );
    }

    #[test]
    fn tensors_share_pages_and_a_class_keeps_its_most() {
        let moment = |pieces: &[(u64, u64)]| {
            let pieces = pieces.iter();
            pieces.fold(Moment::default(), |moment, (mib, count)| {
                moment.with((mib * MIB) as f64, *count)
            })
        };
        let taken = |moments: &[Moment]| reserved(140 << 30, moments) / MIB;
        assert_eq!(taken(&[]), 0);
        // Ten of 224 MiB fill a page.
        assert_eq!(taken(&[moment(&[(224, 10)])]), 2240);
        assert_eq!(taken(&[moment(&[(224, 11)])]), 4480);
        // Eight of 250 MiB leave room for four of 60 in the same class only.
        assert_eq!(taken(&[moment(&[(250, 8), (75, 3)])]), 2240);
        assert_eq!(taken(&[moment(&[(250, 8), (75, 4)])]), 4480);
        assert_eq!(taken(&[moment(&[(250, 17), (75, 3)])]), 3 * 2240);
        // One moment fills one class, the next another.
        let moments = [moment(&[(224, 3), (8, 1)]), moment(&[(224, 11)])];
        assert_eq!(reserved(140 << 30, &moments), 4480 * MIB + 35 * MIB / 4);
        // More than a page can hold.
        assert_eq!(taken(&[moment(&[(40_000, 2)])]), 80_000);
    }
}
