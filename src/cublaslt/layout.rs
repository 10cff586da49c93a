//! Matrices with strides as cuBLAS sees them: column after column.

/// A matrix in memory: `rows` elements end to end, then the next column `leading` elements on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    pub rows: usize,
    pub columns: usize,
    pub leading: usize,
}

/// What lies in memory where `shape` and `strides` (in elements) say, and whether that is the matrix
/// turned. `None` where neither its rows nor its columns lie end to end.
pub fn layout(shape: [usize; 2], strides: [usize; 2]) -> Option<(Layout, bool)> {
    let [rows, columns] = shape;
    // The stride of a dimension of one is whatever it is.
    let dense = |length: usize, stride: usize| length == 1 || stride == 1;
    let leading = |count: usize, stride: usize, length: usize| match count {
        1 => Some(length),
        _ => (stride >= length).then_some(stride),
    };
    let by_rows = || {
        let leading = leading(rows, strides[0], columns)?;
        let lies = Layout {
            rows: columns,
            columns: rows,
            leading,
        };
        dense(columns, strides[1]).then_some((lies, true))
    };
    let by_columns = || {
        let leading = leading(columns, strides[1], rows)?;
        let lies = Layout {
            rows,
            columns,
            leading,
        };
        dense(rows, strides[0]).then_some((lies, false))
    };
    by_rows().or_else(by_columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(shape: [usize; 2], strides: [usize; 2]) -> Option<(usize, usize, usize, bool)> {
        let (lies, turned) = layout(shape, strides)?;
        Some((lies.rows, lies.columns, lies.leading, turned))
    }

    #[test]
    fn rows_or_columns_lie_end_to_end() {
        assert_eq!(of([3, 5], [5, 1]), Some((5, 3, 5, true)));
        assert_eq!(of([3, 5], [8, 1]), Some((5, 3, 8, true)));
        assert_eq!(of([5, 3], [1, 5]), Some((5, 3, 5, false)));
        assert_eq!(of([5, 3], [1, 8]), Some((5, 3, 8, false)));
        // Strided both ways, overlapping, and one row for all.
        assert_eq!(of([3, 5], [10, 2]), None);
        assert_eq!(of([3, 5], [4, 1]), None);
        assert_eq!(of([3, 5], [0, 1]), None);
    }

    #[test]
    fn a_dimension_of_one_has_no_stride() {
        assert_eq!(of([1, 5], [0, 1]), Some((5, 1, 5, true)));
        assert_eq!(of([5, 1], [1, 0]), Some((1, 5, 1, true)));
        assert_eq!(of([5, 1], [8, 9]), Some((1, 5, 8, true)));
        assert_eq!(of([1, 5], [9, 8]), Some((1, 5, 8, false)));
        assert_eq!(of([1, 1], [0, 0]), Some((1, 1, 1, true)));
    }
}
