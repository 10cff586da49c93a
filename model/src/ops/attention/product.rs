//! Products of matrices that lie in the nearest cache.

use super::super::vectors::{LANES, add_product};

/// Rows that are: with [`LANES`] of f32, as many sums as AVX2 has registers for.
const ROWS: usize = 6;

/// The same of AVX-512.
const WIDE_ROWS: usize = 12;

/// The left matrix, by its strides.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub values: &'a [f32],
    /// From row to row, and from column to column.
    pub strides: [usize; 2],
    pub rows: usize,
    pub columns: usize,
}

/// What of a product there is to compute on the diagonal of causal scores, where the first row
/// sees `1 + before` columns and each row one more.
#[derive(Clone, Copy)]
pub enum Seen {
    /// Not on the diagonal.
    All,
    /// The result's columns, up to the last seen.
    Result { before: usize },
    /// The left matrix has its rows that far.
    Left { before: usize },
    /// Its columns are rows of scores: row `i` begins at column `i − before`.
    Turned { before: usize },
}

/// `result` + `left` · `right`, or without `ADD` the product alone; `width` numbers a row of both, a
/// multiple of [`LANES`].
///
/// A row of the result has the same bits whatever other rows are computed.
#[inline(always)]
pub fn product<const FMA: bool, const WIDE: bool, const ADD: bool>(
    result: &mut [f32],
    left: Left,
    right: &[f32],
    width: usize,
    seen: Seen,
) {
    let last = left.rows.max(1) - 1;
    let reach = last * left.strides[0] + left.columns.max(1) * left.strides[1];
    // The rows below read it unchecked.
    assert!(reach < left.values.len() + left.strides[1]);
    let mut row = 0;
    while row < left.rows {
        row += match left.rows - row {
            WIDE_ROWS.. if WIDE => {
                rows::<FMA, WIDE, ADD, WIDE_ROWS>(result, left, right, width, seen, row)
            }
            ROWS.. => rows::<FMA, WIDE, ADD, ROWS>(result, left, right, width, seen, row),
            4.. => rows::<FMA, WIDE, ADD, 4>(result, left, right, width, seen, row),
            2.. => rows::<FMA, WIDE, ADD, 2>(result, left, right, width, seen, row),
            _ => rows::<FMA, WIDE, ADD, 1>(result, left, right, width, seen, row),
        };
    }
}

/// `COUNT` rows from row `first`.
#[inline(always)]
fn rows<const FMA: bool, const WIDE: bool, const ADD: bool, const COUNT: usize>(
    result: &mut [f32],
    left: Left,
    right: &[f32],
    width: usize,
    seen: Seen,
    first: usize,
) -> usize {
    let end = first + COUNT;
    let (mut columns, mut inner) = (width, 0..left.columns);
    match seen {
        Seen::All => {}
        Seen::Result { before } => columns = (before + end).next_multiple_of(LANES).min(width),
        Seen::Left { before } => inner.end = (before + end).min(left.columns),
        Seen::Turned { before } => inner.start = first.saturating_sub(before).min(left.columns),
    }
    let [down, along] = left.strides;
    let right = &right[inner.start * width..inner.end * width];
    let result = &mut result[first * width..end * width];
    let place = [first * down + inner.start * along, down, along];
    let mut column = 0;
    while WIDE && column + 2 * LANES <= columns {
        sums::<FMA, WIDE, ADD, COUNT, 2>(result, left, right, width, place, column);
        column += 2 * LANES;
    }
    while column < columns {
        sums::<FMA, WIDE, ADD, COUNT, 1>(result, left, right, width, place, column);
        column += LANES;
    }
    COUNT
}

/// `COUNT` rows by `WIDTH` times [`LANES`] columns, with the left matrix from `at` on.
#[inline(always)]
fn sums<
    const FMA: bool,
    const WIDE: bool,
    const ADD: bool,
    const COUNT: usize,
    const WIDTH: usize,
>(
    result: &mut [f32],
    left: Left,
    right: &[f32],
    width: usize,
    [mut at, down, along]: [usize; 3],
    column: usize,
) {
    // Not one array: compilers would not unroll a loop within a loop, and keep it in memory.
    let [mut sums, mut of_next] = [[[0f32; LANES]; COUNT]; 2];
    for right in right.chunks_exact(width) {
        let right: &[[f32; LANES]] = right[column..][..WIDTH * LANES].as_chunks().0;
        for row in 0..COUNT {
            // SAFETY: `product` has checked the last of all; WIDE is the caller's.
            unsafe {
                let factor = *left.values.get_unchecked(at + row * down);
                add_product::<FMA, WIDE>(&mut sums[row], factor, &right[0]);
                if WIDTH > 1 {
                    add_product::<FMA, WIDE>(&mut of_next[row], factor, &right[1]);
                }
            }
        }
        at += along;
    }
    for (part, sums) in [sums, of_next].iter().take(WIDTH).enumerate() {
        for (row, sums) in sums.iter().enumerate() {
            let result = &mut result[row * width + column + part * LANES..][..LANES];
            for (to, sum) in result.iter_mut().zip(sums) {
                *to = if ADD { *to + sum } else { *sum };
            }
        }
    }
}
