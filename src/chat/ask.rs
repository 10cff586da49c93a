//! One question to all models at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::client::{Client, End};
use crate::interrupt;

/// What a model said.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// As far as it came.
    pub text: String,
    /// How it ended; none where it was stopped.
    pub end: Option<End>,
    /// From the request to the end of the answer.
    pub seconds: f64,
}

enum Event {
    Piece(String),
    Over(Result<(End, f64), String>),
}

/// Asks each model its request; `show` hears each piece as it comes, and of a model's end. The user's
/// Ctrl-C stops all; what a server still sends then is not heard any more.
pub fn ask_all(
    clients: &[Arc<Client>],
    requests: Vec<Map<String, Value>>,
    mut show: impl FnMut(usize, Option<&str>),
) -> Vec<Result<Answer, String>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, events) = channel();
    for (index, (client, request)) in clients.iter().zip(requests).enumerate() {
        let (client, stop, sender) = (client.clone(), stop.clone(), sender.clone());
        std::thread::spawn(move || {
            let piece = |text: &str| drop(sender.send((index, Event::Piece(text.into()))));
            let begun = Instant::now();
            let end = client.ask(request, &stop, piece);
            let end = end.map(|end| (end, begun.elapsed().as_secs_f64()));
            let _ = sender.send((index, Event::Over(end)));
        });
    }
    drop(sender);
    let mut answers: Vec<_> = clients.iter().map(|_| Ok(Answer::default())).collect();
    loop {
        let (index, event) = match events.recv_timeout(Duration::from_millis(30)) {
            Ok(event) => event,
            Err(RecvTimeoutError::Disconnected) => return answers,
            Err(RecvTimeoutError::Timeout) if interrupt::flag().load(Ordering::SeqCst) => {
                stop.store(true, Ordering::Relaxed);
                return answers;
            }
            Err(RecvTimeoutError::Timeout) => continue,
        };
        if interrupt::flag().load(Ordering::SeqCst) {
            stop.store(true, Ordering::Relaxed);
            return answers;
        }
        match event {
            Event::Piece(text) => {
                show(index, Some(&text));
                if let Ok(answer) = &mut answers[index] {
                    answer.text += &text;
                }
            }
            Event::Over(Ok((end, seconds))) => {
                show(index, None);
                if let Ok(answer) = &mut answers[index] {
                    answer.end = Some(end);
                    answer.seconds = seconds;
                }
            }
            Event::Over(Err(error)) => {
                show(index, None);
                answers[index] = Err(error);
            }
        }
    }
}
