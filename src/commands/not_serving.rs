//! `sppo serve` of a build without the feature `serve`.

use super::serve::Args;
use crate::errors::user;

/// Says what is missing.
pub fn run(_: Args, _: bool) -> anyhow::Result<()> {
    Err(user(
        "this build has no server; build it with the cargo feature: \
         cargo build --release --features serve",
    ))
}
