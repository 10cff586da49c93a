//! The same as a pass over the host's memory: no padding, and no scores but a tile's.
//!
//! A unit of work is a tile of a sequence's queries, of all heads that share keys. Tiles and blocks
//! begin at multiples of [`TILE`] in a sequence and sums have one order, so that neither threads
//! nor other sequences change a bit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::super::math::{add, dot};
use super::super::memory::{HostMemory, HostTensor, from_host};
use super::super::vectors::{LANES, by_vectors};
use super::places::Sequence;
use super::tile::{Backward, Extent, Forward, TILE};
use super::{Attended, Kept, PackedAttention};

/// The keys of one block of one head.
struct Block {
    sequence: usize,
    head: usize,
    /// Of its sequence.
    number: usize,
}

/// A tile of queries of the heads that share a head of keys.
struct Unit {
    sequence: usize,
    /// Of keys.
    head: usize,
    /// Of the sequence; as many blocks are before the last one that it sees.
    tile: usize,
}

/// A sequence's keys of one head begin with this block.
type FirstBlocks = Vec<Vec<usize>>;

/// The sequences that hold a token, and where.
type TokenPlaces = Vec<(usize, usize)>;

/// How the sequences of a pass are cut.
struct Cut<'a, B: Backend> {
    over: &'a PackedAttention<B>,
    /// Width of a head in tiles.
    width: usize,
    blocks: Vec<Block>,
    first_blocks: FirstBlocks,
    /// Most work first; of one sequence later tiles before earlier ones.
    units: Vec<Unit>,
}

impl<'a, B: Backend> Cut<'a, B> {
    fn new(over: &'a PackedAttention<B>) -> Self {
        let (mut blocks, mut units) = (Vec::new(), Vec::new());
        let mut first_blocks = Vec::new();
        for (sequence, one) in over.places.sequences.iter().enumerate() {
            let count = one.tokens.len().div_ceil(TILE);
            let of_head = |head: usize| {
                let first = blocks.len();
                blocks.extend((0..count).map(|number| Block {
                    sequence,
                    head,
                    number,
                }));
                let tiles = (one.shared / TILE..count).filter(|_| one.shared < one.tokens.len());
                units.extend(tiles.map(|tile| Unit {
                    sequence,
                    head,
                    tile,
                }));
                first
            };
            first_blocks.push((0..over.heads.kv).map(of_head).collect());
        }
        units.sort_by_key(|unit| std::cmp::Reverse(unit.tile));
        Self {
            over,
            width: over.heads.dim.next_multiple_of(LANES),
            blocks,
            first_blocks,
            units,
        }
    }

    fn sequence(&self, sequence: usize) -> &Sequence {
        &self.over.places.sequences[sequence]
    }

    /// The tokens of a tile's queries.
    fn tokens(&self, unit: &Unit) -> &[usize] {
        let sequence = self.sequence(unit.sequence);
        let end = sequence.tokens.len().min((unit.tile + 1) * TILE);
        &sequence.tokens[sequence.shared.max(unit.tile * TILE)..end]
    }

    fn extent(&self, unit: &Unit) -> Extent {
        let shared = self.sequence(unit.sequence).shared;
        Extent {
            group: self.over.heads.group(),
            queries: self.tokens(unit).len(),
            before: shared.saturating_sub(unit.tile * TILE),
            dim: self.over.heads.dim,
            width: self.width,
        }
    }

    /// The blocks that a tile sees.
    fn blocks_of(&self, unit: &Unit) -> std::ops::Range<usize> {
        let first = self.first_blocks[unit.sequence][unit.head];
        first..first + unit.tile + 1
    }

    /// The heads of `x` `[tokens, kv · dim]` block by block, each block's rows end to end, or its
    /// columns; as they are or rotated.
    fn blocks(&self, x: &[f32], columns: bool, rotated: bool) -> Vec<f32> {
        let (heads, width) = (self.over.heads, self.width);
        let size = TILE * if columns { heads.dim } else { width };
        let mut out = vec![0f32; self.blocks.len() * size];
        let fill = |turned: &mut Vec<f32>, (out, block): (&mut [f32], &Block)| {
            let tokens = &self.sequence(block.sequence).tokens[block.number * TILE..];
            for (i, &token) in tokens.iter().take(TILE).enumerate() {
                let from = &x[(token * heads.kv + block.head) * heads.dim..][..heads.dim];
                let from = match rotated {
                    true => {
                        self.rotate(turned, from, token, 1.0, 1.0);
                        &turned[..]
                    }
                    false => from,
                };
                match columns {
                    true => {
                        let to = out[i..].iter_mut().step_by(TILE);
                        to.zip(from).for_each(|(to, x)| *to = *x);
                    }
                    false => out[i * width..][..heads.dim].copy_from_slice(from),
                }
            }
        };
        out.par_chunks_mut(size)
            .zip(&self.blocks)
            .for_each_init(|| vec![0f32; heads.dim], fill);
        out
    }

