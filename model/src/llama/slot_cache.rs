//! Keys and values of sequences under way: one slot a sequence, each with a length of its own.

use burn::tensor::{DType, IndexingUpdateOp, Tensor, backend::Backend};

use super::config::LlamaConfig;
use super::prefix::Prefix;
use crate::ops::{ModelOps, edit_bytes, ints};

/// How new keys and values reach their slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// Copies in the host's own memory: CPU backends' assignments copy the whole tensor first.
    Copies,
    /// One indexed addition onto zeros for all slots: for devices, where each launch costs.
    Additions,
}

impl Writes {
    /// The way for a backend.
    pub fn of<B: ModelOps>() -> Self {
        match B::ON_HOST {
            true => Self::Copies,
            false => Self::Additions,
        }
    }
}

/// Slots for sequences; position `p` of a sequence lies at place `p` of its slot.
#[derive(Debug)]
pub struct SlotCache<B: Backend> {
    layers: Vec<LayerSlots<B>>,
    writes: Writes,
    slots: usize,
    capacity: usize,
    most: usize,
}

/// Keys `[slots, kv_heads, head_dim, capacity]` where they are copied in, which is how a matrix
/// product reads them fastest on a CPU, `[slots, kv_heads, capacity, head_dim]` where they are
/// added; values `[slots, kv_heads, capacity, head_dim]`.
#[derive(Debug)]
struct LayerSlots<B: Backend> {
    keys: Tensor<B, 4>,
    values: Tensor<B, 4>,
}

/// The places that a step over `tokens` cached tokens reads: what is used, rounded up so that sums
/// over them round alike whichever other sequences are in the batch. (The gemm crate cuts sums at
/// multiples of 512 and SIMD sums at their lane count; what lies behind is exactly zero.)
pub fn rounded_width(tokens: usize) -> usize {
    match tokens {
        0..=512 => tokens.next_multiple_of(64).max(64),
        _ => tokens.next_multiple_of(512),
    }
}

/// Changes a tensor by operations that take it. Burn's own `inplace` puts one without elements in its
/// place meanwhile, and CUDA allocates no 0 bytes.
fn change<B: Backend>(tensor: &mut Tensor<B, 4>, by: impl FnOnce(Tensor<B, 4>) -> Tensor<B, 4>) {
    let meanwhile = Tensor::empty([1; 4], &tensor.device());
    let old = std::mem::replace(tensor, meanwhile);
    *tensor = by(old);
}

/// Bytes of keys and values that one token takes in all layers.
pub fn bytes_per_token(config: &LlamaConfig, dtype: DType) -> u64 {
    let width = config.num_key_value_heads * config.head_dim * dtype.size();
    2 * (config.num_hidden_layers * width) as u64
}

impl<B: ModelOps> SlotCache<B> {
    /// Empty slots that grow up to `most` tokens each.
    pub fn new(
        config: &LlamaConfig,
        slots: usize,
        most: usize,
        writes: Writes,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let capacity = rounded_width(1).min(rounded_width(most));
        let (kv, width) = (config.num_key_value_heads, config.head_dim);
        let values = [slots, kv, capacity, width];
        let keys = match writes {
            Writes::Copies => [slots, kv, width, capacity],
            Writes::Additions => values,
        };
        let layer = |_| LayerSlots {
            keys: Tensor::zeros(keys, (device, dtype)),
            values: Tensor::zeros(values, (device, dtype)),
        };
        Self {
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            writes,
            slots,
            capacity,
            most: rounded_width(most),
        }
    }

    /// Number of slots.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Makes room for `tokens` in every slot; one tensor at a time is held twice meanwhile.
    pub fn reserve(&mut self, tokens: usize, device: &B::Device) {
        let needed = rounded_width(tokens);
        if needed <= self.capacity {
            return;
        }
        let capacity = rounded_width(needed.max(self.capacity * 3 / 2)).min(self.most);
        let more = capacity.max(needed) - self.capacity;
        let widen = |tensor: &mut Tensor<B, 4>, dim: usize| {
            change(tensor, |old| {
                let mut shape = old.dims();
                shape[dim] = more;
                let room = Tensor::zeros(shape, (device, old.dtype()));
                Tensor::cat(vec![old, room], dim)
            });
        };
        for layer in &mut self.layers {
            widen(&mut layer.keys, self.writes.place_of_keys());
            widen(&mut layer.values, 2);
        }
        self.capacity += more;
    }

