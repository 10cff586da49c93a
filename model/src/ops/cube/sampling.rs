//! The likeliest tokens of a row of logits.

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

/// A cube takes a row. Each unit knows the largest of its tokens, `unit`, `unit + units`, …; where it
/// is taken, all look for the next one of that unit's.
#[allow(clippy::legacy_numeric_constants, reason = "CubeCL has no other name")]
#[cube(launch, address_type = "dynamic")]
fn likeliest_kernel<I: Int>(
    logits: &Array<f32>,
    best: &mut Array<f32>,
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
        let mut own = f32::min_value();
        let mut own_token = u32::max_value();
        let mut token = unit;
        while token < vocab {
            let logit = logits[start + token];
            if logit > own {
                own = logit;
                own_token = token as u32;
            }
            token += units;
        }
        for place in 0..count {
            let (value, token) = best_of_units(own, own_token, &mut values, &mut tokens, units);
            if unit == 0 {
                best[CUBE_POS * count + place] = value;
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

/// The `count` largest of each row f32 `[rows, vocab]` and their tokens, largest first, of equal ones
/// the least token first.
pub(super) fn likeliest<R: CubeRuntime>(
    logits: CubeTensor<R>,
    count: usize,
    int: DType,
) -> [CubeTensor<R>; 2] {
    let logits = flat(logits);
    let [rows, vocab] = [logits.meta.shape()[0], logits.meta.shape()[1]];
    let best = room(&logits, [rows, count], DType::F32);
    let tokens = room(&logits, [rows, count], int);
    likeliest_kernel::launch(
        &best.client,
        cubes(rows),
        CubeDim::new_1d(UNITS as u32),
        addresses(&[&logits]),
        logits.into_array_arg(),
        best.clone().into_array_arg(),
        tokens.clone().into_array_arg(),
        rows,
        vocab,
        count,
        UNITS,
        int.into(),
    );
    [best, tokens]
}
