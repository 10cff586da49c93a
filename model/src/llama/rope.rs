//! Rotary position embedding in Hugging Face's rotate-half layout.

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};

use super::config::{LlamaConfig, RopeScaling};

/// Cosines and sines of every position, f32 `[context, head_dim]`: both halves of a head turn by
/// the same angles, the first with a negative sine.
#[derive(Module, Debug)]
pub struct Rope<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

/// The factors of one batch's queries and keys, made once for all layers.
#[derive(Clone, Debug)]
pub struct RopeRows<B: Backend> {
    pub(crate) queries: Factors<B>,
    pub(crate) keys: Factors<B>,
}

/// `[tokens, heads, head_dim]`; repeated for each head because CPU backends multiply equal shapes
/// many times faster than broadcast ones.
#[derive(Clone, Debug)]
pub(crate) struct Factors<B: Backend> {
    cos: Tensor<B, 3>,
    sin: Tensor<B, 3>,
}

/// Inverse frequencies `[head_dim / 2]`, scaled as `rope_type: "llama3"` asks.
pub fn inverse_frequencies(config: &LlamaConfig) -> Vec<f64> {
    let half = config.head_dim / 2;
    (0..half)
        .map(|i| {
            // transformers computes these in f32.
            let exponent = (2 * i) as f32 / config.head_dim as f32;
            let base = 1.0 / (config.rope_theta as f32).powf(exponent);
            match &config.rope_scaling {
                None => base as f64,
                Some(scaling) => scale_frequency(base as f64, scaling),
            }
        })
        .collect()
}

fn scale_frequency(frequency: f64, scaling: &RopeScaling) -> f64 {
    let original = scaling.original_max_position_embeddings as f64;
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < original / scaling.high_freq_factor {
        return frequency;
    }
    if wavelength > original / scaling.low_freq_factor {
        return frequency / scaling.factor;
    }
    let smooth = (original / wavelength - scaling.low_freq_factor)
        / (scaling.high_freq_factor - scaling.low_freq_factor);
    (1.0 - smooth) * frequency / scaling.factor + smooth * frequency
}

impl<B: Backend> Rope<B> {
    /// Tables for `max_position_embeddings` positions.
    pub fn new(config: &LlamaConfig, device: &B::Device) -> Self {
        let frequencies = inverse_frequencies(config);
        let positions = config.max_position_embeddings;
        let width = config.head_dim;
        let table = |of: fn(f32) -> f32, first_half: f32| {
            let row = |p: usize| {
                let values: Vec<f32> = frequencies
                    .iter()
                    .map(|&f| of(p as f32 * f as f32))
                    .collect();
                let first = values.iter().map(|x| first_half * x).collect::<Vec<f32>>();
                first.into_iter().chain(values)
            };
            let values: Vec<f32> = (0..positions).flat_map(row).collect();
            Tensor::from_data(
                TensorData::new(values, [positions, width]),
                (device, DType::F32),
            )
        };
        Self {
            cos: table(f32::cos, 1.0),
            sin: table(f32::sin, -1.0),
        }
    }

    /// The factors at `positions` `[tokens]`, in `dtype`.
    pub fn rows(
        &self,
        positions: Tensor<B, 1, Int>,
        heads: usize,
        kv_heads: usize,
        dtype: DType,
    ) -> RopeRows<B> {
        let pick = |table: &Tensor<B, 2>| -> Tensor<B, 3> {
            let rows = table.clone().select(0, positions.clone());
            rows.cast(dtype).unsqueeze_dim(1)
        };
        let (cos, sin) = (pick(&self.cos), pick(&self.sin));
        let factors = |heads| Factors {
            cos: cos.clone().repeat_dim(1, heads),
            sin: sin.clone().repeat_dim(1, heads),
        };
        RopeRows {
            queries: factors(heads),
            keys: factors(kv_heads),
        }
    }
}

impl<B: Backend> Rope<B> {
    /// Cosines and signed sines at `positions`, f32 `[tokens, head_dim]`.
    pub(crate) fn at(&self, positions: Tensor<B, 1, Int>) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let cos = self.cos.clone().select(0, positions.clone());
        (cos, self.sin.clone().select(0, positions))
    }

    /// The factors of queries and keys side by side `[tokens, heads + kv_heads, head_dim]`; those
    /// of the queries carry attention's 1/√head_dim.
    pub(crate) fn joint(
        &self,
        positions: Tensor<B, 1, Int>,
        heads: usize,
        kv_heads: usize,
        dtype: DType,
    ) -> Factors<B> {
        let scale = 1.0 / (self.cos.dims()[1] as f64).sqrt();
        let pick = |table: &Tensor<B, 2>| {
            let rows = table.clone().select(0, positions.clone());
            let rows: Tensor<B, 3> = rows.unsqueeze_dim(1);
            let queries = rows.clone().mul_scalar(scale).repeat_dim(1, heads);
            Tensor::cat(vec![queries, rows.repeat_dim(1, kv_heads)], 1).cast(dtype)
        };
        Factors {
            cos: pick(&self.cos),
            sin: pick(&self.sin),
        }
    }
}

impl<B: Backend> Factors<B> {
    /// Rotates `x` `[tokens, heads, head_dim]` to its positions.
    pub fn apply(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [tokens, heads, width] = x.dims();
        let half = width / 2;
        let first = x.clone().slice([0..tokens, 0..heads, 0..half]);
        let second = x.clone().slice([0..tokens, 0..heads, half..width]);
        let swapped = Tensor::cat(vec![second, first], 2);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_short_and_stretches_long_waves() {
        let scaling = RopeScaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        assert_eq!(scale_frequency(1.0, &scaling), 1.0);
        assert_eq!(scale_frequency(1e-6, &scaling), 1e-6 / 8.0);
        // Half way in 1/wavelength: wavelength 8192 / 2.5 gives smooth = 0.5.
        let f = 2.0 * std::f64::consts::PI * 2.5 / 8192.0;
        let expected = 0.5 * f / 8.0 + 0.5 * f;
        assert!((scale_frequency(f, &scaling) - expected).abs() < 1e-12);
    }
}