    /// Puts prompts at the start of slots, zeros behind them where new tokens are added.
    pub fn fill(&mut self, starts: &[(usize, Prefix<B>)], device: &B::Device) {
        let mut left = starts;
        while let Some((_, first)) = left.first() {
            let others = left.iter().position(|(_, next)| !next.shares_with(first));
            let (these, others) = left.split_at(others.unwrap_or(left.len()));
            self.fill_from_one(these, device);
            left = others;
        }
    }

    /// The same from the tensors of one pass.
    fn fill_from_one(&mut self, starts: &[(usize, Prefix<B>)], device: &B::Device) {
        let writes = self.writes;
        let fills = (B::HAS_KERNELS && writes == Writes::Additions).then(|| {
            let fill = |(slot, prefix): &(usize, Prefix<B>)| {
                [*slot, prefix.own().start, prefix.tokens()].map(|n| n as i64)
            };
            ints(starts.iter().flat_map(fill).collect(), device)
        });
        for (number, layer) in self.layers.iter_mut().enumerate() {
            if let (Some(fills), Some((_, first))) = (&fills, starts.first()) {
                let caches = [&mut layer.keys, &mut layer.values];
                if B::fill_slots(caches, first.shared_layer(number), fills.clone()) {
                    continue;
                }
            }
            for (slot, prefix) in starts {
                let [keys, values] = match writes {
                    Writes::Copies => prefix.layer(number),
                    Writes::Additions => {
                        layer.clear(*slot);
                        prefix.by_heads(number)
                    }
                };
                for (tensor, part) in [(&mut layer.keys, keys), (&mut layer.values, values)] {
                    change(tensor, |all| at_start(all, *slot, part, writes));
                }
            }
        }
    }

    /// Sets a slot to zeros, so that nothing of what it held is left.
    pub fn clear(&mut self, slot: usize) {
        self.layers.iter_mut().for_each(|layer| layer.clear(slot));
    }

    /// Copies the first `tokens` of one slot to another.
    pub fn copy(&mut self, from: usize, to: usize, tokens: usize) {
        let writes = self.writes;
        let place_of_keys = writes.place_of_keys();
        for layer in &mut self.layers {
            let caches = [&mut layer.keys, &mut layer.values];
            if writes == Writes::Additions && B::copy_slot(caches, from, to, tokens) {
                continue;
            }
            if writes == Writes::Additions {
                layer.clear(to);
            }
            for (tensor, dim) in [(&mut layer.keys, place_of_keys), (&mut layer.values, 2)] {
                change(tensor, |all| {
                    let part = all.clone().narrow(0, from, 1).narrow(dim, 0, tokens);
                    // A real copy: a view would make the assignment copy the whole cache.
                    let part = part.mul_scalar(1.0);
                    at_start(all, to, part.squeeze_dim(0), writes)
                });
            }
        }
    }

    /// Writes one new token's keys and values `[rows, kv_heads, head_dim]` behind the `lengths`
    /// of the first slots.
    pub(super) fn append(
        &mut self,
        layer: usize,
        lengths: &[usize],
        keys: Tensor<B, 3>,
        values: Tensor<B, 3>,
    ) {
        let capacity = self.capacity;
        let layer = &mut self.layers[layer];
        let (all_keys, all_values) = (&mut layer.keys, &mut layer.values);
        match self.writes {
            Writes::Copies => {
                change(all_keys, |all| copy_in(all, lengths, keys, 3));
                change(all_values, |all| copy_in(all, lengths, values, 2));
            }
            Writes::Additions => {
                change(all_keys, |all| add_in(all, lengths, keys, capacity));
                change(all_values, |all| add_in(all, lengths, values, capacity));
            }
        }
    }

    /// Keys and values of a layer, to be written where they lie.
    pub(super) fn layer(&mut self, layer: usize) -> [&mut Tensor<B, 4>; 2] {
        let layer = &mut self.layers[layer];
        [&mut layer.keys, &mut layer.values]
    }

