//! NCCL: what ranks exchange goes from GPU to GPU.

#[cfg(any(feature = "cuda", all(test, target_os = "linux")))]
mod agree;
#[cfg(any(feature = "cuda", all(test, target_os = "linux")))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "tests load it"))]
mod library;
#[cfg(all(test, target_os = "linux"))]
mod tests;
#[cfg(feature = "cuda")]
mod transport;

use sppo_training::cluster::world;
use sppo_training::config::{Cluster, Reduce};

use crate::errors::user;

/// Refuses `reduce = "nccl"` on a device that is no CUDA card.
pub fn refuse(cluster: &Cluster) -> anyhow::Result<()> {
    refuse_of(cluster, world().size())
}

fn refuse_of(cluster: &Cluster, ranks: usize) -> anyhow::Result<()> {
    match cluster.reduce {
        Some(Reduce::Nccl) if ranks > 1 => Err(user(
            "cluster.reduce = \"nccl\": NCCL is for CUDA cards; leave it out or set \
             cluster.reduce = \"ordered\", or use --device cuda",
        )),
        _ => Ok(()),
    }
}

/// Connects the GPUs of all ranks, where that is wanted and NCCL is there. Collective.
#[cfg(feature = "cuda")]
pub fn connect(cluster: &Cluster, device: &burn_cuda::CudaDevice) -> anyhow::Result<()> {
    use std::sync::Arc;

    use agree::{Found, INSTALL, agreed};
    use anyhow::anyhow;
    use sppo_training::cluster::{gather, use_transport};
    use sppo_training::files::host;
    use transport::{Backend, Transport};

    let world = world();
    if world.size() == 1 || cluster.reduce == Some(Reduce::Ordered) {
        return Ok(());
    }
    let given = library::given(cluster.nccl.as_ref(), std::env::var_os(library::VARIABLE));
    let found = library::find(given.as_ref());
    let said = Found {
        host: host(),
        version: match &found {
            Ok(library) => Ok(library.version.to_string()),
            Err(error) => Err(error.clone()),
        },
        needed: given.is_some() || cluster.reduce == Some(Reduce::Nccl),
    };
    agreed(&gather(world, said)).map_err(user)?;
    let library = match found {
        Ok(library) => library,
        Err(error) => {
            if world.leads() {
                tracing::warn!(
                    "no NCCL ({error}): what ranks exchange goes through the hosts' memory, which \
                     is slower; {INSTALL}"
                );
            }
            return Ok(());
        }
    };
    tracing::info!("{library:?} connects {} ranks", world.size());
    let transport = Transport::new(library, world, device)
        .map_err(|error| anyhow!("NCCL cannot connect the ranks: {error}"))?;
    use_transport::<Backend>(Arc::new(transport));
    Ok(())
}
