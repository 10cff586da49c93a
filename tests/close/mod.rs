//! How floats are compared. `SPPO_SHOW_ERRORS=1 cargo test -- --nocapture` prints each error as a
//! part of its bound; docs/results.md says how far the processors that were tried stay below 1.

use std::panic::Location;

/// |found − expected| ≤ bound.
#[track_caller]
pub fn assert_close(found: f64, expected: f64, bound: f64, what: &str) {
    let gap = (found - expected).abs();
    if std::env::var_os("SPPO_SHOW_ERRORS").is_some() && gap > 0.0 {
        let at = Location::caller();
        println!(
            "error {:.4} of {bound:e} {}:{}",
            gap / bound,
            at.file(),
            at.line()
        );
    }
    // Not `gap > bound`, which NaN would pass.
    assert!(
        gap <= bound,
        "{what}: {found} is not {expected} (within {bound:e})"
    );
}

/// The same for whole lists, every entry within one bound.
#[track_caller]
pub fn assert_all_close(found: &[f32], expected: &[f64], bound: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_close(
            f64::from(*found),
            *expected,
            bound,
            &format!("{what}, entry {i}"),
        );
    }
}