    fn rotate(&self, to: &mut [f32], from: &[f32], token: usize, scale: f32, sign: f32) {
        let angles = self.over.rotation.angles();
        angles.rotate(to, from, token, scale, sign);
    }

    /// A tile's rows of `x` `[tokens, heads · dim]`, head by head.
    fn rows(&self, to: &mut [f32], x: &[f32], unit: &Unit, rotated: bool) {
        let (heads, width) = (self.over.heads, self.width);
        for (head, to) in to.chunks_exact_mut(TILE * width).enumerate() {
            let head = unit.head * heads.group() + head;
            for (to, &token) in to.chunks_exact_mut(width).zip(self.tokens(unit)) {
                let from = &x[(token * heads.queries + head) * heads.dim..][..heads.dim];
                let to = &mut to[..heads.dim];
                match rotated {
                    true => self.rotate(to, from, token, heads.scale() as f32, 1.0),
                    false => to.copy_from_slice(from),
                }
            }
        }
    }

    /// Each token's sum of its rows in blocks → `[tokens, kv · dim]`, rotated back or not.
    fn to_tokens(&self, blocks: &[f32], places: &[TokenPlaces], rotated: bool) -> Vec<f32> {
        let (heads, width) = (self.over.heads, self.width);
        let across = heads.kv * heads.dim;
        let mut out = vec![0f32; places.len() * across];
        let fill = |turned: &mut Vec<f32>, (token, out): (usize, &mut [f32])| {
            for (head, out) in out.chunks_exact_mut(heads.dim).enumerate() {
                for &(sequence, i) in &places[token] {
                    let block = self.first_blocks[sequence][head] + i / TILE;
                    let from = &blocks[(block * TILE + i % TILE) * width..][..heads.dim];
                    add(out, from);
                }
                if rotated {
                    self.rotate(turned, out, token, 1.0, -1.0);
                    out.copy_from_slice(turned);
                }
            }
        };
        out.par_chunks_mut(across)
            .with_min_len((places.len() / 64).max(1))
            .enumerate()
            .for_each_init(|| vec![0f32; heads.dim], fill);
        out
    }

    /// Does each unit on one thread, in their order as threads come free.
    fn each_unit<S>(&self, scratch: impl Fn() -> S + Sync, work: impl Fn(&mut S, &Unit) + Sync) {
        let next = AtomicUsize::new(0);
        let threads = rayon::current_num_threads().min(self.units.len());
        let run = |_| {
            let mut scratch = scratch();
            while let Some(unit) = self.units.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(&mut scratch, unit);
            }
        };
        (0..threads).into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Memory that threads write to, each where no other does at the time.
struct Shared<'a>(*mut f32, usize, std::marker::PhantomData<&'a mut [f32]>);

// SAFETY: `slice` leaves it to its caller that threads stay apart.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(values: &'a mut [f32]) -> Self {
        Self(values.as_mut_ptr(), values.len(), std::marker::PhantomData)
    }

    /// # Safety
    ///
    /// Nobody else may use any of these numbers meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, start: usize, count: usize) -> &mut [f32] {
        assert!(start + count <= self.1);
        // SAFETY: within the memory, and the caller's alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), count) }
    }
}

/// Lets the tiles of a sequence add to its blocks in one order: later tiles first, as they begin.
struct Turns {
    /// For each block how many tiles have added to it.
    added: Vec<AtomicUsize>,
    failed: AtomicBool,
}

impl Turns {
    fn new(blocks: usize) -> Self {
        Self {
            added: (0..blocks).map(|_| AtomicUsize::new(0)).collect(),
            failed: AtomicBool::new(false),
        }
    }

