//! Updates and sums of squares, each in one pass.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::math::GRAIN;
use super::super::optimizer::{Optimizer, UpdateStep, correction};
use super::launch::{
    RowWork, addresses, cubes, elementwise, flat, largest_of_lanes, largest_of_vector, room,
    sum_of_lanes, sum_of_vector, vector,
};

/// Which rule; see [`Optimizer`].
const RMS_PROP: u32 = 0;
const ADAM_W: u32 = 1;
const SGD: u32 = 2;

/// `slots` holds all slots end to end, `count` vectors each. Scalars: see [`scalars`].
#[cube(launch, address_type = "dynamic")]
fn update_kernel<T: Float, N: Size>(
    weights: &mut Array<Vector<f32, N>>,
    grad: &Array<Vector<f32, N>>,
    slot1: &mut Array<Vector<f32, N>>,
    slot2: &mut Array<Vector<f32, N>>,
    rounded: &mut Array<Vector<T, N>>,
    count: usize,
    gradient_scale: f32,
    rate: f32,
    decay: f32,
    keep1: f32,
    fresh1: f32,
    keep2: f32,
    fresh2: f32,
    eps: f32,
    correction: f32,
    #[comptime] rule: u32,
    #[comptime] rounds: bool,
    #[define(T)] _dtype: StorageType,
) {
    let i = ABSOLUTE_POS;
    if i < count {
        let grad = grad[i] * Vector::new(gradient_scale);
        let old = weights[i];
        if comptime!(rule == ADAM_W) {
            let m = slot1[i] * Vector::new(keep1) + grad * Vector::new(fresh1);
            let v = slot2[i] * Vector::new(keep2) + grad * grad * Vector::new(fresh2);
            slot1[i] = m;
            slot2[i] = v;
            let root = (v * Vector::new(correction)).sqrt() + Vector::new(eps);
            weights[i] = old * Vector::new(decay) - m * Vector::new(rate) / root;
        } else {
            let grad = grad + old * Vector::new(decay);
            if comptime!(rule == RMS_PROP) {
                let v = slot1[i] * Vector::new(keep1) + grad * grad * Vector::new(fresh1);
                slot1[i] = v;
                weights[i] = old - grad * Vector::new(rate) / (v.sqrt() + Vector::new(eps));
            } else {
                weights[i] = old - grad * Vector::new(rate);
            }
        }
        if rounds {
            rounded[i] = Vector::cast_from(weights[i]);
        }
    }
}

/// What the kernel reads of an optimizer and a step.
#[derive(Default)]
struct Scalars {
    rule: u32,
    rate: f64,
    decay: f64,
    keep: [f64; 2],
    eps: f64,
    correction: f64,
}

fn scalars(optimizer: &Optimizer, step: UpdateStep) -> Scalars {
    let rate = step.rate;
    match optimizer {
        Optimizer::RmsProp(o) => Scalars {
            rule: RMS_PROP,
            rate,
            decay: o.weight_decay,
            keep: [o.alpha, 0.0],
            eps: o.eps,
            ..Default::default()
        },
        Optimizer::AdamW(o) => Scalars {
            rule: ADAM_W,
            rate: rate / correction(o.beta1, step),
            // Weights are multiplied by it.
            decay: 1.0 - rate * o.weight_decay,
            keep: [o.beta1, o.beta2],
            eps: o.eps,
            correction: correction(o.beta2, step).recip(),
        },
        Optimizer::Sgd(o) => Scalars {
            rule: SGD,
            rate,
            decay: o.weight_decay,
            ..Default::default()
        },
    }
}

/// A tensor that nobody else has.
fn own<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = flat(x);
    match x.can_mut() {
        true => x,
        false => x.copy(),
    }
}

