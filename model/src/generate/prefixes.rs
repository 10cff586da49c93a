//! What prompts begin with is computed once: keys, values and outputs of earlier prompts, kept for
//! those that begin alike.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{Tensor, backend::Backend};

use super::request::TokenScore;
use crate::llama::Prefix;
use crate::ops::ModelOps;
use crate::packed_batch::common_prefix;

/// Fewer shared tokens are not worth the copy.
pub(super) const LEAST_SHARED: usize = 8;

/// Most prompts that are looked through.
const MOST_ENTRIES: usize = 4096;

/// What was computed of some tokens of a prompt.
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
        self.prefix.tokens()
    }
}

/// The part of a prompt that no other has.
struct Entry<B: Backend> {
    /// The whole prompt.
    prompt: Vec<u32>,
    /// The entry that has the tokens before `start`.
    parent: Option<u64>,
    start: usize,
    /// Keys and values, of the tokens from `start`.
    prefix: Prefix<B>,
    /// Outputs, of the same.
    hidden: Tensor<B, 2>,
    /// Of all its tokens but the first.
    scores: Vec<TokenScore>,
    likeliest: Option<usize>,
    used: u64,
}

impl<B: Backend> Entry<B> {
    fn own(&self) -> usize {
        self.prompt.len() - self.start
    }
}

/// Prompts that were computed lately, as many as a number of tokens holds; what they share is there
/// once.
pub(super) struct Prefixes<B: Backend> {
    entries: BTreeMap<u64, Entry<B>>,
    /// Most tokens of all entries.
    room: usize,
    tokens: usize,
    clock: u64,
}

/// Somebody who panicked left the entries whole.
pub(super) fn lock<B: Backend>(kept: &Mutex<Prefixes<B>>) -> MutexGuard<'_, Prefixes<B>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: ModelOps> Prefixes<B> {
    /// Keeps up to `room` tokens.
    pub fn new(room: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            room,
            tokens: 0,
            clock: 0,
        }
    }

    /// Most tokens that are kept.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Tokens that are kept.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The entry that begins like `prompt` for longest, of equal ones that with most scores, and how
    /// many tokens that are.
    fn nearest(&self, prompt: &[u32]) -> Option<(u64, usize)> {
        let shares = self.entries.iter().map(|(&id, entry)| {
            let shared = common_prefix(&entry.prompt, prompt);
            ((shared, entry.likeliest), id)
        });
        let ((shared, _), id) = shares.max_by_key(|(share, _)| *share)?;
        (shared >= LEAST_SHARED).then_some((id, shared))
    }

    /// How many tokens that `prompt` begins with were computed.
    pub fn shares(&self, prompt: &[u32]) -> usize {
        self.nearest(prompt).map_or(0, |(_, shared)| shared)
    }

    /// The most that was computed of what `prompt` begins with.
    pub fn find(&mut self, prompt: &[u32]) -> Option<Computed<B>> {
        let (id, shared) = self.nearest(prompt)?;
        let entry = self.entries.get(&id)?;
        let scores = entry.scores.len().min(shared - 1);
        let (scores, likeliest) = (entry.scores[..scores].to_vec(), entry.likeliest);
        let (prefix, hidden) = self.gather(id, shared)?;
        Some(Computed {
            prefix,
            hidden: Some(hidden),
            scores,
            likeliest,
        })
    }

    /// Keys, values and outputs of the first `tokens` of an entry's prompt.
    fn gather(&mut self, id: u64, tokens: usize) -> Option<(Prefix<B>, Tensor<B, 2>)> {
        self.clock += 1;
        let (mut parts, mut hidden) = (Vec::new(), Vec::new());
        let (mut next, mut end) = (Some(id), tokens);
        while let Some(id) = next.filter(|_| end > 0) {
            let entry = self.entries.get_mut(&id)?;
            entry.used = self.clock;
            if end > entry.start {
                let count = end - entry.start;
                hidden.push(entry.hidden.clone().narrow(0, 0, count));
                parts.push(entry.prefix.part(0, count));
                end = entry.start;
            }
            next = entry.parent;
        }
        parts.reverse();
        hidden.reverse();
        let hidden = match hidden.len() {
            1 => hidden.remove(0),
            _ => Tensor::cat(hidden, 0),
        };
        Some((Prefix::joined(parts), hidden))
    }

    /// Keeps what was computed of a whole prompt. What was not used for longest makes room.
    pub fn keep(&mut self, prompt: &[u32], computed: &Computed<B>) {
        let Some(hidden) = &computed.hidden else {
            return;
        };
        if !(LEAST_SHARED..=self.room).contains(&prompt.len()) {
            return;
        }
        let mut nearest = self.nearest(prompt);
        if let Some((id, shared)) = nearest
            && shared == prompt.len()
            && let Some(entry) = self.entries.get_mut(&id)
        {
            // All of it is there, scores perhaps not.
            if computed.likeliest > entry.likeliest && entry.prompt.len() == prompt.len() {
                entry.scores = computed.scores.clone();
                entry.likeliest = computed.likeliest;
            }
            if entry.likeliest >= computed.likeliest {
                return;
            }
        }
        // One that is all there is kept by its last token, with its scores.
        nearest = nearest.map(|(id, shared)| (id, shared.min(prompt.len() - 1)));
        let start = nearest.map_or(0, |(_, shared)| shared);
        let count = prompt.len() - start;
        self.clock += 1;
        let id = self.clock;
        if let Some(parent) = nearest.and_then(|(parent, _)| self.entries.get_mut(&parent)) {
            parent.used = id;
        }
        let entry = Entry {
            prompt: prompt.to_vec(),
            parent: nearest.map(|(parent, _)| parent),
            start,
            // Copies: a view would keep the whole prompt's.
            prefix: computed.prefix.part(start, count).copied(),
            hidden: hidden.clone().narrow(0, start, count).mul_scalar(1.0),
            scores: computed.scores.clone(),
            likeliest: computed.likeliest,
            used: id,
        };
        self.tokens += count;
        self.entries.insert(id, entry);
        self.make_room(id);
    }

    /// Drops entries that no other stands on, those first that were not used for longest, but for
    /// `newest`.
    fn make_room(&mut self, newest: u64) {
        while self.tokens > self.room || self.entries.len() > MOST_ENTRIES {
            let parents: Vec<u64> = self.entries.values().filter_map(|e| e.parent).collect();
            let leaves = self.entries.iter();
            let leaves = leaves.filter(|(id, _)| **id != newest && !parents.contains(id));
            let oldest = leaves
                .min_by_key(|(_, entry)| entry.used)
                .map(|(id, _)| *id);
            let gone = oldest.unwrap_or(newest);
            match self.entries.remove(&gone) {
                Some(entry) => self.tokens -= entry.own(),
                None => return,
            }
        }
    }
}
