//! What has to be the same on all ranks before they begin: a difference would be found after hours,
//! or never.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Communicator, gather};
use crate::files::host;

/// What a rank has under a name; `None` where another of its host looks.
pub type Fact = (String, Option<String>);

/// A rank, and the host that it runs on.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    host: String,
    facts: Vec<Fact>,
}

/// The first difference between the ranks' facts, for people. Collective, and the same on all ranks.
pub fn difference(world: &dyn Communicator, facts: Vec<Fact>) -> Option<String> {
    let host = host();
    let all = gather(world, Told { host, facts });
    let first = all.first()?;
    all.iter().enumerate().find_map(|(rank, told)| {
        let pairs = told.facts.iter().zip(&first.facts);
        let other = pairs.into_iter().find_map(|((name, own), (_, theirs))| {
            let (own, theirs) = (own.as_ref()?, theirs.as_ref()?);
            (own != theirs).then(|| (name, first_difference(own, theirs)))
        });
        let (name, (own, theirs)) = other?;
        Some(format!(
            "rank {rank} ({}): {name} differs from rank 0's: {own} / {theirs}",
            told.host
        ))
    })
}

/// Of texts with lines, the first lines that differ.
fn first_difference<'a>(own: &'a str, theirs: &'a str) -> (&'a str, &'a str) {
    let (mut a, mut b) = (own.lines(), theirs.lines());
    loop {
        match (a.next(), b.next()) {
            (Some(x), Some(y)) if x == y => {}
            (None, None) => return (own, theirs),
            (x, y) => return (x.unwrap_or("nothing"), y.unwrap_or("nothing")),
        }
    }
}

/// The first rank that does not see what rank 0 writes into `folder`, with its host. Collective, and
/// the same on all ranks.
pub fn blind_rank(world: &dyn Communicator, folder: &Path) -> Option<(usize, String)> {
    let nonce = folder.join("seen-by-all");
    // Not what an earlier job left there.
    let own = format!("{} {:?}", std::process::id(), std::time::SystemTime::now());
    let written = match world.leads() {
        true => {
            let written = fs::write(&nonce, &own);
            written.map(|()| own).unwrap_or_default().into_bytes()
        }
        false => Vec::new(),
    };
    let written = world.broadcast(written);
    let seen = fs::read(&nonce).is_ok_and(|found| found == written);
    let all = gather(world, (seen, host()));
    if world.leads() {
        let _ = fs::remove_file(&nonce);
    }
    let blind = all.into_iter().enumerate().find(|(_, (seen, _))| !seen);
    blind.map(|(rank, (_, host))| (rank, host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::threads::run;

    fn of_three(
        own: impl Fn(usize) -> Vec<(&'static str, Option<&'static str>)> + Sync,
    ) -> Option<String> {
        let all = run(3, |world| {
            let facts = own(world.rank()).into_iter();
            let facts = facts.map(|(name, value)| (name.to_string(), value.map(str::to_string)));
            difference(&world, facts.collect())
        });
        assert!(all.iter().all(|found| *found == all[0]));
        all[0].clone()
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(of_three(|_| vec![("model", Some("a"))]), None);
        // Only one of a host hashes.
        let hashed = |rank| vec![("model", (rank == 0).then_some("a"))];
        assert_eq!(of_three(hashed), None);
        let message = of_three(|rank| {
            vec![(
                "configuration",
                Some(if rank == 2 {
                    "a = 1\nb = 2"
                } else {
                    "a = 1\nb = 3"
                }),
            )]
        });
        let expected = format!(
            "rank 2 ({}): configuration differs from rank 0's: b = 2 / b = 3",
            host()
        );
        assert_eq!(message, Some(expected));
    }

    #[test]
    fn a_folder_of_its_own_is_found() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let seen = |shared: bool| {
            run(2, |world| {
                let own = if shared { 0 } else { world.rank() };
                blind_rank(&world, folders[own].path())
            })
        };
        assert_eq!(seen(true), [None, None]);
        assert_eq!(seen(false), [Some((1, host())), Some((1, host()))]);
        assert_eq!(fs::read_dir(folders[0].path()).unwrap().count(), 0);
    }
}
