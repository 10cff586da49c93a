//! The next tokens of several prompts in one pass: laid end to end for everything but attention,
//! which each prompt's queries have over that prompt's tokens alone.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};

use super::attention::AttentionContext;
use super::prefix::{LayerPrefix, Prefix};
use crate::ops::{Heads, ModelOps, PackedAttention, Rotation, Visible, columns_on_host};
use crate::packed_batch::PackedBatch;

/// The next tokens of a prompt, at least one, and what was computed before them.
pub struct Piece<'a, B: Backend> {
    /// Of the prompt.
    pub tokens: &'a [u32],
    /// Gets theirs.
    pub prefix: &'a mut Prefix<B>,
}

/// Where the tokens of a piece lie in a pass.
struct Place {
    /// Of the pieces as they were given.
    piece: usize,
    /// In the pass. On a host a row alone would be computed by other routines than several are: one
    /// token is two rows.
    rows: Range<usize>,
    /// Its own of those.
    tokens: usize,
    /// Tokens before it.
    before: usize,
}

/// How the pieces of a pass lie end to end.
pub(super) struct Layout {
    /// On devices with kernels those that begin a prompt come first.
    places: Vec<Place>,
    /// How many begin a prompt and are attended to together.
    fresh: usize,
    pub ids: Vec<u32>,
    pub positions: Vec<u32>,
}

impl Layout {
    pub fn new<B: ModelOps>(pieces: &[Piece<'_, B>]) -> Self {
        let is_fresh = |&piece: &usize| B::HAS_KERNELS && pieces[piece].prefix.tokens() == 0;
        let (first, others): (Vec<usize>, Vec<usize>) = (0..pieces.len()).partition(is_fresh);
        let mut found = Self {
            fresh: first.len(),
            places: Vec::with_capacity(pieces.len()),
            ids: Vec::new(),
            positions: Vec::new(),
        };
        for piece in first.into_iter().chain(others) {
            let (tokens, before) = (pieces[piece].tokens, pieces[piece].prefix.tokens());
            debug_assert!(!tokens.is_empty());
            let start = found.ids.len();
            found.ids.extend_from_slice(tokens);
            if tokens.len() == 1 && B::ON_HOST {
                found.ids.extend_from_slice(tokens);
            }
            let rows = start..found.ids.len();
            let after = before + rows.len();
            found.positions.extend(before as u32..after as u32);
            found.places.push(Place {
                piece,
                rows,
                tokens: tokens.len(),
                before,
            });
        }
        found
    }

    /// The prompts that begin, for attention over all of them at once.
    pub fn fresh<B: Backend>(&self, pieces: &[Piece<'_, B>]) -> Option<PackedBatch> {
        let places = &self.places[..self.fresh];
        let sequences = places.iter().map(|place| pieces[place.piece].tokens);
        (self.fresh > 0).then(|| PackedBatch::apart(&sequences.collect::<Vec<_>>()))
    }

    /// The rows of each piece.
    pub fn rows(&self) -> Vec<Range<usize>> {
        let mut rows = vec![0..0; self.places.len()];
        for place in &self.places {
            rows[place.piece] = place.rows.start..place.rows.start + place.tokens;
        }
        rows
    }
}

/// Attention of a pass.
pub(super) struct PrefillContext<'a, B: Backend> {
    pub layout: &'a Layout,
    /// What is before each piece, layer by layer.
    pub before: Vec<Box<dyn Iterator<Item = LayerPrefix<B>> + 'a>>,
    /// To the positions of all rows.
    pub rotation: Rotation<B>,
    pub heads: Heads,
    /// Over the prompts that begin.
    pub fresh: Option<PackedAttention<B>>,
    pub made: Made<B>,
}

/// The layers' keys and values of a pass, with those before them.
pub(super) struct Made<B: Backend> {
    /// Of all rows, where prompts begin together.
    together: Vec<LayerPrefix<B>>,
    /// Of each of the other pieces.
    apart: Vec<Vec<LayerPrefix<B>>>,
}

impl<B: Backend> Made<B> {
    pub fn new(layout: &Layout) -> Self {
        Self {
            together: Vec::new(),
            apart: vec![Vec::new(); layout.places.len() - layout.fresh],
        }
    }

