//! The engine behind its queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

struct Sink {
    events: Sender<(usize, Result<Event, GenerateError>)>,
    gone: Arc<AtomicBool>,
}

impl EventSink for Sink {
    fn send(&mut self, request: usize, event: Result<Event, GenerateError>) -> bool {
        !self.is_gone() && self.events.send((request, event)).is_ok()
    }

    fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }
}

struct Client {
    events: Receiver<(usize, Result<Event, GenerateError>)>,
    gone: Arc<AtomicBool>,
}

fn job(requests: Vec<Request>) -> (Job, Client) {
    let (sender, events) = channel();
    let gone = Arc::new(AtomicBool::new(false));
    let sink = Sink {
        events: sender,
        gone: gone.clone(),
    };
    let sink = Box::new(sink);
    (Job { requests, sink }, Client { events, gone })
}

fn requests(seed: u64, count: usize, new: usize) -> Vec<Request> {
    let request = |number: usize| {
        let prompt = (0..20).map(|i| (i * 13 + number as u32) % 400).collect();
        let mut params = params(new, seed);
        params.stop_ids.clear();
        Request::new(format!("{seed} {number}"), prompt, 2, params)
    };
    (0..count).map(request).collect()
}

fn engine() -> Engine<Flex> {
    let decoder = decoder::<Flex>();
    let plan = plan(&decoder.config, 4, 2);
    Engine::new(decoder, plan, Some(tokenizer()))
}

/// The samples of a job, all of which must come; the channel closes behind them.
fn answers(client: &Client, requests: &[Request]) -> Vec<Vec<Sample>> {
    let mut found: Vec<Vec<Option<Sample>>> =
        requests.iter().map(|r| vec![None; r.samples]).collect();
    for (number, event) in client.events.iter() {
        if let Event::Finished { of, sample, .. } = event.unwrap() {
            assert!(found[number][of.sample].replace(sample).is_none());
        }
    }
    found
        .into_iter()
        .map(|all| all.into_iter().map(Option::unwrap).collect())
        .collect()
}

#[test]
fn jobs_of_many_clients_are_answered_as_alone() {
    let (handle, queue) = engine_queue(100);
    let clients: Vec<_> = (0..10)
        .map(|seed| {
            let handle = handle.clone();
            thread::spawn(move || {
                let requests = requests(seed, 3, 6);
                let (job, client) = job(requests.clone());
                handle.submit(job).unwrap();
                (answers(&client, &requests), requests)
            })
        })
        .collect();
    let asking = handle.clone();
    drop(handle);
    let watch = thread::spawn(move || {
        for client in clients {
            let (found, requests) = client.join().unwrap();
            assert_eq!(found, one_by_one(&decoder::<Flex>(), &requests));
        }
        let counts = asking.counts();
        assert_eq!(
            (counts.waiting, counts.accepted, counts.cancelled),
            (0, 10, 0)
        );
        assert_eq!(counts.engine.drawn, 10 * 3 * 2 * 6);
    });
    queue.run(engine(), || false).unwrap();
    watch.join().unwrap();
}

#[test]
fn what_cannot_be_answered_says_so_and_the_rest_goes_on() {
    let (handle, queue) = engine_queue(4);
    let mut all = requests(0, 3, 2);
    all[1].prompt = vec![9999];
    let (job, client) = job(all);
    handle.submit(job).unwrap();
    drop(handle);
    queue.run(engine(), || false).unwrap();
    let (mut refused, mut finished) = (Vec::new(), 0);
    for (number, event) in client.events.iter() {
        match event {
            Ok(Event::Finished { .. }) => finished += 1,
            Ok(_) => {}
            Err(error) => refused.push((number, error.to_string())),
        }
    }
    assert_eq!((finished, refused.len(), refused[0].0), (4, 1, 1));
    assert!(refused[0].1.contains("9999"));
}

#[test]
fn a_full_queue_refuses_and_an_engine_that_is_gone_says_so() {
    let (handle, queue) = engine_queue(2);
    let submit = || handle.submit(job(requests(0, 1, 1)).0);
    assert_eq!((submit(), submit()), (Ok(()), Ok(())));
    assert_eq!(submit(), Err(NotAccepted::Full));
    assert_eq!((handle.counts().waiting, handle.counts().accepted), (2, 2));
    drop(queue);
    assert_eq!(submit(), Err(NotAccepted::Full));
    let (handle, queue) = engine_queue(2);
    drop(queue);
    assert_eq!(
        handle.submit(job(requests(0, 1, 1)).0),
        Err(NotAccepted::Stopped)
    );
}

/// A client that goes frees its slots, whether its job has begun or waits.
#[test]
fn clients_that_go_are_forgotten() {
    let (handle, queue) = engine_queue(100);
    let long = || requests(1, 4, 400);
    let (first, going) = job(long());
    let (second, waiting) = job(long());
    let (third, staying) = job(requests(2, 1, 3));
    for job in [first, second, third] {
        handle.submit(job).unwrap();
    }
    let asking = handle.clone();
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            // It has begun.
            going.events.recv().unwrap().1.unwrap();
            going.gone.store(true, Ordering::SeqCst);
            waiting.gone.store(true, Ordering::SeqCst);
            let found = answers(&staying, &requests(2, 1, 3));
            assert_eq!(found[0].len(), 2);
            let begun = Instant::now();
            while asking.counts().engine.running > 0 || asking.counts().cancelled < 2 {
                assert!(
                    begun.elapsed() < Duration::from_secs(60),
                    "{:?}",
                    asking.counts()
                );
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(asking.counts().waiting, 0);
            stop.store(true, Ordering::SeqCst);
        });
        queue.run(engine(), || stop.load(Ordering::SeqCst)).unwrap();
    });
    drop(handle);
}
