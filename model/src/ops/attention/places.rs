//! Heads, and where a packed batch's tokens lie in padded batches.

use crate::packed_batch::PackedBatch;

/// Queries of a tile of attention, about, where it is a kernel: scores of one tile are held at a time.
pub const QUERY_TILE: usize = 512;

/// The heads of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub queries: usize,
    /// Of keys and values; as many queries share each.
    pub kv: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Heads {
    /// Queries that share keys and values.
    pub fn group(&self) -> usize {
        self.queries / self.kv
    }

    /// What scores are multiplied by.
    pub fn scale(&self) -> f64 {
        (self.dim as f64).sqrt().recip()
    }
}

/// Which tokens lie in which cells of the padded batches.
#[derive(Debug)]
pub struct Places {
    pub padded: Vec<Padded>,
    /// For each token its cells, by padded batch; the first one's output is the token's.
    pub cells_of: Vec<Vec<(usize, usize)>>,
    pub sequences: Vec<Sequence>,
}

/// One sequence, as it lies without padding.
#[derive(Debug)]
pub struct Sequence {
    pub tokens: Vec<usize>,
    /// How many of them an earlier sequence laid down.
    pub shared: usize,
}

/// One padded batch `[rows, longest]`.
#[derive(Debug)]
pub struct Padded {
    pub longest: usize,
    /// Of its rows.
    pub lengths: Vec<usize>,
    /// For each cell its token; none where it is padding.
    pub tokens: Vec<Option<usize>>,
}

impl Places {
    pub fn new(batch: &PackedBatch) -> Self {
        let mut cells_of = vec![Vec::new(); batch.tokens()];
        let mut laid_down = 0;
        let sequences = batch.places.iter().map(|places| {
            let tokens: Vec<usize> = places.tokens().collect();
            // They are laid down in the order of the sequences.
            let shared = tokens.iter().take_while(|&&t| t < laid_down).count();
            laid_down += tokens.len() - shared;
            Sequence { tokens, shared }
        });
        let sequences = sequences.collect();
        let mut padded: Vec<Padded> = Vec::with_capacity(batch.padded.len());
        for one in &batch.padded {
            let lengths: Vec<usize> = one.rows.iter().map(|&i| batch.places[i].len()).collect();
            padded.push(Padded {
                longest: one.longest,
                tokens: vec![None; lengths.len() * one.longest],
                lengths,
            });
        }
        let rows = batch.padded.iter().enumerate().flat_map(|(number, one)| {
            let rows = one.rows.iter().enumerate();
            rows.map(move |(row, &sequence)| (sequence, number, row))
        });
        let mut rows: Vec<(usize, usize, usize)> = rows.collect();
        // A token's first cell lies in the sequence that laid it down.
        rows.sort_unstable();
        for (sequence, number, row) in rows {
            let (places, padded) = (&batch.places[sequence], &mut padded[number]);
            for (i, token) in places.tokens().enumerate() {
                let cell = row * padded.longest + i;
                padded.tokens[cell] = Some(token);
                cells_of[token].push((number, cell));
            }
        }
        Self {
            padded,
            cells_of,
            sequences,
        }
    }
}

impl Places {
    /// For each token the sequences that hold it, and where.
    pub fn by_token(&self) -> Vec<Vec<(usize, usize)>> {
        let mut found = vec![Vec::new(); self.cells_of.len()];
        for (sequence, one) in self.sequences.iter().enumerate() {
            for (i, &token) in one.tokens.iter().enumerate() {
                found[token].push((sequence, i));
            }
        }
        found
    }
}

impl Padded {
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }
}