    /// Keys `[slots, kv_heads, head_dim, capacity]` and values `[slots, kv_heads, capacity, head_dim]`.
    /// Drop them before the next write.
    pub(super) fn read(&self, layer: usize) -> [Tensor<B, 4>; 2] {
        let layer = &self.layers[layer];
        let keys = match self.writes {
            Writes::Copies => layer.keys.clone(),
            Writes::Additions => layer.keys.clone().swap_dims(2, 3),
        };
        [keys, layer.values.clone()]
    }
}

impl Writes {
    /// The dimension of the keys that counts tokens.
    fn place_of_keys(self) -> usize {
        match self {
            Self::Copies => 3,
            Self::Additions => 2,
        }
    }
}

impl<B: Backend> LayerSlots<B> {
    /// Sets a slot to zeros.
    fn clear(&mut self, slot: usize) {
        for tensor in [&mut self.keys, &mut self.values] {
            change(tensor, |all| {
                let [_, a, b, c] = all.dims();
                all.slice_fill([slot..slot + 1, 0..a, 0..b, 0..c], 0.0)
            });
        }
    }
}

/// Puts `part` at the start of a slot.
fn at_start<B: Backend>(
    all: Tensor<B, 4>,
    slot: usize,
    part: Tensor<B, 3>,
    writes: Writes,
) -> Tensor<B, 4> {
    let [a, b, c] = part.dims();
    match writes {
        Writes::Additions => {
            all.slice_assign([slot..slot + 1, 0..a, 0..b, 0..c], part.unsqueeze_dim(0))
        }
        Writes::Copies => {
            let [_, _, rows, row] = all.dims();
            let part = part.into_data();
            edit_bytes(all, |cells, size| {
                let sources = part.bytes.chunks_exact(c * size);
                for (i, source) in sources.enumerate() {
                    let place = ((slot * a + i / b) * rows + i % b) * row * size;
                    cells[place..place + c * size].copy_from_slice(source);
                }
            })
        }
    }
}

/// Copies row `i` of `new` `[rows, kv_heads, head_dim]` to place `lengths[i]` of slot `i`, along
/// `dim`.
fn copy_in<B: Backend>(
    all: Tensor<B, 4>,
    lengths: &[usize],
    new: Tensor<B, 3>,
    dim: usize,
) -> Tensor<B, 4> {
    let [_, kv, _, _] = all.dims();
    let capacity = all.dims()[dim];
    let width = new.dims()[2];
    let new = new.into_data();
    edit_bytes(all, |cells, size| {
        let sources = new.bytes.chunks_exact(width * size);
        for (i, source) in sources.enumerate() {
            let (head, place) = (i * width * capacity * size, lengths[i / kv]);
            if dim == 2 {
                let at = head + place * width * size;
                cells[at..at + width * size].copy_from_slice(source);
                continue;
            }
            let column = &mut cells[head + place * size..];
            match size {
                4 => scatter::<4>(column, capacity, source),
                2 => scatter::<2>(column, capacity, source),
                _ => unreachable!("numbers of {size} bytes"),
            }
        }
    })
}

/// Copies numbers of `SIZE` bytes to every `apart`-th place.
fn scatter<const SIZE: usize>(cells: &mut [u8], apart: usize, numbers: &[u8]) {
    let places = cells.chunks_mut(apart * SIZE);
    for (cell, number) in places.zip(numbers.as_chunks::<SIZE>().0) {
        cell[..SIZE].copy_from_slice(number);
    }
}

/// The same by one addition onto zeros.
fn add_in<B: Backend>(
    all: Tensor<B, 4>,
    lengths: &[usize],
    new: Tensor<B, 3>,
    capacity: usize,
) -> Tensor<B, 4> {
    let shape = all.dims();
    let [rows, kv, width] = new.dims();
    let places = lengths.iter().enumerate().flat_map(|(slot, &length)| {
        (0..kv).map(move |head| ((slot * kv + head) * capacity + length) as i64)
    });
    let places = ints(places.collect(), &new.device());
    all.reshape([shape[0] * kv * capacity, width])
        .select_assign(
            0,
            places,
            new.reshape([rows * kv, width]),
            IndexingUpdateOp::Add,
        )
        .reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_cut_where_sums_are() {
        let found: Vec<usize> = [0, 1, 64, 65, 512, 513, 1500]
            .into_iter()
            .map(rounded_width)
            .collect();
        assert_eq!(found, [64, 64, 64, 128, 512, 1024, 1536]);
    }
}
