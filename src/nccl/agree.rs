//! What all ranks have of NCCL has to be the same.

use serde::{Deserialize, Serialize};

/// How NCCL is installed.
pub const INSTALL: &str = "to install NCCL: pip install nvidia-nccl-cu13 (or -cu12, as the driver is) \
     and set cluster.nccl or $SPPO_NCCL to its nvidia/nccl/lib/libnccl.so.2, or apt-get install \
     libnccl2, on every node";

/// What a rank found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    pub host: String,
    /// The version, or what is wrong.
    pub version: Result<String, String>,
    /// Whether the rank was told to use it.
    pub needed: bool,
}

/// Whether NCCL is used: by all ranks, or by none where nobody has it. Says what is wrong
/// otherwise, the same on all ranks.
pub fn agreed(ranks: &[Found]) -> Result<bool, String> {
    for (rank, found) in ranks.iter().enumerate() {
        if let (Err(error), true) = (&found.version, found.needed) {
            return Err(format!("rank {rank} ({}): {error}; {INSTALL}", found.host));
        }
    }
    let Some(first) = ranks.first() else {
        return Ok(false);
    };
    let of = |found: &Found| match &found.version {
        Ok(version) => version.clone(),
        Err(error) => format!("none ({error})"),
    };
    let same = |found: &Found| found.version.as_ref().ok() == first.version.as_ref().ok();
    match ranks.iter().enumerate().find(|(_, found)| !same(found)) {
        Some((rank, found)) => Err(format!(
            "rank {rank} ({}): NCCL differs from rank 0's ({}): {} / {}; all ranks need the same; {INSTALL}",
            found.host,
            first.host,
            of(found),
            of(first)
        )),
        None => Ok(first.version.is_ok()),
    }
}