    /// Hands the pieces theirs.
    pub fn give(self, layout: &Layout, pieces: &mut [Piece<'_, B>]) {
        let together = Arc::new(self.together);
        let (first, others) = layout.places.split_at(layout.fresh);
        for place in first {
            let own = place.rows.clone();
            *pieces[place.piece].prefix = Prefix::new(together.clone(), own);
        }
        for (place, layers) in others.iter().zip(self.apart) {
            let own = 0..place.before + place.tokens;
            *pieces[place.piece].prefix = Prefix::new(Arc::new(layers), own);
        }
    }
}

impl<B: ModelOps> AttentionContext<B> for PrefillContext<'_, B> {
    fn attend(
        &mut self,
        _layer: usize,
        queries: Tensor<B, 2>,
        keys: Tensor<B, 2>,
        values: Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let (heads, rows) = (self.heads, queries.dims()[0]);
        let turned = B::rotate(keys.clone(), &self.rotation, 1.0);
        let by_token = values.clone().reshape([rows, heads.kv, heads.dim]);
        let (first, others) = self.layout.places.split_at(self.layout.fresh);
        let mut mixed = Vec::with_capacity(1 + others.len());
        if let (Some(fresh), Some(last)) = (&self.fresh, first.last()) {
            let begins = |x: Tensor<B, 2>| match last.rows.end == rows {
                true => x,
                false => x.narrow(0, 0, last.rows.end),
            };
            mixed.push(B::packed_attention(
                begins(queries.clone()),
                begins(keys),
                begins(values),
                fresh,
            ));
            self.made.together.push([turned.clone(), by_token.clone()]);
        }
        if !others.is_empty() {
            let queries = B::rotate(queries, &self.rotation, heads.scale());
            for (place, made) in others.iter().zip(&mut self.made.apart) {
                let of = |x: &Tensor<B, 3>| match place.rows.len() == rows {
                    true => x.clone(),
                    false => x.clone().narrow(0, place.rows.start, place.rows.len()),
                };
                let before = self.before[place.piece].next();
                let all = behind::<B>(before, [of(&turned), of(&by_token)]);
                mixed.push(attend_one(of(&queries), &all, place.before, heads));
                made.push(all);
            }
        }
        cat(mixed, 0)
    }
}

/// New keys and values behind those before them, and as many zeros as attention takes.
fn behind<B: ModelOps>(
    before: Option<LayerPrefix<B>>,
    [keys, values]: [Tensor<B, 3>; 2],
) -> LayerPrefix<B> {
    let [place_of_keys, place_of_values] = Prefix::<B>::PLACES;
    let (keys, values) = match B::ON_HOST {
        true => (B::permuted(keys, [1, 2, 0]), B::permuted(values, [1, 0, 2])),
        false => (keys, values),
    };
    let mut columns = values.dims()[place_of_values];
    let (mut all_keys, mut all_values) = (vec![keys], vec![values]);
    if let Some([keys, values]) = before {
        columns += values.dims()[place_of_values];
        all_keys.insert(0, keys);
        all_values.insert(0, values);
    }
    if B::ON_HOST {
        let more = columns_on_host(columns) - columns;
        all_keys.extend(zeros(&all_keys[0], place_of_keys, more));
        all_values.extend(zeros(&all_values[0], place_of_values, more));
    }
    [
        cat(all_keys, place_of_keys),
        cat(all_values, place_of_values),
    ]
}

/// Queries `[new, heads, head_dim]` of one prompt, rotated and scaled, behind `before` tokens →
/// `[new, heads · head_dim]`.
fn attend_one<B: ModelOps>(
    queries: Tensor<B, 3>,
    [keys, values]: &LayerPrefix<B>,
    before: usize,
    heads: Heads,
) -> Tensor<B, 2> {
    let new = queries.dims()[0];
    let queries = queries.reshape([new, heads.kv, heads.group(), heads.dim]);
    let queries =
        B::permuted(queries, [1, 2, 0, 3]).reshape([1, heads.kv, heads.group() * new, heads.dim]);
    let (keys, values) = match B::ON_HOST {
        true => (keys.clone(), values.clone()),
        false => (
            keys.clone().permute([1, 2, 0]),
            values.clone().swap_dims(0, 1),
        ),
    };
    let visible = Visible::Causal { before, new };
    let mixed = B::cached_attention(
        queries,
        keys.unsqueeze_dim(0),
        values.unsqueeze_dim(0),
        &visible,
    )
    .reshape([heads.kv, heads.group(), new, heads.dim]);
    B::permuted(mixed, [2, 0, 1, 3]).reshape([new, heads.queries * heads.dim])
}

/// As many as are missing along `dim`, if any.
fn zeros<B: Backend>(like: &Tensor<B, 3>, dim: usize, count: usize) -> Option<Tensor<B, 3>> {
    let mut shape = like.dims();
    shape[dim] = count;
    (count > 0).then(|| Tensor::zeros(shape, (&like.device(), like.dtype())))
}

/// One alone is left as it is.
fn cat<B: Backend, const D: usize>(mut parts: Vec<Tensor<B, D>>, dim: usize) -> Tensor<B, D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, dim),
    }
}
