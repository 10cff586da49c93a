//! Updates and sums of squares, each in one pass.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::super::math::GRAIN;
use super::super::optimizer::{Optimizer, UpdateStep, correction};
use super::launch::{
    RowWork, UNITS, addresses, cubes, flat, largest_of_lanes, largest_of_vector, room,
    sum_of_lanes, sum_of_vector, vector,
};

/// Which rule; see [`Optimizer`].
const RMS_PROP: u32 = 0;
const ADAM_W: u32 = 1;
const SGD: u32 = 2;

/// Whether an element is NaN or infinite. By its bits: a comparison may be taken for one of numbers.
#[cube]
fn has_non_finite<N: Size>(x: Vector<f32, N>) -> bool {
    let mut found = false.runtime();
    #[unroll]
    for i in 0..N::value() {
        let bits = u32::reinterpret(x[i]);
        found = found || (bits & 0x7f80_0000u32) == 0x7f80_0000u32;
    }
    found
}

/// Several tensors of flat weights, each with its own cubes, in their order; what a rule does not use
/// is empty. `non_finite[0]` becomes 1 where a new weight or slot is NaN or infinite. Scalars: see
/// [`scalars`].
#[cube(launch, address_type = "dynamic")]
fn update_kernel<T: Float, N: Size>(
    weights: &mut Sequence<Array<Vector<f32, N>>>,
    grads: &Sequence<Array<Vector<f32, N>>>,
    slots1: &mut Sequence<Array<Vector<f32, N>>>,
    slots2: &mut Sequence<Array<Vector<f32, N>>>,
    rounded: &mut Sequence<Array<Vector<T, N>>>,
    non_finite: &mut Array<f32>,
    counts: &Sequence<usize>,
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
    let mut first = 0usize.runtime();
    #[unroll]
    for k in 0..counts.len() {
        let count = *counts.index(k);
        let behind = first + count.div_ceil(CUBE_DIM as usize);
        if CUBE_POS >= first && CUBE_POS < behind {
            let i = (CUBE_POS - first) * CUBE_DIM as usize + UNIT_POS as usize;
            if i < count {
                let weights = weights.index_mut(k);
                let grad = grads.index(k)[i] * Vector::new(gradient_scale);
                let old = weights[i];
                if comptime!(rule == ADAM_W) {
                    let slot1 = slots1.index_mut(k);
                    let slot2 = slots2.index_mut(k);
                    let m = slot1[i] * Vector::new(keep1) + grad * Vector::new(fresh1);
                    let v = slot2[i] * Vector::new(keep2) + grad * grad * Vector::new(fresh2);
                    slot1[i] = m;
                    slot2[i] = v;
                    if has_non_finite::<N>(m) || has_non_finite::<N>(v) {
                        non_finite[0] = 1.0;
                    }
                    let root = (v * Vector::new(correction)).sqrt() + Vector::new(eps);
                    weights[i] = old * Vector::new(decay) - m * Vector::new(rate) / root;
                } else {
                    let grad = grad + old * Vector::new(decay);
                    if comptime!(rule == RMS_PROP) {
                        let slot = slots1.index_mut(k);
                        let v = slot[i] * Vector::new(keep1) + grad * grad * Vector::new(fresh1);
                        slot[i] = v;
                        if has_non_finite::<N>(v) {
                            non_finite[0] = 1.0;
                        }
                        weights[i] = old - grad * Vector::new(rate) / (v.sqrt() + Vector::new(eps));
                    } else {
                        weights[i] = old - grad * Vector::new(rate);
                    }
                }
                if has_non_finite::<N>(weights[i]) {
                    non_finite[0] = 1.0;
                }
                if rounds {
                    let rounded = rounded.index_mut(k);
                    rounded[i] = Vector::cast_from(weights[i]);
                }
            }
        }
        first = behind;
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

/// Flat f32 weights, their gradient and slots, all `[n]`; no slots before the first step.
pub(super) struct Flat<R: CubeRuntime> {
    pub weights: CubeTensor<R>,
    pub grad: CubeTensor<R>,
    pub slots: Vec<CubeTensor<R>>,
}

/// Weights, slots, and the weights in another dtype.
pub(super) type Done<R> = (CubeTensor<R>, Vec<CubeTensor<R>>, Option<CubeTensor<R>>);

/// Tensors that one launch takes, of so many buffers each: enough to make launches rare, few enough
/// for the kernel to stay small and for the device's limit.
fn tensors_of_a_launch<R: CubeRuntime>(like: &CubeTensor<R>, buffers: usize) -> usize {
    // One for scalars, one for what all tensors share.
    let bindings = like.client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(2) / buffers).clamp(1, 16)
}

/// Weights and slots after a step, and the weights in `dtype` where that is not f32. In place where
/// nobody else has them. `non_finite` f32 `[1]` becomes 1 where one of them is NaN or infinite.
pub(super) fn update<R: CubeRuntime>(
    optimizer: &Optimizer,
    step: UpdateStep,
    all: Vec<Flat<R>>,
    dtype: DType,
    non_finite: &CubeTensor<R>,
) -> Vec<Done<R>> {
    let rounds = dtype != DType::F32;
    let buffers = 2 + optimizer.slots() + usize::from(rounds);
    let most = all
        .first()
        .map_or(1, |one| tensors_of_a_launch(&one.weights, buffers));
    let (mut done, mut all) = (Vec::with_capacity(all.len()), all.into_iter().peekable());
    while all.peek().is_some() {
        let group = all.by_ref().take(most).collect();
        done.extend(update_group(optimizer, step, group, dtype, non_finite));
    }
    done
}

/// The same in one launch.
fn update_group<R: CubeRuntime>(
    optimizer: &Optimizer,
    step: UpdateStep,
    group: Vec<Flat<R>>,
    dtype: DType,
    non_finite: &CubeTensor<R>,
) -> Vec<Done<R>> {
    let prepared = group.into_iter().map(|one| {
        let (weights, grad) = (own(one.weights), flat(one.grad));
        let n = weights.meta.num_elements();
        let mut slots: Vec<_> = one.slots.into_iter().map(own).collect();
        while slots.len() < optimizer.slots() {
            slots.push(flat(zeros(weights.device.clone(), [n].into(), DType::F32)));
        }
        let rounded = (dtype != DType::F32).then(|| room(&weights, [n], dtype));
        (grad, (weights, slots, rounded))
    });
    let (grads, done): (Vec<_>, Vec<Done<R>>) = prepared.unzip();
    let Some((first, ..)) = done.first() else {
        return done;
    };
    let client = first.client.clone();
    let sizes = done.iter().map(|(weights, ..)| weights.meta.num_elements());
    let sizes: Vec<usize> = sizes.collect();
    let vector = common_vector(first, &sizes);
    let counts: Vec<usize> = sizes.iter().map(|n| n / vector).collect();
    let array = |x: &CubeTensor<R>| x.clone().into_array_arg();
    let slot = |k: usize| {
        let slots = done.iter().filter_map(|(_, slots, _)| slots.get(k));
        slots.map(array).collect()
    };
    let rounded = done.iter().filter_map(|(.., rounded)| rounded.as_ref());
    let addresses = addresses(&done.iter().map(|(weights, ..)| weights).collect::<Vec<_>>());
    let scalars = scalars(optimizer, step);
    let [keep1, keep2] = scalars.keep;
    update_kernel::launch(
        &client,
        cubes(counts.iter().map(|count| count.div_ceil(UNITS)).sum()),
        CubeDim::new_1d(UNITS as u32),
        addresses,
        vector,
        done.iter().map(|(weights, ..)| array(weights)).collect(),
        grads.iter().map(array).collect(),
        slot(0),
        slot(1),
        rounded.map(array).collect(),
        array(non_finite),
        counts.into_iter().collect(),
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
        dtype != DType::F32,
        dtype.into(),
    );
    done
}

/// Of several tensors, the largest magnitude of each [`GRAIN`] elements and Σ (x / largest)²; a cube
/// takes one grain.
#[cube(launch, address_type = "dynamic")]
fn squares_kernel<T: Float, N: Size>(
    tensors: &Sequence<Array<Vector<T, N>>>,
    counts: &Sequence<usize>,
    out: &mut Array<f32>,
    before: usize,
    #[comptime] grain: usize,
    #[comptime] lanes: usize,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(lanes);
    let mut first = 0usize.runtime();
    #[unroll]
    for k in 0..counts.len() {
        let x = tensors.index(k);
        let count = *counts.index(k);
        let beyond = first + count.div_ceil(grain);
        if CUBE_POS >= first && CUBE_POS < beyond {
            let start = (CUBE_POS - first) * grain;
            let behind = min(start + grain, count);
            let mut largest = 1.175_494_4e-38_f32;
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
                out[(before + CUBE_POS) * 2] = largest;
                out[(before + CUBE_POS) * 2 + 1] = sum;
            }
        }
        first = beyond;
    }
}

