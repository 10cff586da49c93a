//! Keys and values of the tokens so far, for generation.

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::config::LlamaConfig;

/// Preallocated keys and values of every layer, `[rows, kv_heads, capacity, head_dim]` each.
///
/// Rows are padded on the left, so that all of them write to the same slot.
#[derive(Debug)]
pub struct KvCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    used: usize,
    capacity: usize,
}

#[derive(Debug)]
pub(crate) struct LayerCache<B: Backend> {
    // Options so that an update can take the tensor and write in place.
    keys: Option<Tensor<B, 4>>,
    values: Option<Tensor<B, 4>>,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache of `rows` sequences with room for `capacity` tokens each.
    pub fn new(
        config: &LlamaConfig,
        rows: usize,
        capacity: usize,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let shape = [rows, config.num_key_value_heads, capacity, config.head_dim];
        let empty = || Some(Tensor::zeros(shape, (device, dtype)));
        let layers = (0..config.num_hidden_layers)
            .map(|_| LayerCache {
                keys: empty(),
                values: empty(),
            })
            .collect();
        Self {
            layers,
            used: 0,
            capacity,
        }
    }

    /// Slots in use, the same in every row.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Slots in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn layer(&mut self, index: usize) -> &mut LayerCache<B> {
        &mut self.layers[index]
    }

    pub(crate) fn advance(&mut self, tokens: usize) {
        self.used += tokens;
    }

    /// Adds room for `more` tokens in every row.
    pub fn grow(&mut self, more: usize, device: &B::Device) {
        let widen = |slot: &mut Option<Tensor<B, 4>>| {
            if let Some(old) = slot.take() {
                let [rows, heads, _, width] = old.dims();
                let room = Tensor::zeros([rows, heads, more, width], (device, old.dtype()));
                *slot = Some(Tensor::cat(vec![old, room], 2));
            }
        };
        for layer in &mut self.layers {
            widen(&mut layer.keys);
            widen(&mut layer.values);
        }
        self.capacity += more;
    }

    /// Keeps `rows` in the given order; a row may be named several times.
    pub fn select_rows(&mut self, rows: &[usize], device: &B::Device) {
        let indices: Tensor<B, 1, Int> = Tensor::from_data(
            TensorData::new(rows.iter().map(|&r| r as i64).collect(), [rows.len()]),
            device,
        );
        for layer in &mut self.layers {
            layer.keys = layer.keys.take().map(|k| k.select(0, indices.clone()));
            layer.values = layer.values.take().map(|v| v.select(0, indices.clone()));
        }
    }
}

impl<B: Backend> LayerCache<B> {
    /// Writes new keys and values `[rows, kv_heads, new, head_dim]` behind `used` slots and gives
    /// back all that are in use, `[rows, kv_heads, used + new, head_dim]`.
    pub(crate) fn append(
        &mut self,
        used: usize,
        keys: Tensor<B, 4>,
        values: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        (
            append(&mut self.keys, used, keys),
            append(&mut self.values, used, values),
        )
    }
}

fn append<B: Backend>(
    slot: &mut Option<Tensor<B, 4>>,
    used: usize,
    new: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let [rows, heads, count, width] = new.dims();
    let all = match slot.take() {
        Some(cache) => cache.slice_assign([0..rows, 0..heads, used..used + count, 0..width], new),
        None => new,
    };
    let in_use = all
        .clone()
        .slice([0..rows, 0..heads, 0..used + count, 0..width]);
    *slot = Some(all);
    in_use
}
