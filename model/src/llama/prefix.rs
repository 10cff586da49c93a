//! Keys and values of a prompt's tokens, until they are in slots.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};

use crate::ops::ModelOps;

/// Keys and values of a layer. In the host's memory `[kv_heads, head_dim, tokens]` and
/// `[kv_heads, tokens, head_dim]`, as attention reads them; on a device rows of both,
/// `[tokens, kv_heads, head_dim]`, as a pass makes them.
pub(super) type LayerPrefix<B> = [Tensor<B, 3>; 2];

/// Keys and values of the first tokens of a prompt, in all layers.
///
/// On a device the prompts of one pass share its tensors, so that they reach their slots together.
#[derive(Clone, Debug)]
pub struct Prefix<B: Backend> {
    layers: Arc<Vec<LayerPrefix<B>>>,
    /// Its own among the tokens of the tensors.
    own: Range<usize>,
}

impl<B: Backend> Default for Prefix<B> {
    fn default() -> Self {
        Self {
            layers: Arc::default(),
            own: 0..0,
        }
    }
}

impl<B: Backend> Prefix<B> {
    pub(super) fn new(layers: Arc<Vec<LayerPrefix<B>>>, own: Range<usize>) -> Self {
        Self { layers, own }
    }

    /// How many tokens there are.
    pub fn tokens(&self) -> usize {
        self.own.len()
    }

    /// Its own among the tokens of [`Self::shared_layer`].
    pub(super) fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Whether both lie in the same tensors.
    pub(super) fn shares_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.layers, &other.layers)
    }

    /// A layer with the tokens of other prompts of its pass.
    pub(super) fn shared_layer(&self, layer: usize) -> LayerPrefix<B> {
        self.layers[layer].clone()
    }

    /// Some of its tokens, in the same memory.
    pub fn part(&self, start: usize, count: usize) -> Self {
        let start = self.own.start + start;
        Self {
            layers: self.layers.clone(),
            own: start..start + count,
        }
    }
}

impl<B: ModelOps> Prefix<B> {
    /// The dimensions of keys and values that count tokens.
    pub(super) const PLACES: [usize; 2] = match B::ON_HOST {
        true => [2, 1],
        false => [0, 0],
    };

    /// A layer's own tokens.
    pub(super) fn layer(&self, layer: usize) -> LayerPrefix<B> {
        narrow(self.layers[layer].clone(), &self.own)
    }

    /// The same of all layers; each is dropped with what is made of it, where nobody shares it.
    pub(super) fn into_layers(self) -> impl Iterator<Item = LayerPrefix<B>> {
        let layers = Arc::unwrap_or_clone(self.layers).into_iter();
        layers.map(move |layer| narrow(layer, &self.own))
    }

    /// A layer `[kv_heads, tokens, head_dim]`, as caches that are added to hold it.
    pub(super) fn by_heads(&self, layer: usize) -> LayerPrefix<B> {
        let [keys, values] = self.layer(layer);
        match B::ON_HOST {
            true => [keys.swap_dims(1, 2), values],
            false => [keys.swap_dims(0, 1), values.swap_dims(0, 1)],
        }
    }

    /// The same in memory of its own.
    pub fn copied(&self) -> Self {
        let layers = 0..self.layers.len();
        let layers = layers.map(|layer| self.layer(layer).map(|x| x.mul_scalar(1.0)));
        Self::new(Arc::new(layers.collect()), 0..self.tokens())
    }

    /// Tokens of one after those of the other; one alone stays where it is.
    pub fn joined(mut parts: Vec<Self>) -> Self {
        if parts.len() <= 1 {
            return parts.pop().unwrap_or_default();
        }
        let join = |layer: usize| {
            let (keys, values) = parts
                .iter()
                .map(|part| part.layer(layer))
                .map(|[keys, values]| (keys, values))
                .unzip();
            [
                Tensor::cat(keys, Self::PLACES[0]),
                Tensor::cat(values, Self::PLACES[1]),
            ]
        };
        let layers = (0..parts[0].layers.len()).map(join).collect();
        let tokens = parts.iter().map(Self::tokens).sum();
        Self::new(Arc::new(layers), 0..tokens)
    }
}

fn narrow<B: ModelOps>([keys, values]: LayerPrefix<B>, own: &Range<usize>) -> LayerPrefix<B> {
    let narrow = |x: Tensor<B, 3>, dim: usize| match own.len() == x.dims()[dim] {
        true => x,
        false => x.narrow(dim, own.start, own.len()),
    };
    let [place_of_keys, place_of_values] = Prefix::<B>::PLACES;
    [narrow(keys, place_of_keys), narrow(values, place_of_values)]
}