/// `[largest, sum]` of each grain of each tensor `[n]`, all of one dtype, end to end, f32.
pub(super) fn squares<R: CubeRuntime>(tensors: Vec<CubeTensor<R>>) -> Option<CubeTensor<R>> {
    let grains = |x: &CubeTensor<R>| x.meta.num_elements().div_ceil(GRAIN);
    let all: usize = tensors.iter().map(grains).sum();
    let first = tensors.first()?;
    let (out, dtype) = (room(first, [2 * all], DType::F32), first.dtype);
    let most = tensors_of_a_launch(first, 1);
    let mut before = 0;
    for group in tensors.chunks(most) {
        let group: Vec<CubeTensor<R>> = group.iter().cloned().map(flat).collect();
        let sizes: Vec<usize> = group.iter().map(|x| x.meta.num_elements()).collect();
        let vector = common_vector(&out, &sizes);
        let work = RowWork::alone(GRAIN / vector);
        let grains: usize = group.iter().map(grains).sum();
        let mut buffers: Vec<&CubeTensor<R>> = group.iter().collect();
        buffers.push(&out);
        let addresses = addresses(&buffers);
        squares_kernel::launch(
            &out.client,
            cubes(grains),
            work.dim(),
            addresses,
            vector,
            group.iter().map(|x| x.clone().into_array_arg()).collect(),
            sizes.iter().map(|n| n / vector).collect(),
            out.clone().into_array_arg(),
            before,
            GRAIN / vector,
            work.lanes,
            dtype.into(),
        );
        before += grains;
    }
    Some(out)
}

/// Elements of a vector of f32 that divides all sizes.
fn common_vector<R: CubeRuntime>(on: &CubeTensor<R>, sizes: &[usize]) -> usize {
    let vectors = sizes.iter().map(|n| vector(on, *n, &[DType::F32]));
    vectors.min().unwrap_or(1)
}