    /// Adds to `block` behind `before` tiles. These have begun earlier, and none waits for a later
    /// one.
    fn add(&self, block: usize, before: usize, add: impl FnOnce()) {
        let added = &self.added[block];
        while added.load(Ordering::Acquire) != before {
            assert!(!self.failed.load(Ordering::Relaxed), "a tile failed");
            std::thread::yield_now();
        }
        add();
        added.store(before + 1, Ordering::Release);
    }
}

/// Tells those who wait when the thread panics.
struct Watch<'a>(&'a Turns);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

pub fn forward<B: HostMemory>(
    q: Tensor<B, 2>,
    k: Tensor<B, 2>,
    v: Tensor<B, 2>,
    over: &PackedAttention<B>,
) -> (Tensor<B, 2>, Attended<B>) {
    let (shape, device, heads) = (q.dims(), q.device(), over.heads);
    let cut = Cut::new(over);
    let [queries, keys, values] = [&q, &k, &v].map(|x| HostTensor::new(x.clone()));
    let queries = queries.values();
    let keys = cut.blocks(&keys.values(), true, true);
    let values = cut.blocks(&values.values(), false, false);
    let [tokens, across] = shape;
    let mut out = vec![0f32; tokens * across];
    let mut log_sums = vec![0f32; tokens * heads.queries];
    let (to, to_log_sums) = (Shared::new(&mut out), Shared::new(&mut log_sums));
    let rows = heads.group() * TILE;
    let scratch =
        || [rows * cut.width, rows * cut.width, TILE * TILE, rows].map(|count| vec![0f32; count]);
    let work = |[queries_of, mixed, scores, sums]: &mut [Vec<f32>; 4], unit: &Unit| {
        let extent = cut.extent(unit);
        cut.rows(queries_of, &queries, unit, true);
        mixed.fill(0.0);
        sums.fill(0.0);
        let blocks = cut.blocks_of(unit);
        by_vectors(Forward {
            extent,
            queries: queries_of,
            keys: part(&keys, &blocks, extent.of_columns()),
            values: part(&values, &blocks, extent.of_rows()),
            scores,
            mixed,
            log_sums: sums,
        });
        for (i, &token) in cut.tokens(unit).iter().enumerate() {
            let head = token * heads.queries + unit.head * heads.group();
            // SAFETY: a token's queries are one unit's of each head of keys.
            let (to, to_log_sums) = unsafe {
                (
                    to.slice(head * heads.dim, heads.group() * heads.dim),
                    to_log_sums.slice(head, heads.group()),
                )
            };
            for (head, to) in to.chunks_exact_mut(heads.dim).enumerate() {
                let row = head * TILE + i;
                to.copy_from_slice(&mixed[row * cut.width..][..heads.dim]);
                to_log_sums[head] = sums[row];
            }
        }
    };
    cut.each_unit(scratch, work);
    let mixed: Tensor<B, 2> = from_host(out, shape, &device);
    let log_sums = from_host(log_sums, [tokens * heads.queries], &device);
    let kept = Kept::Host([q, k, v, mixed.clone()], log_sums);
    (mixed, Attended(kept))
}

/// What a thread writes to in the backward step; see [`Backward`].
struct Scratch {
    queries: Vec<f32>,
    grad: Vec<f32>,
    of_queries: Vec<f32>,
    along: Vec<f32>,
    log_sums: Vec<f32>,
    scores: Vec<f32>,
    of_scores: Vec<f32>,
    of_keys: Vec<f32>,
    of_values: Vec<f32>,
}

