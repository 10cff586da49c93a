//! GPUs through CubeCL: kernels of our own, one file an operation.
//!
//! f32 inside, whatever the tensors' dtype. Matrix products are a library's (`product`). Sums go over the
//! units of a cube in a fixed order, so that results are the same each time.

mod attention;
mod cached_attention;
mod embedding;
mod feed_forward;
mod launch;
mod norm;
mod optimizer;
mod product;
mod rotary;
mod sampling;
mod target_logps;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use super::ModelOps;

use super::attention::{Attended, Kept, PackedAttention};
use super::cached_attention::{CachedStep, Visible, forward_by};
use super::device::{DeviceError, Placement, ints};
use super::embedding::TokenIds;
use super::math::GRAIN;
use super::memory::{primitive, tensor, to_f32, to_host};
use super::optimizer::{Optimizer, UpdateStep, Updated, Updating, squares_of_grains};
use super::rotary::Rotation;
use super::sampling::Likeliest;
use product::{linear_product, product};

pub(super) use attention::{Part, table as attention_table};
pub use product::{LinearProducts, linear_products, use_linear_products};

impl<R, F, I, BT> Placement for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    const HAS_KERNELS: bool = true;
}

impl<R, F, I, BT> ModelOps for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn linear_layer(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        bias: Option<Tensor<Self, 1>>,
    ) -> Tensor<Self, 2> {
        let dtype = x.dtype();
        let weight = primitive(weight.transpose());
        let y: Tensor<Self, 2> = tensor(linear_product(primitive(x), weight, dtype));
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    fn linear_layer_input_gradient(
        grad: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        let dtype = grad.dtype();
        tensor(linear_product(primitive(grad), primitive(weight), dtype))
    }

    /// In f32, which is what gradients are added up in.
    fn linear_layer_weight_gradient(grad: Tensor<Self, 2>, x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (grad, x) = (primitive(grad.transpose()), primitive(x));
        tensor(linear_product(grad, x, DType::F32))
    }

    fn rms_norm(x: Tensor<Self, 2>, weight: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        tensor(norm::rms_norm(primitive(x), primitive(weight), eps))
    }

    fn residual_rms_norm(
        x: Tensor<Self, 2>,
        residual: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        eps: f64,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let (x, residual) = (primitive(x), primitive(residual));
        let (sum, normed) = norm::residual_rms_norm(x, residual, primitive(weight), eps);
        (tensor(sum), tensor(normed))
    }

    fn rms_norm_backward(
        grad: Tensor<Self, 2>,
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 1>,
        eps: f64,
        more: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
        let (grad, more) = (primitive(grad), more.map(primitive));
        let (x, weight) = (primitive(x), primitive(weight));
        let (of_x, of_weight) = norm::rms_norm_backward(grad, x, weight, eps, more);
        (tensor(of_x), tensor(of_weight))
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        tensor(feed_forward::swiglu(primitive(gate), primitive(up)))
    }

    fn swiglu_backward(
        grad: Tensor<Self, 2>,
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        let (gate, up) = (primitive(gate), primitive(up));
        feed_forward::swiglu_backward(primitive(grad), gate, up).map(tensor)
    }

    fn embed_backward(
        grad: Tensor<Self, 2>,
        ids: &TokenIds<Self>,
        vocab: usize,
    ) -> Tensor<Self, 2> {
        let (tokens, table) = embedding::rows_by_token(ids.on_host());
        let table = ints::<Self>(table.into_iter().map(i64::from).collect(), &grad.device());
        let table = table.into_primitive();
        tensor(embedding::embed_backward(
            primitive(grad),
            tokens,
            table,
            vocab,
        ))
    }

    fn rotate(x: Tensor<Self, 2>, rotation: &Rotation<Self>, scale: f64) -> Tensor<Self, 3> {
        let table = primitive(rotation.table(&x.device()));
        tensor(rotary::rotate(primitive(x), table, scale))
    }

    fn packed_attention_saving(
        q: Tensor<Self, 2>,
        k: Tensor<Self, 2>,
        v: Tensor<Self, 2>,
        over: &PackedAttention<Self>,
    ) -> (Tensor<Self, 2>, Attended<Self>) {
        let (table, parts) = over.table(&q.device());
        let attention = attention::Attention {
            heads: over.heads(),
            parts: &parts,
            table: table.into_primitive(),
            angles: primitive(over.rotation().table(&q.device())),
        };
        let [p, r, s] = [&q, &k, &v].map(|x| primitive(x.clone()));
        let (mixed, log_sums) = attention.forward(p, r, s);
        let log_sums = log_sums.into_iter().map(tensor).collect();
        (tensor(mixed), Attended(Kept::LogSums([q, k, v], log_sums)))
    }

    fn packed_attention_backward(
        grad: Tensor<Self, 2>,
        attended: Attended<Self>,
        over: &PackedAttention<Self>,
    ) -> [Tensor<Self, 2>; 3] {
        let Kept::LogSums(heads, log_sums) = attended.0 else {
            unreachable!("another backend's forward step")
        };
        let (table, parts) = over.table(&grad.device());
        let attention = attention::Attention {
            heads: over.heads(),
            parts: &parts,
            table: table.into_primitive(),
            angles: primitive(over.rotation().table(&grad.device())),
        };
        let log_sums = log_sums.into_iter().map(primitive).collect();
        let found = attention.backward(primitive(grad), heads.map(primitive), log_sums);
        found.map(tensor)
    }

    fn cached_attention(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        visible: &Visible,
    ) -> Tensor<Self, 4> {
        forward_by(q, k, v, visible, |a, b| {
            let dtype = a.dtype();
            tensor(product(primitive(a), primitive(b), None, dtype))
        })
    }

    fn append_and_attend(
        heads: [Tensor<Self, 2>; 3],
        step: &CachedStep<Self>,
        caches: [&mut Tensor<Self, 4>; 2],
    ) -> Option<Tensor<Self, 2>> {
        if !cached_attention::takes(step.heads) {
            return None;
        }
        let device = heads[0].device();
        let angles = primitive(step.rotation.table(&device));
        let lengths = step.lengths.on_device().into_primitive();
        let [keys, values] = caches.map(|cache| primitive(cache.clone()));
        let mixed = cached_attention::append_and_attend(
            heads.map(primitive),
            angles,
            lengths,
            [&keys, &values],
            step.heads,
        );
        Some(tensor(mixed))
    }

    fn fill_slots(
        caches: [&mut Tensor<Self, 4>; 2],
        rows: [Tensor<Self, 3>; 2],
        fills: Tensor<Self, 1, Int>,
    ) -> bool {
        let [keys, values] = caches.map(|cache| primitive(cache.clone()));
        cached_attention::fill_slots(
            [&keys, &values],
            rows.map(primitive),
            fills.into_primitive(),
        );
        true
    }

    fn copy_slot(caches: [&mut Tensor<Self, 4>; 2], from: usize, to: usize, tokens: usize) -> bool {
        let [keys, values] = caches.map(|cache| primitive(cache.clone()));
        cached_attention::copy_slot([&keys, &values], from, to, tokens);
        true
    }

    fn likeliest(
        logits: Tensor<Self, 2>,
        scales: Tensor<Self, 1>,
        count: usize,
    ) -> Likeliest<Self> {
        let logits = primitive(to_f32(logits));
        let [floats, tokens] = sampling::likeliest(logits, primitive(scales), count, I::dtype());
        Likeliest {
            floats: tensor(floats),
            tokens: Tensor::from_primitive(tokens),
        }
    }

    fn target_logps_saving(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>) {
        let logits = Self::linear_layer(x, weight, None);
        let targets = targets.on_device().into_primitive();
        let logps = target_logps::target_logps(primitive(logits.clone()), targets);
        (tensor(logps), logits)
    }

    fn target_logps_measuring(
        x: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> (Tensor<Self, 1>, Tensor<Self, 2>, Tensor<Self, 2>) {
        let (logps, logits) = Self::target_logps_saving(x, weight, targets);
        let measures = super::target_logps::measures(logits.clone(), targets);
        (logps, logits, measures)
    }

    fn target_logps_backward(
        grad: Tensor<Self, 1>,
        logits: Tensor<Self, 2>,
        targets: &TokenIds<Self>,
    ) -> Tensor<Self, 2> {
        let targets = targets.on_device().into_primitive();
        let (grad, logits) = (primitive(grad), primitive(logits));
        tensor(target_logps::target_logps_backward(grad, logits, targets))
    }

    fn update(
        optimizer: &Optimizer,
        step: UpdateStep,
        all: Vec<Updating<Self>>,
        dtype: DType,
        non_finite: &mut Option<Tensor<Self, 1>>,
    ) -> Vec<Updated<Self>> {
        let Some(first) = all.first() else {
            return Vec::new();
        };
        let device = first.weights.device();
        let non_finite =
            non_finite.get_or_insert_with(|| Tensor::zeros([1], (&device, DType::F32)));
        let non_finite = primitive(non_finite.clone());
        let all = all.into_iter().map(|one| optimizer::Flat {
            weights: primitive(one.weights),
            grad: primitive(one.grad),
            slots: one.slots.into_iter().map(primitive).collect(),
        });
        let done = optimizer::update(optimizer, step, all.collect(), dtype, &non_finite);
        let done = done.into_iter().map(|(weights, slots, rounded)| Updated {
            weights: tensor(weights),
            slots: slots.into_iter().map(tensor).collect(),
            rounded: rounded.map(tensor),
        });
        done.collect()
    }

    fn sums_of_squares(tensors: Vec<Tensor<Self, 1>>) -> Result<Vec<Vec<f64>>, DeviceError> {
        let grains: Vec<usize> = tensors
            .iter()
            .map(|x| x.dims()[0].div_ceil(GRAIN))
            .collect();
        let tensors = tensors.into_iter().map(primitive).collect();
        let values = match optimizer::squares(tensors) {
            Some(values) => to_host(tensor::<Self, 1>(values))?,
            None => Vec::new(),
        };
        Ok(squares_of_grains(&values, grains))
    }
}
