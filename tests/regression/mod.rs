//! Faults that were found in the field, one numbered test each.

#[cfg(feature = "ndarray")]
mod r001_reciprocals_are_not_estimates;