/// Flat f32 weights, gradient and slots, all `[n]`, no slots before the first step → weights,
/// slots, and the weights in `dtype` where that is not f32. In place where nobody else has them.
pub(super) fn update<R: CubeRuntime>(
    optimizer: &Optimizer,
    step: UpdateStep,
    weights: CubeTensor<R>,
    grad: CubeTensor<R>,
    slots: Vec<CubeTensor<R>>,
    dtype: DType,
) -> (CubeTensor<R>, Vec<CubeTensor<R>>, Option<CubeTensor<R>>) {
    let (weights, grad) = (own(weights), flat(grad));
    let n = weights.meta.num_elements();
    let mut slots: Vec<_> = slots.into_iter().map(own).collect();
    while slots.len() < optimizer.slots() {
        slots.push(flat(zeros(weights.device.clone(), [n].into(), DType::F32)));
    }
    let rounded = (dtype != DType::F32).then(|| room(&weights, [n], dtype));
    let vector = vector(&weights, n, &[DType::F32]);
    let count = n / vector;
    let (cubes, units) = elementwise(count);
    let scalars = scalars(optimizer, step);
    let [keep1, keep2] = scalars.keep;
    // What a rule does not use is its weights once more.
    let or_weights = |x: Option<&CubeTensor<R>>| match x {
        Some(x) => x.clone().into_array_arg(),
        None => weights.as_tensor_alias(0).into_array_arg(),
    };
    update_kernel::launch(
        &weights.client,
        cubes,
        units,
        addresses(&[&weights]),
        vector,
        weights.clone().into_array_arg(),
        grad.into_array_arg(),
        or_weights(slots.first()),
        or_weights(slots.get(1)),
        match &rounded {
            Some(rounded) => rounded.clone().into_array_arg(),
            None => weights.as_tensor_alias(0).into_array_arg(),
        },
        count,
        step.gradient_scale as f32,
        scalars.rate as f32,
        scalars.decay as f32,
        keep1 as f32,
        (1.0 - keep1) as f32,
        keep2 as f32,
        (1.0 - keep2) as f32,
        scalars.eps as f32,
        scalars.correction as f32,
        scalars.rule,
        rounded.is_some(),
        dtype.into(),
    );
    (weights, slots, rounded)
}

/// The largest magnitude of each [`GRAIN`] elements and Σ (x / largest)²; a cube takes one grain.
#[cube(launch, address_type = "dynamic")]
fn squares_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    out: &mut Array<f32>,
    grains: usize,
    count: usize,
    first: usize,
    #[comptime] grain: usize,
    #[comptime] lanes: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(lanes);
    if CUBE_POS < grains {
        let start = CUBE_POS * grain;
        let behind = min(start + grain, count);
        let mut largest = 1.17549435e-38f32;
        let mut sum = 0.0f32;
        let mut i = start + UNIT_POS_X as usize;
        while i < behind {
            let x = Vector::<f32, N>::cast_from(x[i]);
            let here = largest_of_vector::<N>(x.abs());
            if here > largest {
                largest = here;
            }
            // What is not a number is never larger; it reaches the sum below.
            i += lanes;
        }
        let largest = largest_of_lanes(largest, &mut shared, lanes);
        let mut i = start + UNIT_POS_X as usize;
        while i < behind {
            let x = Vector::<f32, N>::cast_from(x[i]) / Vector::new(largest);
            sum += sum_of_vector::<N>(x * x);
            i += lanes;
        }
        let sum = sum_of_lanes(sum, &mut shared, lanes);
        if UNIT_POS_X == 0 {
            out[(first + CUBE_POS) * 2] = largest;
            out[(first + CUBE_POS) * 2 + 1] = sum;
        }
    }
}

/// `[largest, sum]` of each grain of each tensor `[n]`, end to end, f32.
pub(super) fn squares<R: CubeRuntime>(tensors: Vec<CubeTensor<R>>) -> Option<CubeTensor<R>> {
    let grains = |x: &CubeTensor<R>| x.meta.num_elements().div_ceil(GRAIN);
    let all: usize = tensors.iter().map(grains).sum();
    let out = room(tensors.first()?, [2 * all], DType::F32);
    let mut first = 0;
    for x in tensors {
        let x = flat(x);
        let (n, dtype) = (x.meta.num_elements(), x.dtype);
        let grains = n.div_ceil(GRAIN);
        let vector = vector(&x, n, &[DType::F32]);
        let work = RowWork::alone(GRAIN / vector);
        squares_kernel::launch(
            &out.client,
            cubes(grains),
            work.dim(),
            addresses(&[&x, &out]),
            vector,
            x.into_array_arg(),
            out.clone().into_array_arg(),
            grains,
            n / vector,
            first,
            GRAIN / vector,
            work.lanes,
            dtype.into(),
        );
        first += grains;
    }
    Some(out)
}
