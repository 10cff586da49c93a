//! Attention weights with relative positions, as in DeBERTa (arXiv 2111.09543).

use std::sync::Arc;

use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};
use rayon::prelude::*;

use super::device::{Placement, ints};
use super::math;
use super::memory::{HostMemory, HostTensor, cast, map, to_f32};

/// For sequences of one length, where each query and key read the tables of positions.
#[derive(Clone, Debug)]
pub struct RelativePositions<B: Backend> {
    /// `[2 · length − 1]`: the row of a table for distance length − 1 − m.
    by_distance: Arc<[u32]>,
    /// Rows of a table.
    rows: usize,
    /// For every (query, key), where its two terms stand in a `[length · rows]` table, where tables
    /// are not read on the host.
    places: Option<[Tensor<B, 1, Int>; 2]>,
}

impl<B: Placement> RelativePositions<B> {
    /// `by_distance` `[2 · length − 1]` holds rows below `rows`, for distance length − 1 − m.
    pub fn new(by_distance: Vec<u32>, rows: usize, dtype: DType, device: &B::Device) -> Self {
        let mut positions = Self {
            by_distance: by_distance.into(),
            rows,
            places: None,
        };
        if !B::in_passes(dtype) {
            positions.places = Some(positions.places(device));
        }
        positions
    }
}

impl<B: Backend> RelativePositions<B> {
    fn length(&self) -> usize {
        self.by_distance.len().div_ceil(2)
    }

    /// The rows of query `i` for all keys, `[length]`.
    fn of_query(&self, i: usize) -> &[u32] {
        let length = self.length();
        &self.by_distance[length - 1 - i..2 * length - 1 - i]
    }

    fn places(&self, device: &B::Device) -> [Tensor<B, 1, Int>; 2] {
        if let Some(places) = &self.places {
            return places.clone();
        }
        let cells = (0..self.length()).flat_map(|i| {
            let rows = self.of_query(i).iter().enumerate();
            rows.map(move |(j, &row)| (i, j, row as usize))
        });
        let to = cells
            .clone()
            .map(|(i, _, row)| (i * self.rows + row) as i64);
        let from = cells.map(|(_, j, row)| (j * self.rows + row) as i64);
        [ints(to.collect(), device), ints(from.collect(), device)]
    }
}

pub(super) fn weights<B: Backend>(
    contents: Tensor<B, 4>,
    to: Tensor<B, 3>,
    from: Tensor<B, 3>,
    positions: &RelativePositions<B>,
    scale: f64,
) -> Tensor<B, 4> {
    let (shape, dtype) = (contents.dims(), contents.dtype());
    let [heads, sequences, length, _] = shape;
    let [to_places, from_places] = positions.places(&contents.device());
    let spread = |table: Tensor<B, 3>, places: Tensor<B, 1, Int>| {
        let table = table.reshape([heads * sequences, length * positions.rows]);
        to_f32(table.select(1, places).reshape(shape))
    };
    let scores = to_f32(contents) + spread(to, to_places) + spread(from, from_places);
    cast(softmax(scores * scale, 3), dtype)
}

pub(super) fn weights_on_host<B: HostMemory>(
    contents: Tensor<B, 4>,
    to: Tensor<B, 3>,
    from: Tensor<B, 3>,
    positions: &RelativePositions<B>,
    scale: f64,
) -> Tensor<B, 4> {
    let length = contents.dims()[2];
    let rows = positions.rows;
    let (to, from) = (HostTensor::new(to), HostTensor::new(from));
    let (to, from) = (to.values(), from.values());
    let of_query = |(row, scores): (usize, &mut [f32])| {
        let (matrix, i) = (row / length, row % length);
        let to = &to[row * rows..][..rows];
        let from = &from[matrix * length * rows..][..length * rows];
        let tables = scores.iter_mut().zip(from.chunks_exact(rows));
        for ((score, from), &place) in tables.zip(positions.of_query(i)) {
            *score = (*score + to[place as usize] + from[place as usize]) * scale as f32;
        }
        math::softmax(scores);
    };
    map(contents, |scores| {
        let scores = scores.par_chunks_mut(length).enumerate();
        scores.with_min_len(16).for_each(of_query);
    })
}
