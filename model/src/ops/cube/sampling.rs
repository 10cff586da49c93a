//! The likeliest tokens of a row of logits, and sums over it.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{addresses, cubes, flat, room};

/// Units of a cube.
const UNITS: usize = 256;

/// The largest value over the units, of equal ones the least token; the same for each of them.
#[cube]
fn best_of_units(
    value: f32,
    token: u32,
    values: &mut SharedMemory<f32>,
    tokens: &mut SharedMemory<u32>,
    #[comptime] units: usize,
) -> (f32, u32) {
    let unit = UNIT_POS as usize;
    values[unit] = value;
    tokens[unit] = token;
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = values[unit + half];
            let other_token = tokens[unit + half];
            let own = values[unit];
            if other > own || (other == own && other_token < tokens[unit]) {
                values[unit] = other;
                tokens[unit] = other_token;
            }
        }
        sync_cube();
        half /= 2;
    }
    let found = (values[0], tokens[0]);
    sync_cube();
    found
}

/// The sum over the units, the same for each of them.
#[cube]
fn sum_of_units(value: f32, values: &mut SharedMemory<f32>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    values[unit] = value;
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = values[unit + half];
            values[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = values[0];
    sync_cube();
    sum
}

/// A cube takes a row. Each unit knows the largest of its tokens, `unit`, `unit + units`, …, and sums
/// of exponentials beside it; where its token is taken, all look for the next one of that unit's.
#[allow(clippy::legacy_numeric_constants, reason = "CubeCL has no other name")]
#[cube(launch, address_type = "dynamic")]
fn likeliest_kernel<I: Int>(
    logits: &Array<f32>,
    scales: &Array<f32>,
    floats: &mut Array<f32>,
    best_tokens: &mut Array<I>,
    rows: usize,
    vocab: usize,
    count: usize,
    #[comptime] units: usize,
    #[define(I)] _dtype: StorageType,
) {
    let mut values = SharedMemory::<f32>::new(units);
    let mut tokens = SharedMemory::<u32>::new(units);
    let unit = UNIT_POS as usize;
    if CUBE_POS < rows {
        let start = CUBE_POS * vocab;
        let out = CUBE_POS * (count + 2);
        let scale = scales[CUBE_POS];
        let mut own = f32::min_value();
        let mut own_token = u32::max_value();
        let mut scaled_sum = 0.0f32;
        let mut plain_sum = 0.0f32;
        let mut token = unit;
        while token < vocab {
            let logit = logits[start + token];
            if logit > own {
                // Nothing was added yet beside the least value.
                if own_token != u32::max_value() {
                    scaled_sum *= ((own - logit) * scale).exp();
                    plain_sum *= (own - logit).exp();
                }
                own = logit;
                own_token = token as u32;
            }
            // What is not a number is never larger; it reaches the sums.
            scaled_sum += ((logit - own) * scale).exp();
            plain_sum += (logit - own).exp();
            token += units;
        }
        // Before `own` becomes that of the next token.
        let (largest, _token) = best_of_units(own, own_token, &mut values, &mut tokens, units);
        let scaled = scaled_sum * ((own - largest) * scale).exp();
        let scaled = sum_of_units(scaled, &mut values, units);
        let plain = plain_sum * (own - largest).exp();
        let plain = sum_of_units(plain, &mut values, units);
        if unit == 0 {
            floats[out + count] = scaled;
            floats[out + count + 1] = plain;
        }
        for place in 0..count {
            let (value, token) = best_of_units(own, own_token, &mut values, &mut tokens, units);
            if unit == 0 {
                floats[out + place] = value;
                // None is left where logits are not numbers: any token, beside the least value.
                let known = select(token < vocab as u32, token, 0u32);
                best_tokens[CUBE_POS * count + place] = I::cast_from(known);
            }
            // The next of the unit that had it, sought by all.
            let taker = token as usize % units;
            let mut next = f32::min_value();
            let mut next_token = u32::max_value();
            let mut other = taker + unit * units;
            while other < vocab {
                let logit = logits[start + other];
                let behind = logit < value || (logit == value && other > token as usize);
                if behind && logit > next {
                    next = logit;
                    next_token = other as u32;
                }
                other += units * units;
            }
            let (next, next_token) =
                best_of_units(next, next_token, &mut values, &mut tokens, units);
            if unit == taker {
                own = next;
                own_token = next_token;
            }
        }
    }
}

/// Of each row f32 `[rows, vocab]` the `count` largest, largest first, of equal ones the least token
/// first, and the two sums, `[rows, count + 2]`; the tokens of the former.
pub(super) fn likeliest<R: CubeRuntime>(
    logits: CubeTensor<R>,
    scales: CubeTensor<R>,
    count: usize,
    int: DType,
) -> [CubeTensor<R>; 2] {
    let (logits, scales) = (flat(logits), flat(scales));
    let [rows, vocab] = [logits.meta.shape()[0], logits.meta.shape()[1]];
    let floats = room(&logits, [rows, count + 2], DType::F32);
    let tokens = room(&logits, [rows, count], int);
    likeliest_kernel::launch(
        &floats.client,
        cubes(rows),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&logits]),
        logits.into_array_arg(),
        scales.into_array_arg(),
        floats.clone().into_array_arg(),
        tokens.clone().into_array_arg(),
        rows,
        vocab,
        count,
        UNITS,
        int.into(),
    );
    [floats, tokens]
}
