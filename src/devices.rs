//! Which card, and how many cores of its host, a rank has.

use serde::{Deserialize, Serialize};
use sppo_training::cluster::{gather, world};
use sppo_training::files::host;

use crate::backend::{Device, cuda_cards};
use crate::errors::user;

/// What a rank asks for, and what it may have.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claim {
    host: String,
    kind: String,
    number: Option<usize>,
    /// UUIDs of the cards that it sees.
    cards: Result<Vec<String>, String>,
}

/// The device of this rank: of CUDA's cards each rank of a host has one of its own. Collective.
pub fn of_rank(device: Device) -> anyhow::Result<Device> {
    let claim = Claim {
        host: host(),
        kind: device.kind().into(),
        number: device.number(),
        cards: match device.kind() {
            "cuda" => cuda_cards(),
            _ => Ok(Vec::new()),
        },
    };
    let numbers = assign(&gather(world(), claim)).map_err(user)?;
    match numbers[world().rank()] {
        Some(number) => Ok(device.with_number(number)),
        None => Ok(device),
    }
}

/// The number of each rank's card, where the device has cards of which it takes one.
fn assign(claims: &[Claim]) -> Result<Vec<Option<usize>>, String> {
    let mut numbers = Vec::with_capacity(claims.len());
    let mut taken: Vec<(&str, usize)> = Vec::new();
    for (rank, claim) in claims.iter().enumerate() {
        let host = &claim.host;
        let here = claims.iter().enumerate().filter(|(_, c)| c.host == *host);
        let here: Vec<usize> = here.map(|(rank, _)| rank).collect();
        if claim.kind == "wgpu" && here.len() > 1 {
            return Err(format!(
                "{host}: {} have one device, wgpu; start one rank a host, or use cuda, which gives \
                 each rank a card of its own",
                ranks(&here)
            ));
        }
        if claim.kind != "cuda" {
            numbers.push(None);
            continue;
        }
        let number = card_number(rank, claim, &here)?;
        let card = claim.cards.iter().flatten().nth(number);
        let card = card.map_or("", String::as_str);
        if let Some((_, other)) = taken.iter().find(|(taken, _)| *taken == card) {
            return Err(format!(
                "{host}: {} have one CUDA card, {card}; start at most one rank a card, and let \
                 each see all cards of its host or one of its own (CUDA_VISIBLE_DEVICES)",
                ranks(&[*other, rank])
            ));
        }
        taken.push((card, rank));
        numbers.push(Some(number));
    }
    Ok(numbers)
}

/// The number of a rank's CUDA card; `here` are the ranks of its host.
fn card_number(rank: usize, claim: &Claim, here: &[usize]) -> Result<usize, String> {
    let host = &claim.host;
    if let Some(number) = claim.number {
        return Err(format!(
            "{host}: cuda:{number} is asked for by {}; write cuda, which gives each rank a card of \
             its own",
            ranks(here)
        ));
    }
    let cards = match &claim.cards {
        Ok(cards) => cards.len(),
        Err(error) => return Err(format!("{host}: rank {rank} sees no CUDA card: {error}")),
    };
    let local = here.iter().position(|other| *other == rank).unwrap_or(0);
    match cards {
        // That which was given to this process alone.
        1 => Ok(0),
        cards if local < cards => Ok(local),
        cards => Err(format!(
            "{host}: {} for {cards} CUDA cards; start at most one rank a card",
            ranks(here)
        )),
    }
}

fn ranks(numbers: &[usize]) -> String {
    let words: Vec<String> = numbers.iter().map(usize::to_string).collect();
    match words.as_slice() {
        [one] => format!("rank {one}"),
        [but_last @ .., last] => format!("ranks {} and {last}", but_last.join(", ")),
        [] => "no rank".into(),
    }
}

