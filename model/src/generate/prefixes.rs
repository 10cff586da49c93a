//! What prompts begin with is computed once: keys, values and outputs of earlier prompts, kept for
//! those that begin alike.

use burn::tensor::{Tensor, backend::Backend};

use super::request::TokenScore;
use crate::llama::slot_cache::Prefix;

/// Fewer shared tokens are not worth the copy.
const LEAST_SHARED: usize = 8;

/// A prompt with fewer new tokens behind what is kept already is not kept too.
const LEAST_NEW: usize = 32;

/// What was computed of a prompt's first tokens.
#[derive(Clone)]
pub(super) struct Computed<B: Backend> {
    pub prefix: Prefix<B>,
    /// The last block's output `[tokens, hidden]`; of the last tokens alone where none are kept.
    pub hidden: Option<Tensor<B, 2>>,
    /// Of the second token and those behind it, as far as they were asked for.
    pub scores: Vec<TokenScore>,
    /// How many of the likeliest tokens the scores have, where there are scores.
    pub likeliest: Option<usize>,
}

impl<B: Backend> Computed<B> {
    /// Tokens that were computed.
    pub fn tokens(&self) -> usize {
        let first = self.prefix.first();
        first.map_or(0, |(_, values)| values.dims()[1])
    }

    /// Of the first `tokens` alone.
    fn first(&self, tokens: usize) -> Self {
        let layers = self.prefix.iter().map(|(keys, values)| {
            let keys = keys.clone().narrow(2, 0, tokens);
            (keys, values.clone().narrow(1, 0, tokens))
        });
        let scores = self.scores.len().min(tokens.saturating_sub(1));
        Self {
            prefix: layers.collect(),
            hidden: self
                .hidden
                .clone()
                .map(|hidden| hidden.narrow(0, 0, tokens)),
            scores: self.scores[..scores].to_vec(),
            likeliest: self.likeliest,
        }
    }
}

struct Entry<B: Backend> {
    prompt: Vec<u32>,
    computed: Computed<B>,
    used: u64,
}

/// Prompts that were computed lately, as many as a number of tokens holds.
pub(super) struct Prefixes<B: Backend> {
    entries: Vec<Entry<B>>,
    /// Most tokens of all entries.
    room: usize,
    clock: u64,
}

/// How many tokens `a` and `b` begin with alike.
pub(super) fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl<B: Backend> Prefixes<B> {
    /// Keeps up to `room` tokens.
    pub fn new(room: usize) -> Self {
        Self {
            entries: Vec::new(),
            room,
            clock: 0,
        }
    }

    /// Most tokens that are kept.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Tokens that are kept.
    pub fn tokens(&self) -> usize {
        self.entries.iter().map(|entry| entry.prompt.len()).sum()
    }

    /// The most that was computed of what `prompt` begins with, of equal ones that with most scores.
    pub fn find(&mut self, prompt: &[u32]) -> Option<Computed<B>> {
        let shares = self.entries.iter_mut().map(|entry| {
            let shared = shared(&entry.prompt, prompt);
            ((shared, entry.computed.likeliest), entry)
        });
        let ((shared, _), entry) = shares.max_by_key(|(share, _)| *share)?;
        if shared < LEAST_SHARED {
            return None;
        }
        self.clock += 1;
        entry.used = self.clock;
        Some(entry.computed.first(shared))
    }

    /// Keeps what was computed of a whole prompt, unless others have nearly all of it. What was not
    /// used for longest makes room.
    pub fn keep(&mut self, prompt: &[u32], computed: &Computed<B>) {
        let enough = |entry: &Entry<B>| {
            let missing = prompt.len() - shared(&entry.prompt, prompt);
            missing < LEAST_NEW && entry.computed.likeliest >= computed.likeliest
        };
        let size = prompt.len();
        if !(LEAST_SHARED..=self.room).contains(&size) || self.entries.iter().any(enough) {
            return;
        }
        self.entries.retain(|entry| {
            let inside = shared(&entry.prompt, prompt) == entry.prompt.len();
            !inside || entry.computed.likeliest > computed.likeliest
        });
        while self.tokens() + size > self.room {
            let entries = self.entries.iter().enumerate();
            match entries.min_by_key(|(_, entry)| entry.used) {
                Some((oldest, _)) => self.entries.swap_remove(oldest),
                None => return,
            };
        }
        self.clock += 1;
        self.entries.push(Entry {
            prompt: prompt.to_vec(),
            computed: computed.clone(),
            used: self.clock,
        });
    }
}
