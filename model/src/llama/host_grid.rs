//! Attention's rectangles in the host's memory: tokens into their cells and back.

use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rayon::prelude::*;

use super::layout::PackedBatch;
use super::transformer::Llama;
use crate::host;

/// Where the tokens of a batch lie in attention's rectangles, and how they turn.
pub struct HostBatch {
    pub(super) grids: Vec<HostGrid>,
    /// For each token its cells, by grid; the first one's output is the token's.
    cells_of: Vec<Vec<(usize, usize)>>,
    /// `[tokens, head_dim]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// One rectangle `[rows, longest]`.
pub(super) struct HostGrid {
    pub longest: usize,
    /// Of its rows.
    lengths: Vec<usize>,
    /// For each cell its token; none where it is padding.
    cells: Vec<Option<usize>>,
}

impl HostBatch {
    /// Of a packed batch, with the model's rotary angles.
    pub fn new<B: Backend>(model: &Llama<B>, batch: &PackedBatch<B>) -> Self {
        let mut cells_of = vec![Vec::new(); batch.tokens()];
        let mut grids: Vec<HostGrid> = Vec::with_capacity(batch.grids.len());
        for grid in &batch.grids {
            let lengths: Vec<usize> = grid.rows.iter().map(|&i| batch.places[i].len()).collect();
            grids.push(HostGrid {
                longest: grid.longest,
                cells: vec![None; lengths.len() * grid.longest],
                lengths,
            });
        }
        let rows = batch.grids.iter().enumerate().flat_map(|(number, grid)| {
            let rows = grid.rows.iter().enumerate();
            rows.map(move |(row, &sequence)| (sequence, number, row))
        });
        let mut rows: Vec<(usize, usize, usize)> = rows.collect();
        // A token's first cell lies in the sequence that laid it down.
        rows.sort_unstable();
        for (sequence, number, row) in rows {
            let (places, grid) = (&batch.places[sequence], &mut grids[number]);
            for i in 0..places.len() {
                let (cell, token) = (row * grid.longest + i, places.at(i));
                grid.cells[cell] = Some(token);
                cells_of[token].push((number, cell));
            }
        }
        let (cos, sin) = model.rope.at(batch.positions.clone());
        Self {
            grids,
            cells_of,
            cos: host::take(cos),
            sin: host::take(sin),
        }
    }

    /// Heads of tokens `[tokens, heads · width]` → for each grid
    /// `[rows, kv_heads, group · longest, width]`; zeros for padding.
    pub(super) fn to_grids<B: Backend>(
        &self,
        x: Tensor<B, 2>,
        kv: usize,
        way: Way,
    ) -> Vec<Tensor<B, 4>> {
        let [tokens, across] = x.dims();
        let width = self.cos.len() / tokens;
        let device = x.device();
        let x = host::take(x);
        let grid = |(number, grid): (usize, &HostGrid)| {
            let values = self.fill_grid(&x, width, number, way);
            let group = across / width / kv;
            let shape = [grid.lengths.len(), kv, group * grid.longest, width];
            Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
        };
        self.grids.iter().enumerate().map(grid).collect()
    }

    /// The values of grid `number`, `[rows, heads, longest, width]`.
    fn fill_grid(&self, x: &[f32], width: usize, number: usize, way: Way) -> Vec<f32> {
        let grid = &self.grids[number];
        let across = x.len() / self.cells_of.len();
        let mut values = vec![0f32; grid.cells.len() * across];
        let fill = |(row, values): (usize, &mut [f32])| {
            for i in 0..grid.lengths[row] {
                let cell = row * grid.longest + i;
                let Some(token) = grid.cells[cell] else {
                    continue;
                };
                if matches!(way, Way::Owner) && self.cells_of[token][0] != (number, cell) {
                    continue;
                }
                let from = &x[token * across..(token + 1) * across];
                for (head, from) in from.chunks_exact(width).enumerate() {
                    let at = (head * grid.longest + i) * width;
                    let to = &mut values[at..at + width];
                    match way {
                        Way::Turned(scale) => self.turn(to, from, token, scale, 1.0),
                        Way::Plain | Way::Owner => to.copy_from_slice(from),
                    }
                }
            }
        };
        let row = grid.longest * across;
        values.par_chunks_mut(row.max(1)).enumerate().for_each(fill);
        values
    }

    /// The way back, `[rows, kv_heads, group · longest, width]` of each grid →
    /// `[tokens, heads · width]`: the transpose of [`Self::to_grids`] in the same way.
    pub(super) fn to_tokens<B: Backend>(
        &self,
        grids: Vec<Tensor<B, 4>>,
        heads: usize,
        way: Way,
    ) -> Tensor<B, 2> {
        let tokens = self.cells_of.len();
        let width = self.cos.len() / tokens;
        let across = heads * width;
        let device = grids.first().map(Tensor::device).unwrap_or_default();
        let grids: Vec<Vec<f32>> = grids.into_iter().map(host::take).collect();
        let mut out = vec![0f32; tokens * across];
        let fill = |(token, out): (usize, &mut [f32])| {
            let cells = match way {
                Way::Owner => &self.cells_of[token][..1],
                Way::Plain | Way::Turned(_) => &self.cells_of[token][..],
            };
            let mut turned = vec![0f32; width];
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                for &(number, cell) in cells {
                    let longest = self.grids[number].longest;
                    let (row, i) = (cell / longest, cell % longest);
                    let at = ((row * heads + head) * longest + i) * width;
                    let from = &grids[number][at..at + width];
                    out.iter_mut().zip(from).for_each(|(to, x)| *to += x);
                }
                if let Way::Turned(scale) = way {
                    self.turn(&mut turned, out, token, scale, -1.0);
                    out.copy_from_slice(&turned);
                }
            }
        };
        let grain = (tokens / 64).max(1);
        out.par_chunks_mut(across)
            .with_min_len(grain)
            .enumerate()
            .for_each(fill);
        Tensor::from_data(
            TensorData::new(out, [tokens, across]),
            (&device, DType::F32),
        )
    }

    /// Turns one head to its token's position, or back with `sign` −1.
    fn turn(&self, to: &mut [f32], from: &[f32], token: usize, scale: f32, sign: f32) {
        let width = from.len();
        let half = width / 2;
        let (cos, sin) = (
            &self.cos[token * width..][..width],
            &self.sin[token * width..][..width],
        );
        for i in 0..half {
            let (a, b) = (from[i], from[i + half]);
            to[i] = (a * cos[i] + sign * b * sin[i]) * scale;
            to[i + half] = (b * cos[i + half] + sign * a * sin[i + half]) * scale;
        }
    }
}

/// How heads go between tokens and cells.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// As they are, to every cell of their token.
    Plain,
    /// Turned to their positions and scaled.
    Turned(f32),
    /// The first cell only.
    Owner,
}

impl HostGrid {
    /// How many keys row `row` of all scores sees: its own position and what stands before it.
    pub fn used(&self, row: usize, rows_of_sequence: usize) -> usize {
        let (sequence, at) = (row / rows_of_sequence, row % self.longest);
        match at < self.lengths[sequence] {
            true => at + 1,
            false => 0,
        }
    }
}