/// Gives this rank its share of the cores: those that it may use, among the ranks of this host that
/// may use them too. $RAYON_NUM_THREADS goes before. Collective.
pub fn share_cores() {
    let own = allowed_cores();
    let all = gather(world(), (host(), own.clone()));
    let mine = &all[world().rank()].0;
    let shares = |(host, cores): &&(String, Vec<usize>)| {
        host == mine && (cores.is_empty() || cores.iter().any(|core| own.contains(core)))
    };
    let sharers = all.iter().filter(shares).count().max(1);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let machine = cores_of_machine();
    if own.len() == 1 && machine > 1 && world().leads() {
        tracing::warn!(
            "each rank may use one of the {machine} cores of its machine: give mpirun \
             --bind-to none (srun: --cpus-per-task) to use all"
        );
    }
    let given = std::env::var("RAYON_NUM_THREADS").ok();
    if given.and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) > 0 {
        return;
    }
    let threads = (cores / sharers).max(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    match pool.build_global() {
        Ok(()) => tracing::debug!("{threads} threads, {sharers} ranks on {cores} cores"),
        Err(error) => {
            tracing::warn!("this rank computes with other than {threads} threads: {error}")
        }
    }
}

/// The cores that this process may use; empty where the system does not tell.
#[cfg(target_os = "linux")]
fn allowed_cores() -> Vec<usize> {
    // SAFETY: the set is a plain array of bits, valid when zeroed, of the size that is passed.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        let most = 8 * size_of::<libc::cpu_set_t>();
        (0..most)
            .filter(|&core| libc::CPU_ISSET(core, &set))
            .collect()
    }
}

#[cfg(not(target_os = "linux"))]
fn allowed_cores() -> Vec<usize> {
    Vec::new()
}

#[cfg(target_os = "linux")]
fn cores_of_machine() -> usize {
    // SAFETY: asks for a number.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    usize::try_from(cores).unwrap_or(1)
}

#[cfg(not(target_os = "linux"))]
fn cores_of_machine() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(host: &str, kind: &str, cards: &[&str]) -> Claim {
        Claim {
            host: host.into(),
            kind: kind.into(),
            number: None,
            cards: Ok(cards.iter().map(|card| card.to_string()).collect()),
        }
    }

    #[test]
    fn each_rank_has_a_card_of_its_own() {
        let two = |host| {
            claim(
                host,
                "cuda",
                if host == "a" {
                    &["1", "2"]
                } else {
                    &["3", "4"]
                },
            )
        };
        let all = [two("a"), two("b"), two("a"), two("b")];
        assert_eq!(assign(&all), Ok(vec![Some(0), Some(0), Some(1), Some(1)]));
        // Each process sees one.
        let all = [claim("a", "cuda", &["1"]), claim("a", "cuda", &["2"])];
        assert_eq!(assign(&all), Ok(vec![Some(0), Some(0)]));
        let cpus = [claim("a", "flex", &[]), claim("a", "flex", &[])];
        assert_eq!(assign(&cpus), Ok(vec![None, None]));
        let hosts = [claim("a", "wgpu", &[]), claim("b", "wgpu", &[])];
        assert_eq!(assign(&hosts), Ok(vec![None, None]));
    }

    #[test]
    fn what_cannot_be_shared_is_refused() {
        let refused = |all: &[Claim]| assign(all).unwrap_err();
        let one = claim("a", "cuda", &["1f"]);
        let message = refused(&[claim("b", "cuda", &["2"]), one.clone(), one]);
        assert!(
            message.starts_with("a: ranks 1 and 2 have one CUDA card, 1f;"),
            "{message}"
        );
        let two = || claim("a", "cuda", &["1", "2"]);
        let message = refused(&[two(), two(), two()]);
        assert!(
            message.starts_with("a: ranks 0, 1 and 2 for 2 CUDA cards;"),
            "{message}"
        );
        let numbered = Claim {
            number: Some(1),
            ..two()
        };
        let message = refused(&[numbered.clone(), numbered]);
        assert!(
            message.starts_with("a: cuda:1 is asked for by ranks 0 and 1;"),
            "{message}"
        );
        let wgpu = claim("a", "wgpu", &[]);
        let message = refused(&[wgpu.clone(), wgpu]);
        assert!(
            message.starts_with("a: ranks 0 and 1 have one device, wgpu;"),
            "{message}"
        );
        let none = Claim {
            cards: Err("no driver".into()),
            ..two()
        };
        assert_eq!(refused(&[none]), "a: rank 0 sees no CUDA card: no driver");
    }
}
