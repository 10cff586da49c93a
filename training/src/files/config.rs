//! Which configuration of a run's folder is the one that the run uses.

use std::path::{Path, PathBuf};

/// Beside a config.toml that a user edited, which stays as it is.
pub(crate) const RESOLVED_CONFIG: &str = "config.resolved.toml";

/// The configuration that the run in `dir` uses.
pub(crate) fn config_in_effect(dir: &Path) -> PathBuf {
    let resolved = dir.join(RESOLVED_CONFIG);
    match resolved.is_file() {
        true => resolved,
        false => dir.join("config.toml"),
    }
}
