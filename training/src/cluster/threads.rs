//! Ranks that are threads of one process, for tests.

use std::sync::{Arc, Barrier, Mutex};

use super::{Communicator, Done, Transfer};

/// What each rank sends: by receiver where it is not the same for all.
#[derive(Clone, Default)]
struct Letter {
    bytes: Vec<u8>,
    floats: Vec<Vec<f32>>,
    halves: Vec<u16>,
}

struct Shared {
    letters: Mutex<Vec<Letter>>,
    meet: Barrier,
}

/// One of several threads that form a job.
pub(crate) struct Thread {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

/// Runs `work` on `size` ranks; gives their results in order.
pub(crate) fn run<T: Send>(size: usize, work: impl Fn(Thread) -> T + Sync) -> Vec<T> {
    let shared = Arc::new(Shared {
        letters: Mutex::new(vec![Letter::default(); size]),
        meet: Barrier::new(size),
    });
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..size)
            .map(|rank| {
                let shared = shared.clone();
                let work = &work;
                scope.spawn(move || work(Thread { rank, size, shared }))
            })
            .collect();
        let joined = ranks.into_iter().map(|rank| rank.join());
        joined
            .map(|result| result.expect("a rank panicked"))
            .collect()
    })
}

impl Thread {
    fn exchange(&self, letter: Letter) -> Vec<Letter> {
        self.shared.letters.lock().unwrap()[self.rank] = letter;
        self.shared.meet.wait();
        let all = self.shared.letters.lock().unwrap().clone();
        self.shared.meet.wait();
        all
    }
}

impl Communicator for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn local_size(&self) -> usize {
        self.size
    }

    fn barrier(&self) {
        self.shared.meet.wait();
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.all_gather(&bytes).swap_remove(0)
    }

    fn all_gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let bytes = bytes.to_vec();
        let all = self.exchange(Letter {
            bytes,
            ..Letter::default()
        });
        all.into_iter().map(|letter| letter.bytes).collect()
    }

    fn all_to_all(&self, send: Vec<f32>, to: &[usize], from: &[usize]) -> Box<dyn Transfer<f32>> {
        let mut rest = send.as_slice();
        let mut floats = Vec::new();
        for &count in to {
            let (part, behind) = rest.split_at(count);
            floats.push(part.to_vec());
            rest = behind;
        }
        assert!(rest.is_empty());
        let all = self.exchange(Letter {
            floats,
            ..Letter::default()
        });
        let received = all.into_iter().map(|mut l| l.floats.swap_remove(self.rank));
        let received: Vec<Vec<f32>> = received.collect();
        let sizes: Vec<usize> = received.iter().map(Vec::len).collect();
        assert_eq!(sizes, from);
        Box::new(Done(received.concat()))
    }

    fn all_gather_f32(&self, send: Vec<f32>, from: &[usize]) -> Box<dyn Transfer<f32>> {
        let all = self.exchange(Letter {
            floats: vec![send],
            ..Letter::default()
        });
        let received = all.into_iter().map(|letter| letter.floats.concat());
        let received: Vec<Vec<f32>> = received.collect();
        let sizes: Vec<usize> = received.iter().map(Vec::len).collect();
        assert_eq!(sizes, from);
        Box::new(Done(received.concat()))
    }

    fn all_gather_u16(&self, send: Vec<u16>, from: &[usize]) -> Box<dyn Transfer<u16>> {
        let all = self.exchange(Letter {
            halves: send,
            ..Letter::default()
        });
        let received: Vec<Vec<u16>> = all.into_iter().map(|letter| letter.halves).collect();
        let sizes: Vec<usize> = received.iter().map(Vec::len).collect();
        assert_eq!(sizes, from);
        Box::new(Done(received.concat()))
    }

    fn fail(&self, code: u8) -> ! {
        panic!("rank {} ends with {code}", self.rank)
    }
}

/// A rank that panics leaves the others waiting at the barrier, so tests keep to what all reach.
#[test]
fn letters_reach_their_ranks() {
    let found = run(3, |rank| {
        let own = rank.rank() as f32;
        let gathered = rank.all_gather(&vec![rank.rank() as u8; rank.rank()]);
        let sent = rank.all_to_all(vec![own; 6], &[1, 2, 3], &[rank.rank() + 1; 3]);
        (
            gathered,
            sent.wait(),
            super::gather_f64(&rank, &[f64::from(own)]),
        )
    });
    for (rank, (gathered, sent, numbers)) in found.into_iter().enumerate() {
        assert_eq!(gathered, [vec![], vec![1], vec![2, 2]]);
        let expected: Vec<f32> = (0..3)
            .flat_map(|from| vec![from as f32; rank + 1])
            .collect();
        assert_eq!(sent, expected);
        assert_eq!(numbers, [[0.0], [1.0], [2.0]]);
    }
}