pub fn backward<B: HostMemory>(
    grad: Tensor<B, 2>,
    attended: Attended<B>,
    over: &PackedAttention<B>,
) -> [Tensor<B, 2>; 3] {
    let (shape, device, heads) = (grad.dims(), grad.device(), over.heads);
    let Kept::Host(kept, log_sums) = attended.0 else {
        unreachable!("another backend's forward step");
    };
    let cut = Cut::new(over);
    let [grad, log_sums] = [HostTensor::new(grad), HostTensor::new(log_sums)];
    let (grad, log_sums) = (grad.values(), log_sums.values());
    let [queries, keys, values, mixed] = kept.map(HostTensor::new);
    let (queries, mixed) = (queries.values(), mixed.values());
    let columns_of_values = cut.blocks(&values.values(), true, false);
    drop(values);
    let columns_of_keys = cut.blocks(&keys.values(), true, true);
    let keys = cut.blocks(&keys.values(), false, true);
    let [tokens, across] = shape;
    let of_block = TILE * cut.width;
    let mut of_queries = vec![0f32; tokens * across];
    let mut of_keys = vec![0f32; cut.blocks.len() * of_block];
    let mut of_values = of_keys.clone();
    let [to_queries, to_keys, to_values] =
        [&mut of_queries, &mut of_keys, &mut of_values].map(|x| Shared::new(x));
    let rows = heads.group() * TILE;
    let scratch = || Scratch {
        queries: vec![0f32; rows * cut.width],
        grad: vec![0f32; rows * cut.width],
        of_queries: vec![0f32; rows * cut.width],
        along: vec![0f32; rows],
        log_sums: vec![0f32; rows],
        scores: vec![0f32; TILE * TILE],
        of_scores: vec![0f32; TILE * TILE],
        of_keys: vec![0f32; of_block],
        of_values: vec![0f32; of_block],
    };
    let turns = Turns::new(cut.blocks.len());
    let work = |own: &mut Scratch, unit: &Unit| {
        let _watch = Watch(&turns);
        let extent = cut.extent(unit);
        cut.rows(&mut own.queries, &queries, unit, true);
        cut.rows(&mut own.grad, &grad, unit, false);
        own.of_queries.fill(0.0);
        for (i, &token) in cut.tokens(unit).iter().enumerate() {
            for head in 0..heads.group() {
                let of_token = token * heads.queries + unit.head * heads.group() + head;
                let numbers = of_token * heads.dim..(of_token + 1) * heads.dim;
                own.along[head * TILE + i] = dot(&grad[numbers.clone()], &mixed[numbers]);
                own.log_sums[head * TILE + i] = log_sums[of_token];
            }
        }
        let blocks = cut.blocks_of(unit);
        let last = cut.sequence(unit.sequence).tokens.len().div_ceil(TILE) - 1;
        by_vectors(Backward {
            extent,
            queries: &own.queries,
            grad: &own.grad,
            along: &own.along,
            log_sums: &own.log_sums,
            keys: part(&keys, &blocks, extent.of_rows()),
            columns_of_keys: part(&columns_of_keys, &blocks, extent.of_columns()),
            columns_of_values: part(&columns_of_values, &blocks, extent.of_columns()),
            scores: &mut own.scores,
            of_scores: &mut own.of_scores,
            of_queries: &mut own.of_queries,
            of_keys: &mut own.of_keys,
            of_values: &mut own.of_values,
            add: |block: usize, of_keys: &[f32], of_values: &[f32]| {
                let block = blocks.start + block;
                turns.add(block, last - unit.tile, || {
                    for (to, x) in [(&to_keys, of_keys), (&to_values, of_values)] {
                        // SAFETY: it is this tile's turn.
                        let to = unsafe { to.slice(block * of_block, of_block) };
                        add(to, x);
                    }
                });
            },
        });
        for (i, &token) in cut.tokens(unit).iter().enumerate() {
            let head = token * heads.queries + unit.head * heads.group();
            // SAFETY: a token's queries are one unit's of each head of keys.
            let to = unsafe { to_queries.slice(head * heads.dim, heads.group() * heads.dim) };
            for (head, to) in to.chunks_exact_mut(heads.dim).enumerate() {
                let from = &own.of_queries[(head * TILE + i) * cut.width..][..heads.dim];
                cut.rotate(to, from, token, heads.scale() as f32, -1.0);
            }
        }
    };
    cut.each_unit(scratch, work);
    drop((keys, columns_of_keys, columns_of_values));
    let places = over.places.by_token();
    let keys = cut.to_tokens(&of_keys, &places, true);
    drop(of_keys);
    let values = cut.to_tokens(&of_values, &places, false);
    let across = heads.kv * heads.dim;
    [
        from_host(of_queries, shape, &device),
        from_host(keys, [tokens, across], &device),
        from_host(values, [tokens, across], &device),
    ]
}

/// The numbers of some blocks of `size` each.
fn part<'a>(values: &'a [f32], blocks: &std::ops::Range<usize>, size: usize) -> &'a [f32] {
    &values[blocks.start * size..blocks.end * size]
}
