//! `sppo serve` and `sppo chat` of a build without the feature `serve`.

use crate::errors::user;

/// Says what is missing.
pub fn run() -> anyhow::Result<()> {
    Err(user(
        "this build has no server, which chat needs too; build it with the cargo feature: \
         cargo build --release --features serve",
    ))
}
